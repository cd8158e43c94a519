//! The CPU's linear layers: products from [`spmm`](crate::spmm), with the bias and the adapter as a second term of the same
//! product.

use rayon::prelude::*;

use super::Lora;
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::spmm::{self, Epilogue, Matrix, Output, Term, spmm};
use crate::weight::WeightRef;

const ADD: Epilogue<'static> = Epilogue { accumulate: true, bias: None };

/// Elements of workspace for a product of `n` rows with W, whose terms have `k` rows in all.
pub(super) fn work_len(n: usize, k: usize, lora: Option<Lora<'_>>) -> usize {
    spmm::workspace_len(n, k + lora.map_or(0, |lora| lora.rank))
}

pub(super) fn forward(
    isa: Isa,
    x: &[f32],
    n: usize,
    weight: WeightRef<'_>,
    bias: Option<&[f32]>,
    lora: Option<(Lora<'_>, &mut [f32])>,
    y: &mut [f32],
    work: &mut [f32],
) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let w = weight.transposed();
    let product = Term { a: Matrix::rows(x, cols), b: &w, k: cols };
    let epilogue = Epilogue { accumulate: false, bias };
    match lora {
        None => spmm(isa, (n, rows), &[product], Output::rows(y, rows), epilogue, work),
        Some((lora, u)) => {
            let a = Matrix::transposed(lora.a.f32(), cols);
            let down = Term { b: &a, ..product };
            spmm(isa, (n, lora.rank), &[down], Output::rows(u, lora.rank), Epilogue::default(), work);
            scale(isa, u, lora.scale);
            let b = Matrix::transposed(lora.b.f32(), lora.rank);
            let up = Term { a: Matrix::rows(u, lora.rank), b: &b, k: lora.rank };
            spmm(isa, (n, rows), &[product, up], Output::rows(y, rows), epilogue, work);
        }
    }
}

pub(super) fn lora_down(isa: Isa, dy: &[f32], n: usize, rows: usize, lora: Lora<'_>, v: &mut [f32], work: &mut [f32]) {
    let b = Matrix::rows(lora.b.f32(), lora.rank);
    let down = Term { a: Matrix::rows(dy, rows), b: &b, k: rows };
    spmm(isa, (n, lora.rank), &[down], Output::rows(v, lora.rank), Epilogue::default(), work);
    scale(isa, v, lora.scale);
}

pub(super) fn backward_input(
    isa: Isa,
    dy: &[f32],
    n: usize,
    weight: WeightRef<'_>,
    lora: Option<(Lora<'_>, &[f32])>,
    dx: &mut [f32],
    work: &mut [f32],
) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let w = weight.straight();
    let product = Term { a: Matrix::rows(dy, rows), b: &w, k: rows };
    match lora {
        None => spmm(isa, (n, cols), &[product], Output::rows(dx, cols), Epilogue::default(), work),
        Some((lora, v)) => {
            let a = Matrix::rows(lora.a.f32(), cols);
            let up = Term { a: Matrix::rows(v, lora.rank), b: &a, k: lora.rank };
            spmm(isa, (n, cols), &[product, up], Output::rows(dx, cols), Epilogue::default(), work);
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct LoraShape {
    pub n: usize,
    pub rows: usize,
    pub cols: usize,
    pub rank: usize,
}

pub(super) fn lora_gradients(
    isa: Isa,
    shape: LoraShape,
    x: &[f32],
    dy: &[f32],
    u: &[f32],
    v: &[f32],
    d_a: &mut [f32],
    d_b: &mut [f32],
    work: &mut [f32],
) {
    let LoraShape { n, rows, cols, rank } = shape;
    let (u, v) = (Matrix::rows(u, rank), Matrix::rows(v, rank));
    // The wide side lies across the lanes: dAᵀ = xᵀ·v, dB = dyᵀ·u.
    let d_a_terms = [Term { a: Matrix::transposed(x, cols), b: &v, k: n }];
    spmm(isa, (cols, rank), &d_a_terms, Output::transposed(d_a, cols), ADD, work);
    let d_b_terms = [Term { a: Matrix::transposed(dy, rows), b: &u, k: n }];
    spmm(isa, (rows, rank), &d_b_terms, Output::rows(d_b, rank), ADD, work);
}

/// dW += dyᵀ·x, `[rows, cols]`, from `n` tokens.
pub(super) fn weight_gradient(
    isa: Isa,
    (n, rows, cols): (usize, usize, usize),
    x: &[f32],
    dy: &[f32],
    d_weight: &mut [f32],
    work: &mut [f32],
) {
    let x = Matrix::rows(x, cols);
    let terms = [Term { a: Matrix::transposed(dy, rows), b: &x, k: n }];
    spmm(isa, (rows, cols), &terms, Output::rows(d_weight, cols), ADD, work);
}

/// Columns that one task sums: a cache line's worth of each row at least, so that tasks share no line.
const COLUMNS: usize = 128;

pub(super) fn bias_gradient(isa: Isa, dy: &[f32], d_bias: &mut [f32]) {
    let width = d_bias.len();
    d_bias.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, out)| {
        add_columns(isa, dy, width, chunk * COLUMNS, out);
    });
}

simd_fn! {
    /// out[j] += Σ rows[i][start + j]
    fn add_columns(rows: &[f32], width: usize, start: usize, out: &mut [f32]) {
        for row in rows.chunks_exact(width) {
            let row = &row[start..start + out.len()];
            for (out, x) in out.chunks_mut(LANES).zip(row.chunks(LANES)) {
                if x.len() == LANES {
                    F32x16::load(out).add(F32x16::load(x)).store(out);
                } else {
                    F32x16::load_partial(out, 0.0).add(F32x16::load_partial(x, 0.0)).store_partial(out);
                }
            }
        }
    }
}

simd_fn! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}
