//! Packing: the entries that a mask keeps, in the blocks that GPUs multiply from. The layout is [`BlockWeight`]'s, byte for
//! byte on every device; only whole copies of it differ in who makes them: a GPU packs what lies in its memory.
//!
//! Bound by memory: reads mask and entries once, writes masks and values once.

mod cuda;
#[doc(hidden)]
pub mod reference;

use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Result, expect_buffer};
use crate::weight::{BlockWeight, Tiles, check_kept, check_packed, check_source};

/// The entries of `source` (f32, f16 or bf16, `[rows, cols]`) that `mask` keeps: a flat bitmap over the row-major entries, u64
/// words, bit i%64 of word i/64 set where entry i stays, bits past the end clear. `kept` of them are set; on Meta that alone
/// counts. The host waits for the number of ones, and for nothing else.
///
/// # Errors
/// A length or element type that does not fit, a mask that keeps another number of entries, a matrix of 2³² entries or more,
/// or no memory.
pub fn pack(
    device: &Device,
    source: &Buffer,
    rows: usize,
    cols: usize,
    mask: &Buffer,
    kept: usize,
) -> Result<BlockWeight> {
    const OP: &str = "pack";
    let tiles = Tiles { rows, cols };
    check_source(source, rows, cols)?;
    check_packed(rows, cols)?;
    expect_buffer(OP, "mask", mask, DType::U64, (rows * cols).div_ceil(64))?;
    let mut bits = device.alloc(Category::Weights, DType::U64, tiles.masks())?;
    let mut starts = device.alloc(Category::Weights, DType::U32, tiles.count() + 1)?;
    let mut values = device.alloc(Category::Weights, source.dtype(), kept)?;
    let on_gpu = usize::from(device.backend() == Backend::Cuda);
    let mut total = device.alloc(Category::Workspace, DType::U32, on_gpu)?;
    let cost = Cost::new(
        OP,
        0,
        source.size_bytes() + mask.size_bytes() + bits.size_bytes() + 2 * starts.size_bytes(),
        bits.size_bytes() + 2 * starts.size_bytes() + values.size_bytes(),
    );
    let ones = if device.gpu().is_some() {
        let packed = (&mut bits, &mut starts, &mut values);
        device.launch(cost, |gpu| cuda::pack(gpu, tiles, source, mask, packed, &mut total))?;
        total.download::<u32>()?[0] as usize
    } else {
        let mut ones = kept;
        device.run(cost, || {
            reference::masks(tiles, mask.as_slice(), bits.as_mut_slice());
            ones = reference::starts(bits.as_slice(), starts.as_mut_slice());
            let size = source.dtype().size();
            reference::gather(tiles, bits.as_slice(), size, source.bytes(), values.bytes_mut());
        });
        ones
    };
    check_kept(ones, kept)?;
    Ok(BlockWeight::from_parts(rows, cols, bits, starts, values))
}
