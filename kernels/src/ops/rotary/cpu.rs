//! The CPU's rotary embedding: one pass in place.

use rayon::prelude::*;

use super::Direction;
use crate::simd::Isa;
use crate::simd_fn;

/// Rows of a task.
const ROWS: usize = 16;

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub tokens: usize,
    pub head_dim: usize,
    pub width: usize,
    pub pairs: usize,
}

pub(super) fn rotate(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32], shape: Shape, direction: Direction) {
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    x.par_chunks_mut(ROWS * shape.width).enumerate().for_each(|(chunk, rows)| {
        for (i, row) in rows.chunks_exact_mut(shape.width).enumerate() {
            let at = (chunk * ROWS + i) % shape.tokens * shape.pairs;
            let (cos, sin) = (&cos[at..at + shape.pairs], &sin[at..at + shape.pairs]);
            for head in row.chunks_exact_mut(shape.head_dim) {
                rotate_head(isa, head, cos, sin, sign);
            }
        }
    });
}

simd_fn! {
    fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sign * sin;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
