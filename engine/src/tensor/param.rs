//! Parameters: named f32 tensors that may train.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kernels::{Buffer, Category, DType};

use crate::error::Result;

/// A named f32 tensor: a bias, a norm's weight, a LoRA matrix, or (method `full`) a whole weight. A frozen parameter has
/// no gradient and no optimizer state; a trainable one has a gradient from the first backward pass of a step to its end.
#[derive(Debug)]
pub struct Param {
    name: String,
    shape: Vec<usize>,
    trainable: AtomicBool,
    value: RwLock<Buffer>,
    grad: Mutex<Option<Buffer>>,
    mask: RwLock<Option<Buffer>>,
}

impl Param {
    /// A frozen parameter.
    ///
    /// # Panics
    /// If `value` is not f32 or does not have the shape's number of elements.
    pub fn new(name: impl Into<String>, shape: &[usize], value: Buffer) -> Param {
        assert_eq!(value.dtype(), DType::F32, "parameters are f32");
        assert_eq!(value.len(), shape.iter().product::<usize>(), "a parameter's buffer fills its shape");
        Param {
            name: name.into(),
            shape: shape.to_vec(),
            trainable: AtomicBool::new(false),
            value: RwLock::new(value),
            grad: Mutex::new(None),
            mask: RwLock::new(None),
        }
    }

    /// The name in weight files.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a parameter of no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where it trains.
    pub fn is_trainable(&self) -> bool {
        self.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or unfreezes it.
    pub fn set_trainable(&self, trainable: bool) {
        self.trainable.store(trainable, Ordering::Relaxed);
    }

    /// The elements.
    pub fn value(&self) -> RwLockReadGuard<'_, Buffer> {
        self.value.read().expect("no panic while locked")
    }

    /// The elements, for writing.
    pub fn value_mut(&self) -> RwLockWriteGuard<'_, Buffer> {
        self.value.write().expect("no panic while locked")
    }

    /// The gradient so far, if a backward pass has left one.
    pub fn with_grad<T>(&self, read: impl FnOnce(Option<&Buffer>) -> T) -> T {
        read(self.grad.lock().expect("no panic while locked").as_ref())
    }

    /// Takes the gradient out, zeros if there is none yet; [`Param::put_grad`] puts it back.
    ///
    /// # Errors
    /// No memory for it.
    pub fn take_grad(&self) -> Result<Buffer> {
        match self.grad.lock().expect("no panic while locked").take() {
            Some(grad) => Ok(grad),
            None => {
                let device = self.value().device().clone();
                Ok(device.zeros(Category::Gradients, DType::F32, self.len())?)
            }
        }
    }

    /// Puts a gradient in place.
    pub fn put_grad(&self, grad: Buffer) {
        *self.grad.lock().expect("no panic while locked") = Some(grad);
    }

    /// Adds to the gradient, which starts as zeros.
    ///
    /// # Errors
    /// What `add` returns, or no memory for the gradient.
    pub fn accumulate(&self, add: impl FnOnce(&mut Buffer) -> kernels::Result<()>) -> Result<()> {
        let mut grad = self.take_grad()?;
        add(&mut grad)?;
        self.put_grad(grad);
        Ok(())
    }

    /// The pruning mask of a trainable weight: u64 words, bit i%64 of word i/64 set where entry i is kept.
    pub fn mask(&self) -> RwLockReadGuard<'_, Option<Buffer>> {
        self.mask.read().expect("no panic while locked")
    }

    /// Sets the pruning mask.
    pub fn set_mask(&self, mask: Option<Buffer>) {
        *self.mask.write().expect("no panic while locked") = mask;
    }

    /// Drops the gradient.
    pub fn clear_grad(&self) {
        *self.grad.lock().expect("no panic while locked") = None;
    }
}
