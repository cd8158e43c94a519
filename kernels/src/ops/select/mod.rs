//! Selection for pruning: which entries of a matrix stay, by their magnitudes: of weights as they lie, or of scores.
//!
//! * [`keep_largest`]: all but the k smallest of a matrix, exactly; of equal magnitudes the lower index goes first.
//!   [`Threshold`] does the same for a matrix that comes in pieces.
//! * [`keep_largest_of_rows`]: the same within each row.
//! * [`keep_n_of_m`]: the n largest of every m consecutive entries of a row; again the lower index goes first.
//!
//! Entries are f32, f16 or bf16 and finite; the bits of a magnitude have the order of its value. The k-th smallest is found
//! digit by digit from histograms (a radix select), never by sorting, so the time grows with the number of entries alone.
//! The CPU reads a matrix of f32 three times for the histograms (of 16 bits twice), and once each for the check, the ties
//! and the mask; a GPU checks with the first histogram and learns the ties from the last. Masks are flat bitmaps over
//! row-major entries: u64 words, bit i%64 of word i/64 set where entry i is kept, bits past the end clear.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;
mod threshold;

use half::{bf16, f16};

use crate::device::{Backend, Buffer, Category, Cost, DType, Device, Element};
use crate::error::{Error, Result, expect_dtype, expect_len};
use crate::simd::Isa;

pub use threshold::Threshold;

/// The largest m of n:m.
const LARGEST_GROUP: usize = 32;

/// A mask, and whether it means something.
#[derive(Debug)]
pub struct Selection {
    /// The flat bitmap, u64.
    pub mask: Buffer,
    /// u64 `[1]`: the first entry that is not finite, or all ones.
    unusable: Buffer,
}

impl Selection {
    fn new(device: &Device, len: usize) -> Result<Selection> {
        Ok(Selection { mask: device.alloc(Category::Masks, DType::U64, len.div_ceil(64))?, unusable: usable(device)? })
    }

    /// The first entry that is an infinity or not a number, for which there is no right mask. None on Meta. The host waits
    /// for the selection.
    ///
    /// # Errors
    /// The GPU's.
    pub fn first_unusable(&self) -> Result<Option<usize>> {
        first_unusable(&self.unusable)
    }
}

/// What says that all entries so far are finite.
fn usable(device: &Device) -> Result<Buffer> {
    device.upload(Category::Workspace, &[u64::MAX])
}

fn first_unusable(unusable: &Buffer) -> Result<Option<usize>> {
    if unusable.device().is_meta() {
        return Ok(None);
    }
    let first = unusable.download::<u64>()?[0];
    Ok((first != u64::MAX).then_some(first as usize))
}

/// Keeps all but the `k` entries of the smallest magnitudes.
///
/// # Errors
/// Entries that are not floats, `k` above their number, or no memory.
pub fn keep_largest(entries: &Buffer, k: usize) -> Result<Selection> {
    let mut threshold = Threshold::new(entries.device(), entries.dtype(), k)?;
    for _ in 0..threshold.rounds() {
        threshold.count(entries)?;
        threshold.advance()?;
    }
    let mask = threshold.mask(entries)?;
    Ok(Selection { mask, unusable: threshold.into_unusable() })
}

/// Keeps all but the `k` entries of the smallest magnitudes of each row of `cols`.
///
/// # Errors
/// As [`keep_largest`]; entries that are not whole rows.
pub fn keep_largest_of_rows(entries: &Buffer, cols: usize, k: usize) -> Result<Selection> {
    const OP: &str = "keep_largest_of_rows";
    let (device, len) = (entries.device(), entries.len());
    expect_entries(OP, entries.dtype())?;
    expect_len(OP, "entries", len, len / cols.max(1) * cols)?;
    if k > cols {
        return domain(OP, format!("{k} of {cols} entries cannot be removed"));
    }
    let rows = len / cols.max(1);
    let mut selection = Selection::new(device, len)?;
    let on_gpu = if device.backend() == Backend::Cuda { rows } else { 0 };
    let mut thresholds = device.alloc(Category::Workspace, DType::U64, threshold::WORDS * on_gpu)?;
    let cost = Cost::new(OP, 0, entries.size_bytes(), selection.mask.size_bytes());
    let Selection { mask, unusable } = &mut selection;
    if device.gpu().is_some() {
        let matrix = cuda::Matrix { entries, rows, cols };
        device.launch(cost, |gpu| cuda::keep_largest_of_rows(gpu, matrix, k, &mut thresholds, mask, unusable))?;
        return Ok(selection);
    }
    device.run(cost, || {
        let (mask, unusable) = (mask.as_mut_slice(), unusable.as_mut_slice());
        by_type!(entries, |entries| {
            cpu::check(Isa::best(), entries, 0, unusable);
            cpu::keep_largest_of_rows(Isa::best(), entries, cols, k, mask);
        });
    });
    Ok(selection)
}

/// Keeps the `n` entries of the largest magnitudes of every `m` consecutive ones of each row of `cols`.
///
/// # Errors
/// Entries that are not floats, `cols` that is no multiple of `m`, `n` above `m`, `m` outside 1 to 32, or no memory.
pub fn keep_n_of_m(entries: &Buffer, cols: usize, n: usize, m: usize) -> Result<Selection> {
    const OP: &str = "keep_n_of_m";
    let (device, len) = (entries.device(), entries.len());
    expect_entries(OP, entries.dtype())?;
    expect_len(OP, "entries", len, len / cols.max(1) * cols)?;
    if m == 0 || m > LARGEST_GROUP || n > m {
        return domain(OP, format!("{n}:{m} is no pattern: n:m has n ≤ m ≤ 32"));
    }
    if !cols.is_multiple_of(m) {
        return domain(OP, format!("rows of {cols} entries cannot be cut into groups of {m}"));
    }
    let mut selection = Selection::new(device, len)?;
    let cost = Cost::new(OP, 0, entries.size_bytes(), selection.mask.size_bytes());
    let Selection { mask, unusable } = &mut selection;
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::keep_n_of_m(gpu, entries, n, m, mask, unusable))?;
        return Ok(selection);
    }
    device.run(cost, || {
        let (mask, unusable) = (mask.as_mut_slice(), unusable.as_mut_slice());
        by_type!(entries, |entries| {
            cpu::check(Isa::best(), entries, 0, unusable);
            cpu::keep_n_of_m(Isa::best(), entries, n, m, mask);
        });
    });
    Ok(selection)
}

/// How many entries a mask keeps: u64 `[1]`, which stays on the device until it is downloaded.
///
/// # Errors
/// A mask that is not u64, or no memory.
pub fn count_kept(mask: &Buffer) -> Result<Buffer> {
    const OP: &str = "count_kept";
    expect_dtype(OP, "mask", mask.dtype(), DType::U64)?;
    let device = mask.device();
    let mut kept = device.zeros(Category::Workspace, DType::U64, 1)?;
    let cost = Cost::new(OP, 0, mask.size_bytes(), kept.size_bytes());
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::count_kept(gpu, mask, &mut kept))?;
        return Ok(kept);
    }
    device.run(cost, || kept.as_mut_slice::<u64>()[0] = cpu::count_kept(Isa::best(), mask.as_slice()));
    Ok(kept)
}

/// A float whose magnitudes are ordered as their bits are.
trait Entry: Element {
    /// Bits of a key.
    const KEY_BITS: u32;
    /// The key of the largest finite number.
    const LARGEST: u32;
    /// The bits of its magnitude.
    fn key(self) -> u32;
}

impl Entry for f32 {
    const KEY_BITS: u32 = 31;
    const LARGEST: u32 = f32::MAX.to_bits();
    #[inline(always)]
    fn key(self) -> u32 {
        self.to_bits() & (u32::MAX >> 1)
    }
}

impl Entry for f16 {
    const KEY_BITS: u32 = 15;
    const LARGEST: u32 = f16::MAX.to_bits() as u32;
    #[inline(always)]
    fn key(self) -> u32 {
        u32::from(self.to_bits() & (u16::MAX >> 1))
    }
}

impl Entry for bf16 {
    const KEY_BITS: u32 = 15;
    const LARGEST: u32 = bf16::MAX.to_bits() as u32;
    #[inline(always)]
    fn key(self) -> u32 {
        u32::from(self.to_bits() & (u16::MAX >> 1))
    }
}

/// The bits of a key and the largest finite key of an element type.
fn key_range(dtype: DType) -> (u32, u32) {
    match dtype {
        DType::F16 => (f16::KEY_BITS, f16::LARGEST),
        DType::BF16 => (bf16::KEY_BITS, bf16::LARGEST),
        _ => (f32::KEY_BITS, f32::LARGEST),
    }
}

/// Runs a body over the elements of a buffer of floats.
macro_rules! by_type {
    ($buffer:expr, |$entries:ident| $body:expr) => {
        match $buffer.dtype() {
            $crate::device::DType::F16 => {
                let $entries = $buffer.as_slice::<half::f16>();
                $body
            }
            $crate::device::DType::BF16 => {
                let $entries = $buffer.as_slice::<half::bf16>();
                $body
            }
            _ => {
                let $entries = $buffer.as_slice::<f32>();
                $body
            }
        }
    };
}
use by_type;

fn expect_entries(op: &'static str, got: DType) -> Result<()> {
    match got {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        got => Err(Error::DType { op, what: "entries", expected: DType::F32, got }),
    }
}

fn domain<T>(op: &'static str, reason: String) -> Result<T> {
    Err(Error::Domain { op, reason })
}
