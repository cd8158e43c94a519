//! A tile of G by [`spmm`], then both projections of it while it is in cache. Every sum runs in an order that the shape decides.

use std::ops::Range;

use rayon::prelude::*;

use super::cuda::Shape;
use crate::shared::SharedRows;
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::spmm::{self, BLOCK, Epilogue, Output, Rows, Term, spmm};
use crate::strips::{STRIP, Strips};
use crate::weight::{Adapted, Form};

/// Output features of a tile: each feature of x that is packed meets as many.
const ROWS: usize = 256;
/// Input features of a tile: whole strips of G's product, and whole blocks of a weight.
const COLS: usize = 8 * STRIP;
const _: () = assert!(COLS.is_multiple_of(BLOCK));
/// Rows of a tile that a task masks and projects onto B.
const TASK_ROWS: usize = 16;
/// Columns of a tile that a task projects onto A.
const TASK_COLS: usize = 4 * LANES;

/// The largest tile of a matrix, and the elements from row to row of it: a vector more than its columns, for rows apart by a
/// power of two would push each other out of the cache.
fn tile(shape: Shape) -> (usize, usize) {
    (ROWS.min(shape.rows), COLS.min(shape.cols) + LANES)
}

/// f32 elements of workspace: a tile of G, and what its product packs.
pub(super) fn work_len(shape: Shape) -> usize {
    let (rows, stride) = tile(shape);
    rows * stride + spmm::features_workspace_len(Isa::best(), COLS.min(shape.cols), shape.n)
}

pub(super) fn gradients(
    isa: Isa,
    shape: Shape,
    (x, dy): (&[f32], &[f32]),
    weight: Adapted<'_>,
    (d_a, d_b): (&mut [f32], &mut [f32]),
    work: &mut [f32],
) {
    let Shape { n, cols, rows } = shape;
    if rows == 0 || cols == 0 || weight.rank == 0 {
        return;
    }
    let (height, stride) = tile(shape);
    let (g, work) = work.split_at_mut(height * stride);
    let (x, dy) = (Strips::new(x, n, cols), Strips::new(dy, n, rows));
    for row in (0..rows).step_by(ROWS) {
        for col in (0..cols).step_by(COLS) {
            let (rows, cols) = (row..rows.min(row + ROWS), col..cols.min(col + COLS));
            // Gᵀ = xᵀ·dy, whose columns are G's rows.
            let terms = [Term { a: Rows::Features(x.from_feature(col)), b: &dy.from_feature(row), k: n }];
            let g = &mut g[..rows.len() * stride];
            spmm(isa, (cols.len(), rows.len()), &terms, Output::Transposed(g, stride), Epilogue::default(), work);
            let tile = Tile { isa, weight, rows, cols, stride };
            tile.project_on_b(g, d_b);
            tile.project_on_a(g, d_a);
        }
    }
}

/// Where a tile of G lies.
struct Tile<'a> {
    isa: Isa,
    weight: Adapted<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
    stride: usize,
}

impl Tile<'_> {
    fn scale(&self) -> f32 {
        match self.weight.form {
            Form::Add { scale } => scale,
            Form::Scale => 1.0,
        }
    }

    /// Makes of G what the projections take, M⊙G or W⊙G, and dB += s·(…)·Aᵀ.
    fn project_on_b(&self, g: &mut [f32], d_b: &mut [f32]) {
        let Tile { isa, weight, rows, cols, stride } = self;
        let rank = weight.rank;
        let a = &weight.a.f32()[cols.start..];
        let d_b = &mut d_b[rows.start * rank..rows.end * rank];
        let tasks = g.par_chunks_mut(TASK_ROWS * stride).zip(d_b.par_chunks_mut(TASK_ROWS * rank)).enumerate();
        tasks.for_each(|(task, (g, d_b))| {
            let first = rows.start + task * TASK_ROWS;
            self.mask(first..first + d_b.len() / rank, g);
            let lines = Lines { data: g, stride: *stride, width: cols.len() };
            let factor = Lines { data: a, stride: weight.weight.cols(), width: cols.len() };
            add_dots(*isa, lines, factor, rank, self.scale(), d_b);
        });
    }

    /// M⊙G, or W⊙G, of some rows.
    fn mask(&self, rows: Range<usize>, g: &mut [f32]) {
        let Tile { isa, weight, cols, stride, .. } = self;
        let (mut block, mut masks) = ([0.0; TASK_ROWS * BLOCK], [0; TASK_ROWS]);
        for col in cols.clone().step_by(BLOCK) {
            let part = col..cols.end.min(col + BLOCK);
            weight.read_frozen(*isa, rows.clone(), part.clone(), &mut block);
            weight.kept(rows.clone(), part.clone(), &block, &mut masks);
            let lines = g.chunks_exact_mut(*stride).zip(block.chunks_exact(BLOCK)).zip(masks);
            for ((g, w), mask) in lines.take(rows.len()) {
                mask_row(*isa, &mut g[col - cols.start..][..part.len()], w, mask, weight.form == Form::Scale);
            }
        }
    }

    /// dA += s·Bᵀ·(…), after [`project_on_b`](Self::project_on_b).
    fn project_on_a(&self, g: &[f32], d_a: &mut [f32]) {
        let Tile { isa, weight, rows, cols, stride } = self;
        let rank = weight.rank;
        let b = &weight.b.f32()[rows.start * rank..rows.end * rank];
        let d_a = SharedRows::new(d_a, weight.weight.cols());
        (0..cols.len().div_ceil(TASK_COLS)).into_par_iter().for_each(|task| {
            let first = task * TASK_COLS;
            let width = TASK_COLS.min(cols.len() - first);
            let lines = Lines { data: &g[first..], stride: *stride, width };
            // SAFETY: tasks own different columns of dA.
            let out = |k: usize| unsafe { d_a.row(k, cols.start + first, width) };
            for k in (0..rank).step_by(RANKS) {
                let mut sums = [[0.0; TASK_COLS]; RANKS];
                add_products(*isa, lines, &b[k..], rank, &mut sums);
                for (k, sums) in (k..rank).zip(&sums) {
                    out(k).iter_mut().zip(sums).for_each(|(out, sum)| *out += self.scale() * sum);
                }
            }
        });
    }
}

/// Rows of `width` elements, `stride` apart.
#[derive(Clone, Copy)]
struct Lines<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> Lines<'a> {
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.width]
    }
}

/// Ranks that are summed together, in registers.
const RANKS: usize = 8;

simd_fn! {
    /// g ⊙ mask, or ⊙ w where `scaled`.
    fn mask_row(g: &mut [f32], w: &[f32], mask: u64, scaled: bool) {
        for (j, (g, w)) in g.iter_mut().zip(w).enumerate() {
            let x = if scaled { *g * *w } else { *g };
            *g = if mask >> j & 1 == 1 { x } else { 0.0 };
        }
    }
}

simd_fn! {
    /// out[i·rank + k] += scale·Σ_j g[i, j]·a[k, j]
    fn add_dots(g: Lines<'_>, a: Lines<'_>, rank: usize, scale: f32, out: &mut [f32]) {
        for (row, out) in out.chunks_exact_mut(rank).enumerate() {
            let g = g.row(row);
            for k in (0..rank).step_by(RANKS) {
                // Ranks past the last are summed with it, and dropped.
                let a: [&[f32]; RANKS] = std::array::from_fn(|i| a.row((k + i).min(rank - 1)));
                let mut sums = [F32x16::ZERO; RANKS];
                let whole = g.len() / LANES * LANES;
                for at in (0..whole).step_by(LANES) {
                    let g = F32x16::load(&g[at..]);
                    for i in 0..RANKS {
                        sums[i] = F32x16::load(&a[i][at..]).madd::<FMA>(g, sums[i]);
                    }
                }
                let rest = F32x16::load_partial(&g[whole..], 0.0);
                for (i, out) in out[k..].iter_mut().take(RANKS).enumerate() {
                    let last = F32x16::load_partial(&a[i][whole..], 0.0).madd::<FMA>(rest, sums[i]);
                    *out += scale * last.sum();
                }
            }
        }
    }
}

simd_fn! {
    /// sums[k][j] = Σ_i b[i·rank + k]·g[i, j] over the rows that `b` has.
    fn add_products(g: Lines<'_>, b: &[f32], rank: usize, sums: &mut [[f32; TASK_COLS]; RANKS]) {
        for at in (0..g.width).step_by(2 * LANES) {
            let mut acc = [[F32x16::ZERO; 2]; RANKS];
            for (row, b) in b.chunks(rank).enumerate() {
                let g = g.row(row);
                let x = [vector(g, at), vector(g, at + LANES)];
                let b: [f32; RANKS] = std::array::from_fn(|k| b.get(k).copied().unwrap_or(0.0));
                for k in 0..RANKS {
                    for half in 0..2 {
                        acc[k][half] = x[half].madd::<FMA>(F32x16::splat(b[k]), acc[k][half]);
                    }
                }
            }
            for k in 0..RANKS {
                for half in 0..2 {
                    acc[k][half].store(&mut sums[k][at + half * LANES..]);
                }
            }
        }
    }
}

/// Sixteen elements from `at`; zeros past the end.
#[inline(always)]
fn vector(x: &[f32], at: usize) -> F32x16 {
    match x.get(at..at + LANES) {
        Some(x) => F32x16::load(x),
        None => F32x16::load_partial(x.get(at..).unwrap_or(&[]), 0.0),
    }
}
