//! A tile of G by [`spmm`], as an activation whose tokens are input features; what is kept of it; and both projections of that
//! while it is in cache. Some features of x are transposed once for all tiles that they meet. Every sum runs in an order that
//! the shape decides.

use std::ops::Range;

use rayon::prelude::*;

use super::cuda::Shape;
use crate::narrow;
use crate::simd::{Isa, scale_block};
use crate::simd_fn;
use crate::spmm::{self, BLOCK, Epilogue, Matrix, Output, Rows, Term, spmm};
use crate::strips::{STRIP, SharedStrips, Strip, Strips, pieces, strips};
use crate::weight::{Adapted, Form};

/// Output features of a tile, which so stays in the second-level cache.
const ROWS: usize = 256;
/// Input features of a tile: whole strips of G's product, and whole blocks of a weight.
const COLS: usize = 8 * STRIP;
const _: () = assert!(COLS.is_multiple_of(BLOCK));
/// Rows of a tile that a task masks.
const TASK_ROWS: usize = 16;

/// f32 elements of workspace: features of x, a tile of G, the tile's parts of A and B, and what products pack.
pub(super) fn work_len(shape: Shape, rank: usize) -> usize {
    let (rows, cols) = (ROWS.min(shape.rows), COLS.min(shape.cols));
    // The last tile of a row may end in a strip that must be packed where the others have none.
    let packed = |cols| spmm::tokens_workspace_len(Isa::best(), cols, shape.n.max(rows));
    cols * shape.n + rows * cols + rank * (rows + cols) + packed(cols).max(packed(shape.cols % COLS))
}

pub(super) fn gradients(
    isa: Isa,
    shape: Shape,
    (x, dy): (&[f32], &[f32]),
    weight: Adapted<'_>,
    (d_a, d_b): (&mut [f32], &mut [f32]),
    work: &mut [f32],
) {
    let (Shape { n, cols, rows }, rank) = (shape, weight.rank);
    if rows == 0 || cols == 0 || rank == 0 {
        return;
    }
    let (x, dy) = (Strips::new(x, n, cols), Strips::new(dy, n, rows));
    for col in (0..cols).step_by(COLS) {
        let width = COLS.min(cols - col);
        let (features, work) = work.split_at_mut(width * n);
        turn(isa, x.from_feature(col), n, features);
        let features = Strips::new(features, width, n);
        let (a, work) = work.split_at_mut(rank * width);
        scaled_columns(isa, &weight, col..col + width, a);
        let a = Strips::new(a, width, rank);
        for row in (0..rows).step_by(ROWS) {
            let tile = Tile { isa, weight, rows: row..rows.min(row + ROWS), cols: col..col + width };
            let height = tile.rows.len();
            let (g, work) = work.split_at_mut(height * width);
            let (b, work) = work.split_at_mut(height * rank);
            // Gᵀ = xᵀ·dy, whose columns are G's rows.
            let terms = [Term { a: Rows::Tokens(features), b: &dy.from_feature(row), k: n }];
            spmm(isa, (width, height), &terms, Output::Strips(g), Epilogue::default(), work);
            tile.mask(g);
            scale_block(isa, (height, rank), scale(&weight), &weight.b.f32()[row * rank..], rank, b, rank);

            let g = Strips::new(g, width, height);
            let of_rows = &mut d_b[row * rank..][..height * rank];
            narrow::add_products(isa, (g, height), (a, rank), narrow::Output::Rows(of_rows));
            let terms = [Term { a: Rows::Tokens(g), b: &Matrix::rows(b, rank), k: height }];
            let add = Epilogue { accumulate: true, bias: None };
            spmm(isa, (width, rank), &terms, Output::Transposed(&mut d_a[col..], cols), add, work);
        }
    }
}

/// s, which the gradients of both factors are scaled by.
fn scale(weight: &Adapted<'_>) -> f32 {
    match weight.form {
        Form::Add { scale } => scale,
        Form::Scale => 1.0,
    }
}

/// Columns of s·A as an activation whose tokens they are.
fn scaled_columns(isa: Isa, weight: &Adapted<'_>, cols: Range<usize>, out: &mut [f32]) {
    let rank = weight.rank;
    for strip in strips(cols.len()) {
        let from = &weight.a.f32()[cols.start + strip.first..];
        let to = &mut out[strip.first * rank..][..strip.width * rank];
        scale_block(isa, (rank, strip.width), scale(weight), from, weight.weight.cols(), to, strip.width);
    }
}

/// The first features of x as the tokens of `features`, which has those for tokens that x has `n` of.
fn turn(isa: Isa, x: Strips<'_>, n: usize, features: &mut [f32]) {
    let strips: Vec<Strip> = strips(features.len().checked_div(n).unwrap_or(0)).collect();
    features.par_chunks_mut((STRIP * n).max(1)).zip(strips).for_each(|(features, strip)| {
        let lanes = strip.first..strip.first + strip.width;
        features.par_chunks_mut(STRIP * strip.width).enumerate().for_each(|(piece, out)| {
            let tokens = piece * STRIP..n.min((piece + 1) * STRIP);
            x.pack_features(isa, lanes.clone(), tokens, strip.width, out);
        });
    });
}

/// Where a tile of G lies.
struct Tile<'a> {
    isa: Isa,
    weight: Adapted<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Tile<'_> {
    /// Makes of G `[cols, rows]`, in strips, what the projections take: M⊙G or W⊙G.
    fn mask(&self, g: &mut [f32]) {
        let Tile { isa, weight, rows, cols } = self;
        let g = SharedStrips::new(g, cols.len(), rows.len());
        (0..rows.len().div_ceil(TASK_ROWS)).into_par_iter().for_each(|task| {
            let some = task * TASK_ROWS..rows.len().min((task + 1) * TASK_ROWS);
            let of_weight = rows.start + some.start..rows.start + some.end;
            let (mut block, mut masks) = ([0.0; TASK_ROWS * BLOCK], [0; TASK_ROWS]);
            for col in (0..cols.len()).step_by(BLOCK) {
                let part = col..cols.len().min(col + BLOCK);
                let in_weight = cols.start + part.start..cols.start + part.end;
                weight.read_frozen(*isa, of_weight.clone(), in_weight.clone(), &mut block);
                weight.kept(of_weight.clone(), in_weight, &block, &mut masks);
                for ((row, w), mask) in some.clone().zip(block.chunks_exact(BLOCK)).zip(masks) {
                    for piece in pieces(cols.len(), part.clone()) {
                        let at = piece.strip.first + piece.lanes.start - col;
                        // SAFETY: a row of G is one task's alone.
                        let g = unsafe { g.row(&piece, row) };
                        mask_row(*isa, g, &w[at..][..g.len()], mask >> at, weight.form == Form::Scale);
                    }
                }
            }
        });
    }
}

simd_fn! {
    /// g ⊙ mask, or ⊙ w where `scaled`.
    fn mask_row(g: &mut [f32], w: &[f32], mask: u64, scaled: bool) {
        for (j, (g, w)) in g.iter_mut().zip(w).enumerate() {
            let x = if scaled { *g * *w } else { *g };
            *g = if mask >> j & 1 == 1 { x } else { 0.0 };
        }
    }
}
