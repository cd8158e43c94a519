//! The CPU's linear layers. Products with W come from [`spmm`](crate::spmm), with the bias and the adapter as a second term of
//! the same product; gradients of trainable matrices are dense products from [`gemm`](crate::gemm).

use rayon::prelude::*;

use super::Lora;
use crate::gemm::{Dims, Epilogue, Strided, gemm};
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::spmm::{self, Dense, Term, spmm};
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
    let product = Term { a: x, a_stride: cols, b: &w, k: cols };
    let epilogue = Epilogue { accumulate: false, bias };
    match lora {
        None => spmm(isa, (n, rows), &[product], y, rows, epilogue, work),
        Some((lora, u)) => {
            let a = Dense::transposed(lora.a.f32(), cols);
            let down = Term { b: &a, ..product };
            spmm(isa, (n, lora.rank), &[down], u, lora.rank, Epilogue::default(), work);
            scale(isa, u, lora.scale);
            let b = Dense::transposed(lora.b.f32(), lora.rank);
            let up = Term { a: u, a_stride: lora.rank, b: &b, k: lora.rank };
            spmm(isa, (n, rows), &[product, up], y, rows, epilogue, work);
        }
    }
}

pub(super) fn lora_down(isa: Isa, dy: &[f32], n: usize, rows: usize, lora: Lora<'_>, v: &mut [f32], work: &mut [f32]) {
    let b = Dense::rows(lora.b.f32(), lora.rank);
    let down = Term { a: dy, a_stride: rows, b: &b, k: rows };
    spmm(isa, (n, lora.rank), &[down], v, lora.rank, Epilogue::default(), work);
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
    let product = Term { a: dy, a_stride: rows, b: &w, k: rows };
    match lora {
        None => spmm(isa, (n, cols), &[product], dx, cols, Epilogue::default(), work),
        Some((lora, v)) => {
            let a = Dense::rows(lora.a.f32(), cols);
            let up = Term { a: v, a_stride: lora.rank, b: &a, k: lora.rank };
            spmm(isa, (n, cols), &[product, up], dx, cols, Epilogue::default(), work);
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
    let (vt, x) = (Strided::transposed(v, rank), Strided::rows(x, cols));
    gemm(isa, Dims { m: rank, n: cols, k: n }, vt, x, d_a, cols, ADD, work);
    let (dyt, u) = (Strided::transposed(dy, rows), Strided::rows(u, rank));
    gemm(isa, Dims { m: rows, n: rank, k: n }, dyt, u, d_b, rank, ADD, work);
}

pub(super) fn weight_gradient(isa: Isa, dims: Dims, x: &[f32], dy: &[f32], d_weight: &mut [f32], work: &mut [f32]) {
    let (dyt, x) = (Strided::transposed(dy, dims.m), Strided::rows(x, dims.n));
    gemm(isa, dims, dyt, x, d_weight, dims.n, ADD, work);
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
