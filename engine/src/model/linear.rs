//! Linear layers: a weight that is frozen or trains, a bias, an adapter.

use std::sync::{Arc, RwLockReadGuard};

use kernels::ops::attention::Precision;
use kernels::ops::linear as op;
use kernels::weight::{Adapted, Form, FrozenWeight, Landing, OffloadedWeight, WeightRef};
use kernels::{Buffer, Category, DType, Device};

use crate::checkpoint::LoraForm;
use crate::error::{Error, Result};
use crate::tensor::Param;

/// A `[rows, cols]` = `[out, in]` weight.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a model has some hundred, nearly all frozen
pub enum Weight {
    /// Packed at load, never touched by a step.
    Frozen(FrozenWeight),
    /// The same, in the host's memory: on the GPU while it is multiplied.
    Offloaded(OffloadedWeight),
    /// Dense f32, with a gradient and optimizer state (method `full`).
    Trainable(Arc<Param>),
}

impl Weight {
    /// Output features (of an embedding: tokens).
    pub fn rows(&self) -> usize {
        match self {
            Weight::Frozen(weight) => weight.rows(),
            Weight::Offloaded(weight) => weight.rows(),
            Weight::Trainable(param) => param.shape()[0],
        }
    }

    /// Input features (of an embedding: its width).
    pub fn cols(&self) -> usize {
        match self {
            Weight::Frozen(weight) => weight.cols(),
            Weight::Offloaded(weight) => weight.cols(),
            Weight::Trainable(param) => param.shape()[1],
        }
    }

    /// The element type of the stored entries.
    pub fn dtype(&self) -> DType {
        match self {
            Weight::Frozen(weight) => weight.dtype(),
            Weight::Offloaded(weight) => weight.dtype(),
            Weight::Trainable(_) => DType::F32,
        }
    }

    /// The parameter, where it has one.
    pub fn param(&self) -> Option<&Arc<Param>> {
        match self {
            Weight::Frozen(_) | Weight::Offloaded(_) => None,
            Weight::Trainable(param) => Some(param),
        }
    }

    /// True where it trains.
    pub fn is_trainable(&self) -> bool {
        self.param().is_some_and(|param| param.is_trainable())
    }

    /// Where it lives, or is multiplied.
    pub fn device(&self) -> Device {
        match self {
            Weight::Frozen(weight) => weight.device().clone(),
            Weight::Offloaded(weight) => weight.device().clone(),
            Weight::Trainable(param) => param.value().device().clone(),
        }
    }

    /// Lends it to a kernel. One that is offloaded is on the device until `run` returns.
    ///
    /// # Errors
    /// Those of `run`, and no memory to bring it to.
    pub fn with_ref<T, E: From<kernels::Error>>(
        &self,
        run: impl FnOnce(WeightRef<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        match self {
            Weight::Frozen(weight) => run(WeightRef::Frozen(weight)),
            Weight::Offloaded(weight) => run(WeightRef::Frozen(&*weight.bring()?)),
            Weight::Trainable(param) => {
                let (value, mask) = (param.value(), param.mask());
                run(WeightRef::Trainable { value: &value, rows: self.rows(), cols: self.cols(), mask: mask.as_ref() })
            }
        }
    }

    /// Entries that are zero (none on Meta).
    ///
    /// # Errors
    /// The GPU's.
    pub fn zeros(&self) -> Result<usize> {
        Ok(match self {
            _ if self.device().is_meta() => 0,
            Weight::Frozen(weight) => weight.zeros()?,
            Weight::Offloaded(weight) => weight.bring()?.zeros()?,
            Weight::Trainable(param) => param.value().read::<f32>()?.iter().filter(|x| **x == 0.0).count(),
        })
    }

    /// The same weight as a parameter named `name`, dense in f32. A pruned weight keeps its mask: the entries that a
    /// packed weight does not store stay zero in training.
    ///
    /// # Errors
    /// No memory; or a weight that is offloaded, for what trains stays on its device.
    pub fn into_trainable(self, device: &Device, name: &str) -> Result<Weight> {
        let weight = match self {
            Weight::Frozen(weight) => weight,
            Weight::Offloaded(_) => {
                return Err(Error::config(format!(
                    "{name} is offloaded to the host and cannot train: use method perp"
                )));
            }
            Weight::Trainable(_) => return Ok(self),
        };
        let (rows, cols) = (weight.rows(), weight.cols());
        let mut value = device.alloc(Category::Weights, DType::F32, rows * cols)?;
        let mask = match &weight {
            FrozenWeight::Dense(_) => None,
            _ if device.is_meta() => Some(device.alloc(Category::Masks, DType::U64, (rows * cols).div_ceil(64))?),
            packed => packed.mask()?.map(|words| device.upload(Category::Masks, &words)).transpose()?,
        };
        value.fill(|values| weight.read_all(values))?;
        let param = Param::new(name, &[rows, cols], value);
        param.set_mask(mask);
        Ok(Weight::Trainable(Arc::new(param)))
    }
}

impl Weight {
    /// Takes a frozen weight to the host's memory, from where `landing` has it brought.
    ///
    /// # Errors
    /// The GPU's, such as no pinned memory.
    pub fn offload(&mut self, landing: &Arc<Landing>) -> Result<()> {
        if let Weight::Frozen(weight) = self {
            *self = Weight::Offloaded(OffloadedWeight::new(weight, landing)?);
        }
        Ok(())
    }

    /// Bytes of pinned memory that it takes of the host.
    pub fn host_bytes(&self) -> usize {
        match self {
            Weight::Offloaded(weight) => weight.host_bytes(),
            _ => 0,
        }
    }
}

/// A low-rank update: s·B·A with s = α/r.
#[derive(Debug)]
pub struct Lora {
    /// A `[rank, in]`.
    pub a: Arc<Param>,
    /// B `[out, rank]`.
    pub b: Arc<Param>,
    /// r.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// What becomes of the weight.
    pub form: LoraForm,
}

impl Lora {
    /// s = α/r.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Entries of A and B.
    pub fn len(&self) -> usize {
        self.a.len() + self.b.len()
    }

    /// True for an adapter of no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where A and B train.
    pub fn is_trainable(&self) -> bool {
        self.a.is_trainable()
    }

    /// Its values, to lend to a kernel.
    pub fn values(&self) -> LoraValues<'_> {
        LoraValues { a: self.a.value(), b: self.b.value(), rank: self.rank, scale: self.scale(), form: self.form }
    }
}

/// A and B, held for reading.
pub struct LoraValues<'a> {
    a: RwLockReadGuard<'a, Buffer>,
    b: RwLockReadGuard<'a, Buffer>,
    rank: usize,
    scale: f32,
    form: LoraForm,
}

impl LoraValues<'_> {
    /// As a kernel takes a term of its own.
    pub fn borrow(&self) -> op::Lora<'_> {
        op::Lora { a: &self.a, b: &self.b, rank: self.rank, scale: self.scale }
    }

    /// As a kernel takes one that lies inside `weight`; nothing where it does not.
    ///
    /// # Errors
    /// A weight that trains itself: its entries are no mask.
    pub fn inside<'a>(&'a self, weight: WeightRef<'a>) -> Result<Option<Adapted<'a>>> {
        let form = match self.form {
            LoraForm::Added => return Ok(None),
            LoraForm::Masked => Form::Add { scale: self.scale },
            LoraForm::Scaled => Form::Scale,
        };
        match weight {
            WeightRef::Frozen(weight) => Ok(Some(Adapted { weight, a: &self.a, b: &self.b, rank: self.rank, form })),
            _ => Err(Error::config("a masked or scaled adapter goes into a frozen weight, and this one trains")),
        }
    }
}

/// y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ.
#[derive(Debug)]
pub struct Linear {
    /// Its module path in weight files, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// W `[out, in]`.
    pub weight: Weight,
    /// b `[out]`.
    pub bias: Option<Arc<Param>>,
    /// The adapter.
    pub lora: Option<Lora>,
    /// True inside decoder layers: pruning may remove its weights.
    pub prunable: bool,
}

impl Linear {
    /// The last part of its path, such as `q_proj`: what users name as a LoRA target.
    pub fn role(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The decoder layer that it is in: the first number in its path.
    pub fn layer(&self) -> Option<usize> {
        self.name.split('.').find_map(|part| part.parse().ok())
    }

    /// How exact what is computed from products with these can be.
    pub fn precision(linears: &[&Linear]) -> Precision {
        Precision::of(&linears.iter().map(|linear| linear.weight.dtype()).collect::<Vec<_>>())
    }

    /// The parameters that may train in it.
    pub fn params(&self) -> [Option<&Param>; 4] {
        let lora = self.lora.as_ref();
        [
            self.weight.param().map(Arc::as_ref),
            self.bias.as_deref(),
            lora.map(|lora| lora.a.as_ref()),
            lora.map(|lora| lora.b.as_ref()),
        ]
    }
}
