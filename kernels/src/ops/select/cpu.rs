//! The CPU's selection.
//!
//! Scratch lives on the stack: a histogram a task, and the ties of at most [`PARTS`] parts. The parts depend on the number
//! of scores alone, so threads change nothing but the time.

use rayon::prelude::*;

use crate::simd::{Isa, LANES};
use crate::simd_fn;

/// The most tasks that one group of scores is cut into.
const PARTS: usize = 64;
/// The fewest scores worth a task; a multiple of 64, so that tasks share no word of a mask.
const LEAST_PART: usize = 16 * 1024;
/// Bits of a key: a usable score has no sign.
const KEY_BITS: u32 = 31;
/// Bins for a matrix: three passes, and a histogram that stays in the first-level cache.
const WIDE: usize = 1 << 11;
/// Bins for a row of a few hundred scores, where clearing wide histograms would cost more than the row: four passes.
const NARROW: usize = 1 << 8;
/// The largest m of n:m.
pub(super) const LARGEST_GROUP: usize = 32;

/// The bits of a score, whose order is that of the values; −0 counts as 0.
#[inline(always)]
fn key(score: f32) -> u32 {
    (score + 0.0).to_bits()
}

/// The first score that has no place in the order of bits: negative, infinite or not a number.
pub(super) fn first_unusable(isa: Isa, scores: &[f32]) -> Option<usize> {
    let part = scores.par_chunks(LEAST_PART).position_first(|scores| largest_key(isa, scores) > key(f32::MAX))?;
    let start = part * LEAST_PART;
    scores[start..].iter().position(|score| key(*score) > key(f32::MAX)).map(|i| start + i)
}

simd_fn! {
    /// A sign bit, an infinity and a NaN all make a key larger than any finite score's.
    fn largest_key(scores: &[f32]) -> u32 {
        scores.iter().fold(0, |largest, score| largest.max(key(*score)))
    }
}

pub(super) fn keep_largest(isa: Isa, scores: &[f32], k: usize, mask: &mut [u64]) {
    let part = scores.len().div_ceil(PARTS).next_multiple_of(64).max(LEAST_PART);
    let threshold = Threshold::find(k, |digit| {
        scores.par_chunks(part).map(|scores| digit.histogram(scores)).reduce(
            || [0; WIDE],
            |mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                a
            },
        )
    });
    // Of equal scores the lower index goes first: each part needs to know how many go in the parts before it.
    let mut ties = [0; PARTS];
    ties.par_iter_mut()
        .zip(scores.par_chunks(part))
        .for_each(|(ties, scores)| *ties = count_equal(isa, scores, threshold.key));
    let mut left = threshold.ties;
    for ties in &mut ties {
        *ties = left.min(*ties);
        left -= *ties;
    }
    scores
        .par_chunks(part)
        .zip(mask.par_chunks_mut(part / 64))
        .zip(&ties)
        .for_each(|((scores, mask), ties)| mark(isa, scores, threshold.key, *ties, 0, mask));
}

pub(super) fn keep_largest_of_rows(isa: Isa, scores: &[f32], cols: usize, k: usize, mask: &mut [u64]) {
    if cols == 0 {
        return;
    }
    // As many rows as end at the end of a word.
    let rows = 64 >> cols.trailing_zeros().min(6);
    scores.par_chunks(rows * cols).zip(mask.par_chunks_mut(rows * cols / 64)).for_each(|(scores, mask)| {
        for (row, scores) in scores.chunks(cols).enumerate() {
            let threshold = Threshold::find(k, |digit| digit.histogram::<NARROW>(scores));
            mark(isa, scores, threshold.key, threshold.ties, row * cols, mask);
        }
    });
}

/// Where the removed end and the kept begin.
struct Threshold {
    /// Keys below go, keys above stay.
    key: u32,
    /// How many of those at the threshold go.
    ties: usize,
}

impl Threshold {
    /// Radix select: finds the k-th smallest key digit by digit, from the highest; `count` makes the histogram of a digit.
    fn find<const BINS: usize>(k: usize, count: impl Fn(Digit) -> [usize; BINS]) -> Threshold {
        let mut found = Threshold { key: 0, ties: k };
        let mut shift = if k == 0 { 0 } else { KEY_BITS };
        while shift > 0 {
            let above = shift;
            shift = above.saturating_sub(BINS.ilog2());
            let counts = count(Digit { prefix: found.key >> above, above, shift });
            // The digit at which k keys are reached, and how many of the k are among those that share it.
            let mut digit = 0;
            while found.ties > counts[digit] {
                found.ties -= counts[digit];
                digit += 1;
            }
            found.key |= (digit as u32) << shift;
        }
        found
    }
}

/// A digit of the keys that begin with `prefix`.
struct Digit {
    /// The bits of a key from `above` on.
    prefix: u32,
    /// The digit's end.
    above: u32,
    /// The digit's lowest bit.
    shift: u32,
}

impl Digit {
    fn histogram<const BINS: usize>(&self, scores: &[f32]) -> [usize; BINS] {
        let mut counts = [0; BINS];
        let low = (1 << (self.above - self.shift)) - 1;
        for score in scores {
            let key = key(*score);
            // Without a branch, which would be mispredicted as often as keys leave and rejoin the prefix.
            counts[((key >> self.shift) & low) as usize] += usize::from(key >> self.above == self.prefix);
        }
        counts
    }
}

simd_fn! {
    fn count_equal(scores: &[f32], threshold: u32) -> usize {
        scores.iter().filter(|score| key(**score) == threshold).count()
    }
}

simd_fn! {
    /// Sets the bits, from bit `at` of `mask`, of the scores that stay: those above the threshold, and all at it but the
    /// first `ties`.
    fn mark(scores: &[f32], threshold: u32, ties: usize, at: usize, mask: &mut [u64]) {
        let mut ties = ties;
        for (word, scores) in scores.chunks(64).enumerate() {
            let (above, mut equal) = match <&[f32; 64]>::try_from(scores) {
                Ok(scores) => compare(scores, threshold),
                Err(_) => compare(scores, threshold),
            };
            while ties > 0 && equal != 0 {
                equal &= equal - 1;
                ties -= 1;
            }
            set_bits(mask, at + 64 * word, above | equal);
        }
    }
}

/// One bit a score, at most 64 of them: above the threshold, at the threshold.
#[inline(always)]
fn compare(scores: &[f32], threshold: u32) -> (u64, u64) {
    let (mut above, mut equal) = (0, 0);
    for (i, score) in scores.iter().enumerate() {
        above |= u64::from(key(*score) > threshold) << i;
        equal |= u64::from(key(*score) == threshold) << i;
    }
    (above, equal)
}

/// Sets the bits of a clear stretch of `mask` from bit `at` on.
#[inline(always)]
fn set_bits(mask: &mut [u64], at: usize, bits: u64) {
    let (word, shift) = (at / 64, at % 64);
    mask[word] |= bits << shift;
    let carry = if shift == 0 { 0 } else { bits >> (64 - shift) };
    if carry != 0 {
        mask[word + 1] |= carry;
    }
}

pub(super) fn keep_n_of_m(isa: Isa, scores: &[f32], n: usize, m: usize, mask: &mut [u64]) {
    // Groups of m end with a word every lcm(m, 64) entries; a multiple of 64·m is one for every m.
    let part = LEAST_PART.next_multiple_of(64 * m);
    scores
        .par_chunks(part)
        .zip(mask.par_chunks_mut(part / 64))
        .for_each(|(scores, mask)| keep_n_of_m_part(isa, scores, n, m, mask));
}

simd_fn! {
    /// Sixteen groups at a time, one in each lane.
    fn keep_n_of_m_part(scores: &[f32], n: usize, m: usize, mask: &mut [u64]) {
        let mut keys = [[0u32; LANES]; LARGEST_GROUP];
        for (block, scores) in scores.chunks(LANES * m).enumerate() {
            for (lane, group) in scores.chunks_exact(m).enumerate() {
                for (keys, score) in keys.iter_mut().zip(group) {
                    keys[lane] = key(*score);
                }
            }
            let mut kept = [0u32; LANES];
            for i in 0..m {
                // How many outlast entry i: the larger, and equals at a higher index.
                let mut stronger = [0u32; LANES];
                for j in 0..i {
                    for lane in 0..LANES {
                        stronger[lane] += u32::from(keys[j][lane] > keys[i][lane]);
                    }
                }
                for j in i + 1..m {
                    for lane in 0..LANES {
                        stronger[lane] += u32::from(keys[j][lane] >= keys[i][lane]);
                    }
                }
                for lane in 0..LANES {
                    kept[lane] |= u32::from(stronger[lane] < n as u32) << i;
                }
            }
            for (lane, kept) in kept.iter().enumerate().take(scores.len() / m) {
                set_bits(mask, (block * LANES + lane) * m, u64::from(*kept));
            }
        }
    }
}
