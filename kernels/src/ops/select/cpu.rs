//! The CPU's selection.
//!
//! Scratch lives on the stack: a histogram a task, and the ties of at most [`PARTS`] parts. The parts depend on the number
//! of entries alone, so threads change nothing but the time.

use rayon::prelude::*;

use super::threshold::{BINS, Digit, KEY, TIES};
use super::{Entry, LARGEST_GROUP};
use crate::simd::{Isa, LANES};
use crate::simd_fn;

/// The most tasks that one matrix is cut into.
const PARTS: usize = 64;
/// The fewest entries worth a task; a multiple of 64, so that tasks share no word of a mask.
const LEAST_PART: usize = 16 * 1024;
/// Bits of a digit of a row of a few hundred entries, where clearing wide histograms would cost more than the row.
const NARROW_BITS: u32 = 8;

/// Entries of a task.
fn part(len: usize) -> usize {
    len.div_ceil(PARTS).next_multiple_of(64).max(LEAST_PART)
}

/// Remembers the first of the entries, which are counted from `start` on, that has no place in the order of bits: an
/// infinity or no number.
pub(super) fn check<T: Entry>(isa: Isa, entries: &[T], start: usize, unusable: &mut [u64]) {
    let found = entries.par_chunks(LEAST_PART).position_first(|entries| largest_key(isa, entries) > T::LARGEST);
    if let Some(part) = found {
        let first = part * LEAST_PART;
        let at = entries[first..].iter().position(|entry| entry.key() > T::LARGEST).expect("the part has one");
        unusable[0] = unusable[0].min((start + first + at) as u64);
    }
}

simd_fn! {
    fn largest_key<T: Entry>(entries: &[T]) -> u32 {
        entries.iter().fold(0, |largest, entry| largest.max(entry.key()))
    }
}

/// Adds to `bins` how often each digit comes in the keys that begin like `key`.
pub(super) fn count<T: Entry>(entries: &[T], digit: Digit, key: u32, bins: &mut [u64]) {
    let counts = entries.par_chunks(part(entries.len())).map(|entries| histogram(entries, digit, key)).reduce(
        || [0; BINS],
        |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        },
    );
    bins.iter_mut().zip(counts).for_each(|(bin, count)| *bin += count as u64);
}

fn histogram<T: Entry, const BINS: usize>(entries: &[T], digit: Digit, key: u32) -> [usize; BINS] {
    let mut counts = [0; BINS];
    let (low, prefix) = (digit.bins() as u32 - 1, key >> digit.above);
    for entry in entries {
        let key = entry.key();
        // Without a branch, which would be mispredicted as often as keys leave and rejoin the prefix.
        counts[((key >> digit.shift) & low) as usize] += usize::from(key >> digit.above == prefix);
    }
    counts
}

/// Adds a digit to the state's key, and clears the bins for the next one.
pub(super) fn choose(digit: Digit, bins: &mut [u64], state: &mut [u64]) {
    let (found, ties) = digit_of(bins.iter().copied(), state[TIES]);
    state[KEY] |= found << digit.shift;
    state[TIES] = ties;
    bins.fill(0);
}

/// The digit at which `ties` keys are reached, and how many of them are among those that share it.
fn digit_of(counts: impl Iterator<Item = u64>, ties: u64) -> (u64, u64) {
    let (mut digit, mut left) = (0, ties);
    for count in counts {
        if left <= count {
            break;
        }
        left -= count;
        digit += 1;
    }
    (digit, left)
}

/// The mask of one piece. Of equal keys the lower index goes first; `state` holds how many are left to go.
pub(super) fn mask<T: Entry>(isa: Isa, entries: &[T], state: &mut [u64], mask: &mut [u64]) {
    let (key, part) = (state[KEY] as u32, part(entries.len()));
    // Each part needs to know how many go in the parts before it.
    let mut ties = [0; PARTS];
    ties.par_iter_mut()
        .zip(entries.par_chunks(part))
        .for_each(|(ties, entries)| *ties = count_equal(isa, entries, key));
    for ties in &mut ties {
        *ties = (*ties).min(state[TIES] as usize);
        state[TIES] -= *ties as u64;
    }
    mask.fill(0);
    entries
        .par_chunks(part)
        .zip(mask.par_chunks_mut(part / 64))
        .zip(&ties)
        .for_each(|((entries, mask), ties)| mark(isa, entries, key, *ties, 0, mask));
}

pub(super) fn keep_largest_of_rows<T: Entry>(isa: Isa, entries: &[T], cols: usize, k: usize, mask: &mut [u64]) {
    mask.fill(0);
    if cols == 0 {
        return;
    }
    // As many rows as end at the end of a word.
    let rows = 64 >> cols.trailing_zeros().min(6);
    entries.par_chunks(rows * cols).zip(mask.par_chunks_mut(rows * cols / 64)).for_each(|(entries, mask)| {
        for (row, entries) in entries.chunks(cols).enumerate() {
            let (key, ties) = row_threshold(entries, k);
            mark(isa, entries, key, ties, row * cols, mask);
        }
    });
}

/// The key at which `k` entries are reached, and how many of those at it go.
fn row_threshold<T: Entry>(entries: &[T], k: usize) -> (u32, usize) {
    let (mut key, mut ties, mut above) = (0, k as u64, T::KEY_BITS);
    while above > 0 {
        let digit = Digit { above, shift: above.saturating_sub(NARROW_BITS) };
        let counts: [usize; 1 << NARROW_BITS] = histogram(entries, digit, key);
        let found;
        (found, ties) = digit_of(counts.iter().map(|count| *count as u64), ties);
        key |= (found as u32) << digit.shift;
        above = digit.shift;
    }
    (key, ties as usize)
}

simd_fn! {
    fn count_equal<T: Entry>(entries: &[T], threshold: u32) -> usize {
        entries.iter().filter(|entry| entry.key() == threshold).count()
    }
}

simd_fn! {
    pub(super) fn count_kept(mask: &[u64]) -> u64 {
        mask.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

simd_fn! {
    /// Sets the bits, from bit `at` of `mask`, of the entries that stay: those above the threshold, and all at it but the
    /// first `ties`.
    fn mark<T: Entry>(entries: &[T], threshold: u32, ties: usize, at: usize, mask: &mut [u64]) {
        let mut ties = ties;
        for (word, entries) in entries.chunks(64).enumerate() {
            let (above, mut equal) = match <&[T; 64]>::try_from(entries) {
                Ok(entries) => compare(entries, threshold),
                Err(_) => compare(entries, threshold),
            };
            while ties > 0 && equal != 0 {
                equal &= equal - 1;
                ties -= 1;
            }
            set_bits(mask, at + 64 * word, above | equal);
        }
    }
}

/// One bit an entry, at most 64 of them: above the threshold, at the threshold.
#[inline(always)]
fn compare<T: Entry>(entries: &[T], threshold: u32) -> (u64, u64) {
    let (mut above, mut equal) = (0, 0);
    for (i, entry) in entries.iter().enumerate() {
        above |= u64::from(entry.key() > threshold) << i;
        equal |= u64::from(entry.key() == threshold) << i;
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

pub(super) fn keep_n_of_m<T: Entry>(isa: Isa, entries: &[T], n: usize, m: usize, mask: &mut [u64]) {
    mask.fill(0);
    // Groups of m end with a word every lcm(m, 64) entries; a multiple of 64·m is one for every m.
    let part = LEAST_PART.next_multiple_of(64 * m);
    entries
        .par_chunks(part)
        .zip(mask.par_chunks_mut(part / 64))
        .for_each(|(entries, mask)| keep_n_of_m_part(isa, entries, n, m, mask));
}

simd_fn! {
    /// Sixteen groups at a time, one in each lane.
    fn keep_n_of_m_part<T: Entry>(entries: &[T], n: usize, m: usize, mask: &mut [u64]) {
        let mut keys = [[0u32; LANES]; LARGEST_GROUP];
        for (block, entries) in entries.chunks(LANES * m).enumerate() {
            for (lane, group) in entries.chunks_exact(m).enumerate() {
                for (keys, entry) in keys.iter_mut().zip(group) {
                    keys[lane] = entry.key();
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
            for (lane, kept) in kept.iter().enumerate().take(entries.len() / m) {
                set_bits(mask, (block * LANES + lane) * m, u64::from(*kept));
            }
        }
    }
}
