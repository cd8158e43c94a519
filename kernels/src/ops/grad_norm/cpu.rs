//! The CPU's sum of squares.

use rayon::prelude::*;

use crate::simd::Isa;
use crate::simd_fn;

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

pub(super) fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(|x| chunk(isa, x)).collect();
    parts.iter().sum()
}

simd_fn! {
    /// Eight f64 sums: a square of an f32 is exact in f64, so only the additions round.
    fn chunk(x: &[f32]) -> f64 {
        let mut sums = [0.0f64; 8];
        let (whole, rest) = x.split_at(x.len() / 8 * 8);
        for x in whole.chunks_exact(8) {
            for (sum, x) in sums.iter_mut().zip(x) {
                let x = f64::from(*x);
                *sum += x * x;
            }
        }
        let rest: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        sums.iter().sum::<f64>() + rest
    }
}
