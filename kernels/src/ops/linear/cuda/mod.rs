//! The GPU's linear layers: tensor cores for activations in 16 bits, whatever the weight is; plain multiply-adds for f32, and
//! for features that are not multiples of 8. Dense products may be cuBLASLt's: `library`.

pub(super) mod adapted;
mod ending;
mod gradients;
pub(in crate::ops) mod library;
pub(in crate::ops) mod plain;
pub(in crate::ops) mod products;
mod two_four;

pub(in crate::ops) use gradients::{lora_gradients, parts_len, weight_gradient};
pub(super) use products::{backward_input, forward, lora_down};

use crate::device::{Buffer, DType};
use crate::error::{Error, Result};
use crate::weight::{BlockWeight, FrozenWeight, TwoFourWeight, WeightRef};

/// Features must be multiples of this for copies of 16 bytes.
const CHUNK: usize = 8;

/// Rows and features of x and y.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Shape {
    pub n: usize,
    pub cols: usize,
    pub rows: usize,
}

/// Whether tensor cores can't take activations of this type in rows of these lengths.
pub(in crate::ops) fn is_plain(dtype: DType, features: &[usize]) -> bool {
    dtype == DType::F32 || features.iter().any(|features| !features.is_multiple_of(CHUNK))
}

/// A weight as the kernels know it.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Weight<'a> {
    Dense(&'a Buffer),
    Packed(&'a BlockWeight),
    TwoFour(&'a TwoFourWeight),
}

impl<'a> Weight<'a> {
    pub fn of(weight: WeightRef<'a>) -> Result<Weight<'a>> {
        match weight {
            WeightRef::Frozen(FrozenWeight::Dense(dense)) => Ok(Weight::Dense(dense.values())),
            WeightRef::Frozen(FrozenWeight::Blocks(packed)) => Ok(Weight::Packed(packed)),
            WeightRef::Frozen(FrozenWeight::TwoFour(packed)) => Ok(Weight::TwoFour(packed)),
            WeightRef::Trainable { value, .. } => Ok(Weight::Dense(value)),
            // Linear layers have kernels of their own for it, heads have none: no one adapts them so.
            WeightRef::Adapted(_) => {
                Err(Error::Unsupported { op: "linear", what: "an adapter inside a weight".into(), device: "cuda" })
            }
            // Packed on the CPU: no launch takes its address.
            WeightRef::Frozen(FrozenWeight::Sparse(_)) => {
                Err(Error::Unsupported { op: "linear", what: "a weight packed for the CPU".into(), device: "cuda" })
            }
        }
    }

    pub fn dtype(self) -> DType {
        match self {
            Weight::Dense(values) => values.dtype(),
            Weight::Packed(packed) => packed.values().dtype(),
            Weight::TwoFour(packed) => packed.values().dtype(),
        }
    }
}

/// As `Type` in type.cuh.
fn type_number(dtype: DType) -> i32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}
