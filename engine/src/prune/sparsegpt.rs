//! SparseGPT: Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv
//! 2301.00774), algorithm 1.
//!
//! With H = (2/N)·Σ x·xᵀ over the inputs x of a layer in N calibration sequences and UᵀU = H⁻¹, U upper triangular, columns are
//! taken from left to right. Removing w in column j costs (w/U_jj)², and the columns to its right make up for it best by
//! −(w/U_jj)·U_j,:. Columns come in blocks of at most 128: inside a block each column's errors go to the next columns at once, and
//! to later blocks when the block is done, as one product. A block's mask is chosen where it begins, over all its rows (n:m: at
//! every m-th column, within a row's group), of the weights as they are then.
//!
//! Rows share nothing but the choice of a block's mask, so threads share the rows.

use std::ops::Range;

use kernels::simd::Isa;
use kernels::simd_fn;
use rayon::prelude::*;

use super::{Error, Pattern, Result, factor};

/// Columns of a block at most, as in the paper's experiments.
const BLOCK: usize = 128;
/// What is added to H's diagonal, as a share of its mean.
const DAMPENING: f64 = 0.01;
/// The most that is tried where H is not positive definite.
const MOST_DAMPENING: f64 = 100.0;
/// Rows that a thread takes through one tile of U.
const ROWS: usize = 16;
/// Columns of a tile: the rows of a block, 128·512·4 bytes, stay in the second-level cache.
const TILE: usize = 512;

/// A layer's inputs as SparseGPT needs them.
#[derive(Debug)]
pub struct Hessian {
    /// U `[in, in]`, upper triangular, with UᵀU = (H + λI)⁻¹.
    factor: Vec<f32>,
    /// True for features that were always zero, whose weights go for nothing.
    dead: Vec<bool>,
    /// λ as a share of the mean of H's diagonal.
    dampening: f64,
}

impl Hessian {
    /// From `gram` = Σ x·xᵀ `[cols, cols]`, of which the lower triangle is read, over `samples` sequences. Where H is not
    /// positive definite, the dampening is raised tenfold until it is.
    ///
    /// # Errors
    /// Sums that are not finite; an H that stays indefinite. Both name `tensor`, the weight that reads the inputs.
    pub fn new(gram: &[f32], cols: usize, samples: usize, tensor: &str) -> Result<Hessian> {
        let unusable =
            gram.chunks(cols.max(1)).enumerate().position(|(i, row)| row[..=i].iter().any(|x| !x.is_finite()));
        if let Some(row) = unusable {
            // Products overflow where both of their features are large; the diagonal is the largest of each.
            let feature = (0..cols).find(|i| !gram[i * cols + i].is_finite()).unwrap_or(row);
            return Err(Error::NonFiniteInputs { tensor: tensor.into(), feature });
        }
        let scale = 2.0 / samples.max(1) as f64;
        let dead: Vec<bool> = (0..cols).map(|i| gram[i * cols + i] == 0.0).collect();
        let diagonal = |i: usize| if dead[i] { 1.0 } else { scale * f64::from(gram[i * cols + i]) };
        let mean = (0..cols).map(diagonal).sum::<f64>() / cols.max(1) as f64;
        let mut dampening = DAMPENING;
        loop {
            // The features in reverse order: see `factor`.
            let mut h = vec![0.0; cols * cols];
            h.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| {
                let from = cols - 1 - i;
                for (j, to) in row[..i].iter_mut().enumerate() {
                    *to = scale * f64::from(gram[(cols - 1 - j) * cols + from]);
                }
                row[i] = diagonal(from) + dampening * mean;
            });
            if factor::cholesky(&mut h, cols).is_ok() {
                factor::invert_lower(&mut h, cols);
                let factor: Vec<f32> = h.par_iter().rev().map(|x| *x as f32).collect();
                return Ok(Hessian { factor, dead, dampening });
            }
            if dampening >= MOST_DAMPENING {
                return Err(Error::Singular { tensor: tensor.into(), dampening });
            }
            dampening *= 10.0;
        }
    }

    /// What was added to H's diagonal, as a share of its mean: 0.01, or more where that did not make H positive definite.
    pub fn dampening(&self) -> f64 {
        self.dampening
    }

    /// True where the dampening had to be raised.
    pub fn was_indefinite(&self) -> bool {
        self.dampening > DAMPENING
    }

    /// Bytes that making and using one for a `[rows, cols]` matrix takes of the host, beside `gram`.
    pub(crate) fn workspace_bytes(rows: usize, cols: usize) -> u64 {
        // H in f64 and U in f32; the matrix, its errors and a block's keys are less than three times the matrix.
        (12 * cols * cols + 12 * rows * cols) as u64
    }

    /// Prunes `values` `[rows, in]`: those that go become zero, the others make up for them; what is zero already stays zero.
    /// Returns the mask as a flat bitmap and what it costs: Σ over removed w of (w/U_jj)², which is tr(Δ·(H + λI)·Δᵀ).
    pub(super) fn sweep(&self, values: &mut [f32], pattern: Pattern) -> (Vec<u64>, f64) {
        let cols = self.dead.len();
        let rows = values.len() / cols.max(1);
        let mut words = vec![0u64; values.len().div_ceil(64)];
        let gone: Vec<bool> = values.iter().map(|w| *w == 0.0).collect();
        for row in values.chunks_mut(cols.max(1)) {
            row.iter_mut().zip(&self.dead).filter(|(_, dead)| **dead).for_each(|(w, _)| *w = 0.0);
        }
        let mut cost = 0.0;
        for block in blocks(cols, pattern) {
            let width = block.len();
            // True where an entry goes; for n:m it is chosen on the way.
            let mut removed = match pattern {
                Pattern::Unstructured { .. } => self.smallest(values, &gone, &block, pattern.removed(rows * width)),
                Pattern::NM { .. } => vec![false; rows * width],
            };
            let tasks = values.par_chunks_mut(ROWS * cols).zip(removed.par_chunks_mut(ROWS * width));
            let costs: Vec<f64> = tasks
                .zip(gone.par_chunks(ROWS * cols))
                .map(|((values, removed), gone)| self.sweep_rows(values, removed, gone, &block, pattern))
                .collect();
            cost += costs.iter().sum::<f64>();
            for (at, _) in removed.iter().enumerate().filter(|(_, removed)| !**removed) {
                let entry = at / width * cols + block.start + at % width;
                words[entry / 64] |= 1 << (entry % 64);
            }
        }
        (words, cost)
    }

    /// Takes some rows through one block, and its errors to the columns behind it.
    fn sweep_rows(
        &self,
        values: &mut [f32],
        removed: &mut [bool],
        gone: &[bool],
        block: &Range<usize>,
        pattern: Pattern,
    ) -> f64 {
        let (isa, cols, width) = (Isa::best(), self.dead.len(), block.len());
        let mut cost = 0.0;
        let mut errors: Vec<Vec<(usize, f32)>> = Vec::with_capacity(ROWS);
        let rows = values.chunks_mut(cols).zip(removed.chunks_mut(width)).zip(gone.chunks(cols));
        for ((row, removed), gone) in rows {
            let mut of_row = Vec::with_capacity(width);
            for (i, column) in block.clone().enumerate() {
                if let Pattern::NM { n, m } = pattern
                    && i.is_multiple_of(m)
                {
                    let scores = (column..column + m).map(|at| self.score(row[at], gone[at], at));
                    remove_smallest(scores, m - n, &mut removed[i..i + m]);
                }
                if !removed[i] && !gone[column] {
                    continue;
                }
                let u = &self.factor[column * cols..][column..block.end];
                let error = row[column] / u[0];
                row[column] = 0.0;
                if error != 0.0 {
                    subtract(isa, &mut row[column + 1..block.end], &u[1..], error);
                    cost += f64::from(error).powi(2);
                    of_row.push((column, error));
                }
            }
            errors.push(of_row);
        }
        for start in (block.end..cols).step_by(TILE) {
            let tile = start..cols.min(start + TILE);
            let u = |column: usize| &self.factor[column * cols..][tile.clone()];
            for (row, errors) in values.chunks_mut(cols).zip(&errors) {
                let row = &mut row[tile.clone()];
                let fours = errors.chunks_exact(4);
                for (column, error) in fours.remainder() {
                    subtract(isa, row, u(*column), *error);
                }
                for four in fours {
                    let from = [u(four[0].0), u(four[1].0), u(four[2].0), u(four[3].0)];
                    subtract_four(isa, row, from, [four[0].1, four[1].1, four[2].1, four[3].1]);
                }
            }
        }
        cost
    }

    /// True for the `count` entries of a block `[rows, width]` that cost least; of equal ones the lower index.
    fn smallest(&self, values: &[f32], gone: &[bool], block: &Range<usize>, count: usize) -> Vec<bool> {
        let (cols, width) = (self.dead.len(), block.len());
        let of_row = |row: usize| block.clone().map(move |column| (row * cols + column, column));
        let rows = values.len() / cols;
        let scores = (0..rows).flat_map(of_row).map(|(at, column)| self.score(values[at], gone[at], column));
        let mut removed = vec![false; rows * width];
        remove_smallest(scores, count, &mut removed);
        removed
    }

    /// |w|/U_jj, the root of what removing w costs. Only what is gone already scores zero.
    fn score(&self, w: f32, gone: bool, column: usize) -> f32 {
        let score = w.abs() / self.factor[column * (self.dead.len() + 1)];
        if gone { 0.0 } else { score.clamp(f32::MIN_POSITIVE, f32::MAX) }
    }
}

/// The blocks of `cols` columns: groups of n:m lie in one.
pub(super) fn blocks(cols: usize, pattern: Pattern) -> impl Iterator<Item = Range<usize>> {
    let width = match pattern {
        Pattern::Unstructured { .. } => BLOCK,
        Pattern::NM { m, .. } => BLOCK / m * m,
    };
    (0..cols).step_by(width).map(move |first| first..cols.min(first + width))
}

/// Marks the `count` smallest scores, of equal ones those that come first. Bits of positive floats have their order.
fn remove_smallest(scores: impl Iterator<Item = f32>, count: usize, removed: &mut [bool]) {
    removed.fill(false);
    if count == 0 {
        return;
    }
    let mut keys: Vec<u64> = scores.enumerate().map(|(at, s)| u64::from(s.to_bits()) << 32 | at as u64).collect();
    keys.select_nth_unstable(count - 1);
    keys[..count].iter().for_each(|key| removed[*key as u32 as usize] = true);
}

simd_fn! {
    /// row −= error·u
    fn subtract(row: &mut [f32], u: &[f32], error: f32) {
        for (w, u) in row.iter_mut().zip(u) {
            *w = fused::<FMA>(-error, *u, *w);
        }
    }
}

simd_fn! {
    /// row −= Σ error·u, in order.
    fn subtract_four(row: &mut [f32], u: [&[f32]; 4], errors: [f32; 4]) {
        let n = row.len();
        let [a, b, c, d] = [&u[0][..n], &u[1][..n], &u[2][..n], &u[3][..n]];
        for (i, w) in row.iter_mut().enumerate() {
            let sum = fused::<FMA>(-errors[0], a[i], *w);
            let sum = fused::<FMA>(-errors[1], b[i], sum);
            let sum = fused::<FMA>(-errors[2], c[i], sum);
            *w = fused::<FMA>(-errors[3], d[i], sum);
        }
    }
}

/// a·b + c, rounded once where the instruction set can.
#[inline(always)]
fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}
