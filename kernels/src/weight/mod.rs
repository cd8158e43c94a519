//! What a weight is to a kernel: frozen (dense or packed sparse) or trainable.
//!
//! A frozen weight is packed once, when it is loaded, and never touched again by a step. It keeps its file's element type
//! in memory; a product unpacks a few rows or columns at a time into the cache, for Y = X·Wᵀ and for dX = dY·W alike, so one
//! copy serves both directions. The device decides the packed form: rows for the CPU, blocks for a GPU, and there another one
//! for what is pruned 2:4.

mod adapted;
mod block;
mod dense;
mod frozen;
mod offloaded;
mod operand;
mod packed_rows;
mod sparse;
mod two_four;

use std::ops::Range;

use half::{bf16, f16};

pub use adapted::{Adapted, Form, Kept, merge};
pub use block::BlockWeight;
#[doc(hidden)]
pub use block::{MASKS, Tiles};
pub use dense::DenseWeight;
pub use frozen::FrozenWeight;
pub use offloaded::{Brought, Landing, OffloadedWeight};
pub use operand::{WeightColumns, WeightRef};
pub use packed_rows::PackedRows;
pub use sparse::SparseWeight;
pub use two_four::TwoFourWeight;
#[doc(hidden)]
pub use two_four::{GROUP, Groups};

use crate::device::{Buffer, DType, Element};
use crate::error::{Error, Result, expect_len};
use crate::simd::{Isa, widen_bf16, widen_f16};

pub(crate) fn check_source(source: &Buffer, rows: usize, cols: usize) -> Result<()> {
    expect_len("pack", "weight", source.len(), rows * cols)?;
    match source.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        got => Err(Error::DType { op: "pack", what: "weight", expected: DType::F32, got }),
    }
}

/// Packed forms count entries in 32 bits.
pub(crate) fn check_packed(rows: usize, cols: usize) -> Result<()> {
    if u32::try_from(rows * cols).is_ok() {
        return Ok(());
    }
    let reason = format!("a matrix of {rows}×{cols} entries is too large: at most 2³² − 1 can be packed");
    Err(Error::Domain { op: "pack", reason })
}

pub(crate) fn check_kept(ones: usize, kept: usize) -> Result<()> {
    if ones == kept {
        return Ok(());
    }
    let reason = format!("the mask keeps {ones} entries, {kept} were announced");
    Err(Error::Domain { op: "pack", reason })
}

/// Converts stored entries to f32.
fn widen(values: &Buffer, range: Range<usize>, out: &mut [f32]) {
    match values.dtype() {
        DType::F32 => out.copy_from_slice(&values.f32()[range]),
        DType::F16 => widen_f16(Isa::best(), &values.as_slice()[range], out),
        DType::BF16 => widen_bf16(&values.as_slice()[range], out),
        other => unreachable!("a weight of {other} is refused when it is made"),
    }
}

/// Bytes as what they are.
fn elements<T: Element>(bytes: &[u8]) -> Vec<T> {
    let mut elements = vec![T::zeroed(); bytes.len() / T::DTYPE.size()];
    bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
    elements
}

/// The bytes of a buffer on any device but Meta.
fn download_bytes(values: &Buffer) -> Result<Vec<u8>> {
    Ok(match values.dtype() {
        DType::F16 => bytemuck::cast_slice(&values.download::<f16>()?).to_vec(),
        DType::BF16 => bytemuck::cast_slice(&values.download::<bf16>()?).to_vec(),
        _ => bytemuck::cast_slice(&values.download::<f32>()?).to_vec(),
    })
}

#[cfg(test)]
mod tests;
