//! The CPU's sums: one pass, bound by memory.

use rayon::prelude::*;

use crate::simd::Isa;
use crate::simd_fn;

/// Elements of a task: 64 KiB of each operand, so that tasks are many and their start costs nothing.
const CHUNK: usize = 16 * 1024;

pub(super) fn add_assign(isa: Isa, sum: &mut [f32], x: &[f32]) {
    sum.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(sum, x)| add_chunk(isa, sum, x));
}

simd_fn! {
    fn add_chunk(sum: &mut [f32], x: &[f32]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}
