//! Selection for pruning: which entries of a matrix stay, given a score for each.
//!
//! * [`keep_largest`]: all but the k smallest of a group of entries, exactly; of equal scores the lower index goes first.
//! * [`keep_n_of_m`]: the n largest of every m consecutive entries of a row; again the lower index goes first.
//!
//! Scores are finite and not negative, so the order of their bits is the order of their values. The k-th smallest is found
//! digit by digit from histograms (a radix select), never by sorting, so the time grows with the number of scores alone: a
//! matrix is read three times for the histograms, and once each for the check, the ties and the mask. Masks are flat
//! bitmaps over row-major entries: u64 words, bit i%64 of word i/64 set where entry i is kept, bits past the end clear.

mod cpu;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Buffer, Category, Cost, DType, Device};
use crate::error::{Error, Result, expect_len};
use crate::simd::Isa;

/// Keeps all but the `k` smallest `scores`.
///
/// # Errors
/// A score that is negative or not finite, `k` above the number of scores, or no memory.
pub fn keep_largest(device: &Device, scores: &[f32], k: usize) -> Result<Buffer> {
    const OP: &str = "keep_largest";
    device.expect_host(OP)?;
    if k > scores.len() {
        return domain(OP, format!("{k} of {} entries cannot be removed", scores.len()));
    }
    check_scores(OP, scores)?;
    let mut mask = device.zeros(Category::Masks, DType::U64, scores.len().div_ceil(64))?;
    let cost = Cost::new(OP, 0, 4 * scores.len(), mask.size_bytes());
    device.run(cost, || cpu::keep_largest(Isa::best(), scores, k, mask.as_mut_slice()));
    Ok(mask)
}

/// Keeps all but the `k` smallest of each row of `cols` scores.
///
/// # Errors
/// As [`keep_largest`]; scores that are not whole rows.
pub fn keep_largest_of_rows(device: &Device, scores: &[f32], cols: usize, k: usize) -> Result<Buffer> {
    const OP: &str = "keep_largest_of_rows";
    device.expect_host(OP)?;
    expect_len(OP, "scores", scores.len(), scores.len() / cols.max(1) * cols)?;
    if k > cols {
        return domain(OP, format!("{k} of {cols} entries cannot be removed"));
    }
    check_scores(OP, scores)?;
    let mut mask = device.zeros(Category::Masks, DType::U64, scores.len().div_ceil(64))?;
    let cost = Cost::new(OP, 0, 4 * scores.len(), mask.size_bytes());
    device.run(cost, || cpu::keep_largest_of_rows(Isa::best(), scores, cols, k, mask.as_mut_slice()));
    Ok(mask)
}

/// Keeps the `n` largest of every `m` consecutive scores of each row of `cols`.
///
/// # Errors
/// A negative or non-finite score, `cols` that is no multiple of `m`, `n` above `m`, `m` outside 1 to 32, or no memory.
pub fn keep_n_of_m(device: &Device, scores: &[f32], cols: usize, n: usize, m: usize) -> Result<Buffer> {
    const OP: &str = "keep_n_of_m";
    device.expect_host(OP)?;
    expect_len(OP, "scores", scores.len(), scores.len() / cols.max(1) * cols)?;
    if m == 0 || m > cpu::LARGEST_GROUP || n > m {
        return domain(OP, format!("{n}:{m} is no pattern: n:m has n ≤ m ≤ 32"));
    }
    if !cols.is_multiple_of(m) {
        return domain(OP, format!("rows of {cols} entries cannot be cut into groups of {m}"));
    }
    check_scores(OP, scores)?;
    let mut mask = device.zeros(Category::Masks, DType::U64, scores.len().div_ceil(64))?;
    let cost = Cost::new(OP, 0, 4 * scores.len(), mask.size_bytes());
    device.run(cost, || cpu::keep_n_of_m(Isa::best(), scores, n, m, mask.as_mut_slice()));
    Ok(mask)
}

fn check_scores(op: &'static str, scores: &[f32]) -> Result<()> {
    match cpu::first_unusable(Isa::best(), scores) {
        None => Ok(()),
        Some(i) => domain(op, format!("score {i} is {}, expected a finite number of at least 0", scores[i])),
    }
}

fn domain<T>(op: &'static str, reason: String) -> Result<T> {
    Err(Error::Domain { op, reason })
}
