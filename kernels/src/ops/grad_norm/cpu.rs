//! The CPU's sum of squares.

use rayon::prelude::*;

use crate::simd::Isa;
use crate::simd_fn;

/// Elements of a task; a multiple of 64, so that tasks share no word of a mask.
const CHUNK: usize = 16 * 1024;

/// Σ x² over the entries that the mask keeps.
pub(super) fn sum_of_squares(isa: Isa, x: &[f32], mask: Option<&[u64]>) -> f64 {
    let parts: Vec<f64> = match mask {
        None => x.par_chunks(CHUNK).map(|x| chunk(isa, x)).collect(),
        Some(mask) => {
            let pairs = x.par_chunks(CHUNK).zip(mask.par_chunks(CHUNK / 64));
            pairs.map(|(x, mask)| masked_chunk(isa, x, mask)).collect()
        }
    };
    parts.iter().sum()
}

/// Eight f64 sums: a square of an f32 is exact in f64, so only the additions round.
#[inline(always)]
fn add_squares(sums: &mut [f64; 8], x: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(x) {
        let x = f64::from(*x);
        *sum += x * x;
    }
}

simd_fn! {
    fn chunk(x: &[f32]) -> f64 {
        let mut sums = [0.0f64; 8];
        for x in x.chunks(8) {
            add_squares(&mut sums, x);
        }
        sums.iter().sum::<f64>()
    }
}

simd_fn! {
    fn masked_chunk(x: &[f32], mask: &[u64]) -> f64 {
        let mut sums = [0.0f64; 8];
        for (x, word) in x.chunks(64).zip(mask) {
            let mut kept = [0.0f32; 64];
            for (i, (kept, x)) in kept.iter_mut().zip(x).enumerate() {
                *kept = if word >> i & 1 == 1 { *x } else { 0.0 };
            }
            for kept in kept[..x.len()].chunks(8) {
                add_squares(&mut sums, kept);
            }
        }
        sums.iter().sum::<f64>()
    }
}
