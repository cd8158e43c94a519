//! Packing two of every four entries of a row, as the sparse tensor cores of GPUs multiply them. The layout is
//! [`TwoFourWeight`]'s, byte for byte on every device; a GPU packs what lies in its memory.
//!
//! Bound by memory: reads mask and entries once, writes values and places once.

mod cuda;
#[doc(hidden)]
pub mod reference;

use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Error, Result, expect_buffer};
use crate::weight::{GROUP, Groups, TwoFourWeight, check_source};

/// The entries of `source` (f16 or bf16, `[rows, cols]`) that `mask` keeps: a flat bitmap over the row-major entries, u64 words,
/// bit i%64 of word i/64 set where entry i stays. It keeps at most two of each group, the four entries from a multiple of four
/// on; where it keeps fewer, zeros in the first free places count as kept. On Meta no mask is read. The host waits for the
/// answer whether a group keeps more, and for nothing else.
///
/// # Errors
/// A length or element type that does not fit, rows that are not whole groups, a mask that keeps more than two of a group, or
/// no memory.
pub fn pack_two_four(
    device: &Device,
    source: &Buffer,
    rows: usize,
    cols: usize,
    mask: &Buffer,
) -> Result<TwoFourWeight> {
    const OP: &str = "pack_two_four";
    check_source(source, rows, cols)?;
    if !TwoFourWeight::holds(source.dtype()) {
        return Err(Error::DType { op: OP, what: "weight", expected: DType::BF16, got: source.dtype() });
    }
    if !cols.is_multiple_of(GROUP) {
        let reason = format!("rows of {cols} entries are not whole groups of {GROUP}");
        return Err(Error::Domain { op: OP, reason });
    }
    expect_buffer(OP, "mask", mask, DType::U64, (rows * cols).div_ceil(64))?;
    let groups = Groups { rows, cols };
    let mut values = device.alloc(Category::Weights, source.dtype(), groups.values())?;
    let mut places = device.alloc(Category::Weights, DType::U32, groups.words())?;
    let on_gpu = usize::from(device.backend() == Backend::Cuda);
    let mut fault = device.zeros(Category::Workspace, DType::U64, on_gpu)?;
    let written = values.size_bytes() + places.size_bytes();
    let cost = Cost::new(OP, 0, source.size_bytes() + mask.size_bytes(), written);
    let first_fault = if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::pack(gpu, groups, source, mask, (&mut values, &mut places), &mut fault))?;
        // The kernel leaves the complement, so that none is zero, and the first is the largest.
        Some(!fault.download::<u64>()?[0]).filter(|first| *first != u64::MAX)
    } else {
        let mut first = None;
        device.run(cost, || {
            let packed = (bytemuck::cast_slice_mut(values.bytes_mut()), places.as_mut_slice());
            first = reference::gather(groups, mask.as_slice(), source.bytes(), packed);
        });
        first
    };
    if let Some(first) = first_fault {
        let (row, col) = (first as usize / cols, first as usize % cols);
        let reason = format!("the mask keeps more than two of row {row}, columns {col} to {}", col + GROUP - 1);
        return Err(Error::Domain { op: OP, reason });
    }
    Ok(TwoFourWeight::from_parts(rows, cols, values, places))
}
