//! The CPU's linear layers: products from [`spmm`](crate::spmm), with the bias and the adapter as a second term of the same
//! product.

use super::Lora;
use crate::narrow;
use crate::simd::Isa;
use crate::simd_fn;
use crate::spmm::{self, Epilogue, Matrix, Output, Rows, Term, spmm};
use crate::strips::{Strips, add_token_sums};
use crate::weight::WeightRef;

const ADD: Epilogue<'static> = Epilogue { accumulate: true, bias: None };
const SET: Epilogue<'static> = Epilogue { accumulate: false, bias: None };

/// Elements of workspace for a product of `n` rows with W, whose terms have `k` rows in all.
pub(super) fn work_len(n: usize, k: usize, lora: Option<Lora<'_>>) -> usize {
    spmm::tokens_workspace_len(Isa::best(), n, k + lora.map_or(0, |lora| lora.rank))
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
    let product = Term { a: Rows::Tokens(Strips::new(x, n, cols)), b: &w, k: cols };
    let epilogue = Epilogue { accumulate: false, bias };
    match lora {
        None => spmm(isa, (n, rows), &[product], Output::Strips(y), epilogue, work),
        Some((lora, u)) => {
            let a = Matrix::transposed(lora.a.f32(), cols);
            spmm(isa, (n, lora.rank), &[Term { b: &a, ..product }], Output::Strips(u), SET, work);
            scale(isa, u, lora.scale);
            let b = Matrix::transposed(lora.b.f32(), lora.rank);
            let up = Term { a: Rows::Tokens(Strips::new(u, n, lora.rank)), b: &b, k: lora.rank };
            spmm(isa, (n, rows), &[product, up], Output::Strips(y), epilogue, work);
        }
    }
}

pub(super) fn lora_down(isa: Isa, dy: &[f32], n: usize, rows: usize, lora: Lora<'_>, v: &mut [f32], work: &mut [f32]) {
    let b = Matrix::rows(lora.b.f32(), lora.rank);
    let down = Term { a: Rows::Tokens(Strips::new(dy, n, rows)), b: &b, k: rows };
    spmm(isa, (n, lora.rank), &[down], Output::Strips(v), SET, work);
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
    let product = Term { a: Rows::Tokens(Strips::new(dy, n, rows)), b: &w, k: rows };
    match lora {
        None => spmm(isa, (n, cols), &[product], Output::Strips(dx), SET, work),
        Some((lora, v)) => {
            let a = Matrix::rows(lora.a.f32(), cols);
            let up = Term { a: Rows::Tokens(Strips::new(v, n, lora.rank)), b: &a, k: lora.rank };
            spmm(isa, (n, cols), &[product, up], Output::Strips(dx), SET, work);
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
) {
    let LoraShape { n, rows, cols, rank } = shape;
    let (u, v) = (Strips::new(u, n, rank), Strips::new(v, n, rank));
    // dAᵀ = xᵀ·v and dB = dyᵀ·u.
    narrow::add_products(isa, (Strips::new(x, n, cols), cols), (v, rank), narrow::Output::Transposed(d_a));
    narrow::add_products(isa, (Strips::new(dy, n, rows), rows), (u, rank), narrow::Output::Rows(d_b));
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
    // dWᵀ = xᵀ·dy, whose columns are dW's rows.
    let dy = Strips::new(dy, n, rows);
    let terms = [Term { a: Rows::Features(Strips::new(x, n, cols)), b: &dy, k: n }];
    spmm(isa, (cols, rows), &terms, Output::Transposed(d_weight, cols), ADD, work);
}

pub(super) fn bias_gradient(isa: Isa, dy: &[f32], n: usize, d_bias: &mut [f32]) {
    add_token_sums(isa, Strips::new(dy, n, d_bias.len()), d_bias);
}

simd_fn! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}
