//! The CPU's selection.

use rayon::prelude::*;

/// Entries of a task; a multiple of 64, so that tasks share no word of a mask.
const CHUNK: usize = 256 * 1024;

/// The first score that has no place in the order of bits.
pub(super) fn first_unusable(scores: &[f32]) -> Option<usize> {
    scores.par_iter().position_first(|score| !(*score >= 0.0 && score.is_finite()))
}

/// The bits of a score; −0 counts as 0.
fn key(score: f32) -> u32 {
    (score + 0.0).to_bits()
}

pub(super) fn keep_largest(scores: &[f32], k: usize, mask: &mut [u64]) {
    let threshold = Threshold::find(scores, k);
    // Ties at the threshold go in order: each chunk knows how many went before it.
    let ties: Vec<usize> = scores
        .par_chunks(CHUNK)
        .map(|scores| scores.iter().filter(|score| key(**score) == threshold.key).count())
        .collect();
    let mut left = threshold.ties;
    let quota: Vec<usize> = ties
        .iter()
        .map(|count| {
            let taken = left.min(*count);
            left -= taken;
            taken
        })
        .collect();
    scores
        .par_chunks(CHUNK)
        .zip(mask.par_chunks_mut(CHUNK / 64))
        .zip(quota)
        .for_each(|((scores, mask), quota)| threshold.mark(scores, quota, mask));
}

pub(super) fn keep_largest_of_rows(scores: &[f32], cols: usize, k: usize, mask: &mut [u64]) {
    let rows: Vec<Vec<u64>> = scores
        .par_chunks(cols.max(1))
        .map(|scores| {
            let mut words = vec![0; cols.div_ceil(64)];
            let threshold = Threshold::of_row(scores, k);
            threshold.mark(scores, threshold.ties, &mut words);
            words
        })
        .collect();
    for (row, words) in rows.iter().enumerate() {
        for i in (0..cols).filter(|i| words[i / 64] >> (i % 64) & 1 == 1) {
            let at = row * cols + i;
            mask[at / 64] |= 1 << (at % 64);
        }
    }
}

/// Where the removed end and the kept begin.
struct Threshold {
    /// Keys below go, keys above stay.
    key: u32,
    /// How many of those at the threshold go.
    ties: usize,
}

impl Threshold {
    /// Radix select: the histogram of the upper 16 bits finds the bucket of the k-th smallest, that of the lower 16 bits
    /// within the bucket finds its key.
    fn find(scores: &[f32], k: usize) -> Threshold {
        let (high, below) = bucket(&histogram(scores, |key| Some(key >> 16)), k);
        let low = histogram(scores, |key| (key >> 16 == high).then_some(key & 0xffff));
        let (low, ties) = bucket(&low, below);
        Threshold { key: high << 16 | low, ties }
    }

    /// The same for a short row, where histograms would cost more than the row.
    fn of_row(scores: &[f32], k: usize) -> Threshold {
        if k == 0 {
            return Threshold { key: 0, ties: 0 };
        }
        let mut keys: Vec<u32> = scores.iter().map(|score| key(*score)).collect();
        let (smaller, at, _) = keys.select_nth_unstable(k - 1);
        Threshold { key: *at, ties: k - smaller.iter().filter(|key| *key < at).count() }
    }

    /// Sets the bits of what stays; the first `quota` ties go.
    fn mark(&self, scores: &[f32], quota: usize, mask: &mut [u64]) {
        let mut left = quota;
        for (scores, word) in scores.chunks(64).zip(mask) {
            let mut bits = 0u64;
            for (i, score) in scores.iter().enumerate() {
                let key = key(*score);
                let goes = key < self.key || (key == self.key && left > 0);
                left -= usize::from(goes && key == self.key);
                bits |= u64::from(!goes) << i;
            }
            *word = bits;
        }
    }
}

/// Counts of the 16-bit digits that `digit` takes from keys.
fn histogram(scores: &[f32], digit: impl Fn(u32) -> Option<u32> + Sync) -> Vec<usize> {
    let count = |scores: &[f32]| {
        let mut counts = vec![0usize; 1 << 16];
        for digit in scores.iter().filter_map(|score| digit(key(*score))) {
            counts[digit as usize] += 1;
        }
        counts
    };
    scores.par_chunks(CHUNK).map(count).reduce(
        || vec![0; 1 << 16],
        |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        },
    )
}

/// The digit that the k-th smallest has, and how many of the k are among those that share it.
fn bucket(counts: &[usize], k: usize) -> (u32, usize) {
    let mut left = k;
    for (digit, count) in counts.iter().enumerate() {
        if left <= *count {
            return (digit as u32, left);
        }
        left -= count;
    }
    unreachable!("k is at most the number of scores")
}

pub(super) fn keep_n_of_m(scores: &[f32], n: usize, m: usize, mask: &mut [u64]) {
    // Groups of m fill whole words every lcm(m, 64) entries; a multiple of m·64 is one for every m.
    let chunk = (CHUNK / 64 / m).max(1) * m * 64;
    scores.par_chunks(chunk).zip(mask.par_chunks_mut(chunk / 64)).for_each(|(scores, mask)| {
        for (group, scores) in scores.chunks_exact(m).enumerate() {
            for (i, score) in scores.iter().enumerate() {
                // Those that go after this one: the larger, and equals at a higher index.
                let stronger = scores
                    .iter()
                    .enumerate()
                    .filter(|(j, other)| *other > score || (*other == score && *j > i))
                    .count();
                let at = group * m + i;
                mask[at / 64] |= u64::from(stronger < n) << (at % 64);
            }
        }
    });
}
