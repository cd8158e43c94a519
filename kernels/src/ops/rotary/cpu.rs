//! The CPU's rotary embedding: one pass in place. Tokens lie across the lanes, so the table has a row of positions for each
//! pair.

use rayon::prelude::*;

use super::Direction;
use crate::simd::Isa;
use crate::simd_fn;
use crate::strips::{Piece, SharedStrips, pieces};

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub pairs: usize,
}

/// `cos` and `sin` are `[pairs, positions]`.
pub(super) fn rotate(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32], shape: Shape, direction: Direction) {
    let Shape { tokens, heads, head_dim, pairs } = shape;
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let (n, positions) = (x.len() / (heads * head_dim), cos.len() / pairs.max(1));
    let x = SharedStrips::new(x, n, heads * head_dim);
    let sequences = (0..n).step_by(tokens).flat_map(|first| {
        pieces(n, first..n.min(first + tokens)).map(move |piece| (piece.strip.first + piece.lanes.start - first, piece))
    });
    let tasks: Vec<(usize, Piece)> = sequences.collect();
    (0..tasks.len() * heads).into_par_iter().for_each(|task| {
        let ((position, piece), head) = (&tasks[task / heads], task % heads);
        for pair in 0..pairs {
            let [cos, sin] = [cos, sin].map(|table| &table[pair * positions + position..][..piece.lanes.len()]);
            let feature = head * head_dim + pair;
            // SAFETY: a head of a piece is one task's alone, and these are two of its features.
            let (first, second) = unsafe { (x.row(piece, feature), x.row(piece, feature + pairs)) };
            rotate_pair(isa, first, second, cos, sin, sign);
        }
    });
}

simd_fn! {
    fn rotate_pair(first: &mut [f32], second: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sign * sin;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
