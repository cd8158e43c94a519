//! What follows a layer's product: an activation function, a residual connection.

use crate::device::{Buffer, Category, DType, Device};
use crate::error::{Result, expect_dtype, expect_len};
use crate::ops::activation::{self, Activation};
use crate::ops::add;

/// y = f(z) + r instead of z = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ.
///
/// z is rounded to x's element type before f takes it, and f(z) before r is added, as by operations of their own. On a GPU's
/// tensor cores all is one kernel: y never goes to memory and back for f or r. Elsewhere the operations follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// f; f(z) = z without one.
    pub activation: Option<Activation>,
    /// Whether what f's gradient needs is kept, as `saved`: of ReLU the signs that [`activation::relu_backward`] takes, a bit an
    /// element; of the others z, as [`activation::backward`] does.
    pub save: bool,
    /// r `[n, out]`, in x's element type.
    pub residual: Option<&'a Buffer>,
}

impl Epilogue<'_> {
    pub(super) fn check(&self, op: &'static str, dtype: DType, len: usize) -> Result<()> {
        self.residual.map_or(Ok(()), |residual| {
            expect_len(op, "residual", residual.len(), len)?;
            expect_dtype(op, "residual", residual.dtype(), dtype)
        })
    }

    /// A place for what is saved of `len` elements.
    pub(super) fn alloc(&self, device: &Device, dtype: DType, len: usize) -> Result<Option<Buffer>> {
        let (dtype, len) = match self.activation {
            Some(Activation::Relu) => (DType::U64, len.div_ceil(64)),
            Some(_) => (dtype, len),
            None => return Ok(None),
        };
        self.save.then(|| device.alloc(Category::Activations, dtype, len)).transpose()
    }

    /// Operations on `len` elements, as the operations count theirs.
    pub(super) fn flops(&self, len: usize) -> usize {
        let of_function = match self.activation {
            None => 0,
            Some(Activation::Relu) => 1,
            Some(_) => 16,
        };
        len * (of_function + usize::from(self.residual.is_some()))
    }

    /// y and what is saved, from z, by operations of their own.
    pub(super) fn apply(self, z: Buffer) -> Result<(Buffer, Option<Buffer>)> {
        let (mut y, saved) = match self.activation {
            None => (z, None),
            Some(Activation::Relu) => activation::relu(z, self.save)?,
            Some(kind) => {
                let y = activation::forward(kind, &z)?;
                (y, self.save.then_some(z))
            }
        };
        if let Some(residual) = self.residual {
            add::add_assign(&mut y, residual)?;
        }
        Ok((y, saved))
    }
}
