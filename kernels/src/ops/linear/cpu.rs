//! The CPU's linear layers: products from [`gemm`](crate::gemm), with the bias and the adapter added into the same output.

use rayon::prelude::*;

use super::Lora;
use crate::gemm::{Dims, Epilogue, Strided, gemm};
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::weight::WeightRef;

const ADD: Epilogue<'static> = Epilogue { accumulate: true, bias: None };

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
    let x = Strided::rows(x, cols);
    let dims = Dims { m: n, n: rows, k: cols };
    gemm(isa, dims, x, &*weight.transposed_panels(), y, rows, Epilogue { accumulate: false, bias }, work);
    if let Some((lora, u)) = lora {
        let a = Strided::transposed(lora.a.f32(), cols);
        let down = Dims { m: n, n: lora.rank, k: cols };
        gemm(isa, down, x, &a, u, lora.rank, Epilogue::default(), work);
        scale(isa, u, lora.scale);
        let b = Strided::transposed(lora.b.f32(), lora.rank);
        let up = Dims { m: n, n: rows, k: lora.rank };
        gemm(isa, up, Strided::rows(u, lora.rank), &b, y, rows, ADD, work);
    }
}

pub(super) fn lora_down(isa: Isa, dy: &[f32], n: usize, rows: usize, lora: Lora<'_>, v: &mut [f32], work: &mut [f32]) {
    let b = Strided::rows(lora.b.f32(), lora.rank);
    let dims = Dims { m: n, n: lora.rank, k: rows };
    gemm(isa, dims, Strided::rows(dy, rows), &b, v, lora.rank, Epilogue::default(), work);
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
    let dims = Dims { m: n, n: cols, k: rows };
    gemm(isa, dims, Strided::rows(dy, rows), &*weight.panels(), dx, cols, Epilogue::default(), work);
    if let Some((lora, v)) = lora {
        let a = Strided::rows(lora.a.f32(), cols);
        let dims = Dims { m: n, n: cols, k: lora.rank };
        gemm(isa, dims, Strided::rows(v, lora.rank), &a, dx, cols, ADD, work);
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
    gemm(isa, Dims { m: rank, n: cols, k: n }, vt, &x, d_a, cols, ADD, work);
    let (dyt, u) = (Strided::transposed(dy, rows), Strided::rows(u, rank));
    gemm(isa, Dims { m: rows, n: rank, k: n }, dyt, &u, d_b, rank, ADD, work);
}

pub(super) fn weight_gradient(isa: Isa, dims: Dims, x: &[f32], dy: &[f32], d_weight: &mut [f32], work: &mut [f32]) {
    let (dyt, x) = (Strided::transposed(dy, dims.m), Strided::rows(x, dims.n));
    gemm(isa, dims, dyt, &x, d_weight, dims.n, ADD, work);
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
