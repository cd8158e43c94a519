//! The CPU's head and loss: chunks of rows, each a few matrix products and one pass over its logits.
//!
//! Traffic: h and W are read once a chunk forward and once backward; a chunk's logits are written by the product, turned
//! into their gradient a row at a time while that row is in the second-level cache, and read by each product after. To
//! read them less, dx is multiplied with W and B in one product, as if they were one matrix `[V, D + r]`.

use std::ops::Range;

use rayon::prelude::*;

use super::{Head, IGNORED};
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::spmm::{Beside, Epilogue, Matrix, Output, Term, spmm, workspace_len};

/// Entries of the vocabulary whose gradient is packed at a time: packing the logits' gradient whole would take the
/// memory of the logits once more.
const VOCAB_BLOCK: usize = 4096;

const SET: Epilogue<'static> = Epilogue { accumulate: false, bias: None };
const ADD: Epilogue<'static> = Epilogue { accumulate: true, bias: None };

/// Where gradients go; see [`Wanted`](super::Wanted).
pub(super) struct Gradients<'a> {
    pub scale: f32,
    pub hidden: Option<&'a mut [f32]>,
    pub lora: Option<(&'a mut [f32], &'a mut [f32])>,
    pub weight: Option<&'a mut [f32]>,
}

/// Workspace for one chunk of rows.
pub(super) struct Scratch<'a> {
    /// Rows of a chunk, at least 1.
    pub chunk: usize,
    /// `[chunk, V]`
    pub logits: &'a mut [f32],
    /// `[chunk, r]`
    pub z: &'a mut [f32],
    /// `[chunk, r]`
    pub u: &'a mut [f32],
    /// [`work_len`] elements.
    pub work: &'a mut [f32],
}

/// Elements of workspace for the CPU alone: what the largest of a chunk's products packs its A operand into, and for the
/// gradients what comes out of a product before it goes where it belongs.
pub(super) fn work_len(chunk: usize, head: &Head<'_>, gradients: bool) -> usize {
    let (dim, rank, block) = (head.dim(), head.rank(), head.vocab().min(VOCAB_BLOCK));
    let forward = workspace_len(chunk, dim + rank);
    if !gradients {
        return forward;
    }
    let backward = workspace_len(chunk, head.vocab().max(rank));
    product_len(chunk, head) + forward.max(backward).max(workspace_len(block.max(dim), chunk))
}

/// Elements of dx·(W | B) `[chunk, D + r]`.
fn product_len(chunk: usize, head: &Head<'_>) -> usize {
    chunk * (head.dim() + head.rank())
}

/// Fills `losses`, and the gradients where they are asked for.
pub(super) fn run(
    isa: Isa,
    hidden: &[f32],
    head: Head<'_>,
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: Scratch<'_>,
) {
    let (vocab, dim, rank) = (head.vocab(), head.dim(), head.rank());
    let Scratch { chunk, logits, z, u, work } = scratch;
    let product_len = if gradients.is_some() { product_len(chunk, &head) } else { 0 };
    let (product, work) = work.split_at_mut(product_len);
    for first in (0..targets.len()).step_by(chunk) {
        let rows = first..targets.len().min(first + chunk);
        let n = rows.len();
        let (logits, z, u) = (&mut logits[..n * vocab], &mut z[..n * rank], &mut u[..n * rank]);
        let chunk = Chunk { isa, head, n, hidden: &hidden[rows.start * dim..rows.end * dim] };
        chunk.logits(logits, z, work);
        let scale = gradients.as_ref().map(|gradients| gradients.scale);
        let rows_of = logits.par_chunks_exact_mut(vocab.max(1));
        rows_of.zip(&targets[rows.clone()]).zip(&mut losses[rows.clone()]).for_each(|((logits, target), loss)| {
            *loss = row_loss(isa, logits, *target, scale);
        });
        if let Some(gradients) = &mut gradients {
            let d_hidden = gradients.hidden.as_deref_mut().map(|d| &mut d[rows.start * dim..rows.end * dim]);
            let d_lora = gradients.lora.as_mut().map(|(d_a, d_b)| (&mut **d_a, &mut **d_b));
            chunk.hidden_gradient(logits, u, d_hidden, d_lora.is_some(), product, work);
            if let Some((d_a, d_b)) = d_lora {
                chunk.lora_gradients(logits, z, u, d_a, d_b, work);
            }
            if let Some(d_weight) = gradients.weight.as_deref_mut() {
                chunk.weight_gradient(logits, d_weight, work);
            }
        }
    }
}

/// A few rows of h.
struct Chunk<'a> {
    isa: Isa,
    head: Head<'a>,
    n: usize,
    /// `[n, D]`
    hidden: &'a [f32],
}

impl Chunk<'_> {
    /// logits = h·Wᵀ + z·Bᵀ with z = s·h·Aᵀ.
    fn logits(&self, logits: &mut [f32], z: &mut [f32], work: &mut [f32]) {
        let (n, vocab, dim, rank) = (self.n, self.head.vocab(), self.head.dim(), self.head.rank());
        let w = self.head.weight.transposed();
        let product = Term { a: Matrix::rows(self.hidden, dim), b: &w, k: dim };
        match self.head.lora {
            None => spmm(self.isa, (n, vocab), &[product], Output::rows(logits, vocab), SET, work),
            Some(lora) => {
                let (a, b) = (Matrix::transposed(lora.a.f32(), dim), Matrix::transposed(lora.b.f32(), rank));
                spmm(self.isa, (n, rank), &[Term { b: &a, ..product }], Output::rows(z, rank), SET, work);
                z.iter_mut().for_each(|z| *z *= lora.scale);
                let up = Term { a: Matrix::rows(z, rank), b: &b, k: rank };
                spmm(self.isa, (n, vocab), &[product, up], Output::rows(logits, vocab), SET, work);
            }
        }
    }

    /// u = s·dx·B where something needs it, and dh = dx·W + u·A where it is wanted.
    fn hidden_gradient(
        &self,
        d_logits: &[f32],
        u: &mut [f32],
        d_hidden: Option<&mut [f32]>,
        d_lora: bool,
        product: &mut [f32],
        work: &mut [f32],
    ) {
        let (n, vocab) = (self.n, self.head.vocab());
        let dim = if d_hidden.is_some() { self.head.dim() } else { 0 };
        let lora = self.head.lora.filter(|_| d_lora || d_hidden.is_some());
        let rank = lora.map_or(0, |lora| lora.rank);
        let width = dim + rank;
        if width == 0 {
            return;
        }
        let product = &mut product[..n * width];
        let (weight, b) = (self.head.weight.straight(), lora.map_or(&[][..], |lora| lora.b.f32()));
        let both = Beside { left: &weight, left_columns: dim, right: &Matrix::rows(b, rank) };
        let term = Term { a: Matrix::rows(d_logits, vocab), b: &both, k: vocab };
        spmm(self.isa, (n, width), &[term], Output::rows(product, width), SET, work);
        if let Some(lora) = lora {
            for (u, product) in u.chunks_exact_mut(rank.max(1)).zip(product.chunks_exact(width)) {
                u.iter_mut().zip(&product[dim..]).for_each(|(u, product)| *u = product * lora.scale);
            }
        }
        if let Some(d_hidden) = d_hidden {
            for (d_hidden, product) in d_hidden.chunks_exact_mut(dim.max(1)).zip(product.chunks_exact(width)) {
                d_hidden.copy_from_slice(&product[..dim]);
            }
            if let Some(lora) = lora {
                let a = Matrix::rows(lora.a.f32(), dim);
                let up = Term { a: Matrix::rows(u, rank), b: &a, k: rank };
                spmm(self.isa, (n, dim), &[up], Output::rows(d_hidden, dim), ADD, work);
            }
        }
    }

    /// dA += uᵀ·h and dB += dxᵀ·z.
    fn lora_gradients(
        &self,
        d_logits: &[f32],
        z: &[f32],
        u: &[f32],
        d_a: &mut [f32],
        d_b: &mut [f32],
        work: &mut [f32],
    ) {
        let (n, vocab, dim, rank) = (self.n, self.head.vocab(), self.head.dim(), self.head.rank());
        let (u, z) = (Matrix::rows(u, rank), Matrix::rows(z, rank));
        // The wide side lies across the lanes: dAᵀ = hᵀ·u, dB = dxᵀ·z.
        let d_a_terms = [Term { a: Matrix::transposed(self.hidden, dim), b: &u, k: n }];
        spmm(self.isa, (dim, rank), &d_a_terms, Output::transposed(d_a, dim), ADD, work);
        for block in blocks(vocab) {
            let terms = [Term { a: Matrix::transposed(&d_logits[block.start..], vocab), b: &z, k: n }];
            let d_b = &mut d_b[block.start * rank..block.end * rank];
            spmm(self.isa, (block.len(), rank), &terms, Output::rows(d_b, rank), ADD, work);
        }
    }

    /// dW += dxᵀ·h.
    fn weight_gradient(&self, d_logits: &[f32], d_weight: &mut [f32], work: &mut [f32]) {
        let (vocab, dim) = (self.head.vocab(), self.head.dim());
        let hidden = Matrix::rows(self.hidden, dim);
        for block in blocks(vocab) {
            let terms = [Term { a: Matrix::transposed(&d_logits[block.start..], vocab), b: &hidden, k: self.n }];
            let d_weight = &mut d_weight[block.start * dim..block.end * dim];
            spmm(self.isa, (block.len(), dim), &terms, Output::rows(d_weight, dim), ADD, work);
        }
    }
}

fn blocks(vocab: usize) -> impl Iterator<Item = Range<usize>> {
    (0..vocab).step_by(VOCAB_BLOCK).map(move |start| start..vocab.min(start + VOCAB_BLOCK))
}

/// The loss of one row; its logits become their gradient times `scale` where there is one.
fn row_loss(isa: Isa, logits: &mut [f32], target: u32, scale: Option<f32>) -> f32 {
    if target == IGNORED {
        if scale.is_some() {
            logits.fill(0.0);
        }
        return 0.0;
    }
    let target = target as usize;
    let of_target = logits[target];
    let largest = largest(isa, logits);
    let total = exponentials(isa, logits, largest);
    if let Some(scale) = scale {
        multiply(isa, logits, (f64::from(scale) / total) as f32);
        logits[target] -= scale;
    }
    (f64::from(largest) - f64::from(of_target) + total.ln()) as f32
}

simd_fn! {
    /// The largest element.
    fn largest(x: &[f32]) -> f32 {
        let mut lanes = F32x16::splat(f32::NEG_INFINITY);
        let mut rows = x.chunks_exact(LANES);
        for x in &mut rows {
            lanes = F32x16::load(x).max(lanes);
        }
        F32x16::load_partial(rows.remainder(), f32::NEG_INFINITY).max(lanes).largest()
    }
}

simd_fn! {
    /// x ← exp(x − largest); returns the sum. Blocks are summed in f32 and added up in f64, so that the sum of a large
    /// vocabulary is as good as that of a small one.
    fn exponentials(x: &mut [f32], largest: f32) -> f64 {
        let largest = F32x16::splat(largest);
        let mut total = 0.0;
        for block in x.chunks_mut(256 * LANES) {
            let mut sum = F32x16::ZERO;
            let mut rows = block.chunks_exact_mut(LANES);
            for x in &mut rows {
                let p = F32x16::load(x).sub(largest).exp::<FMA>();
                p.store(x);
                sum = sum.add(p);
            }
            let rest = rows.into_remainder();
            let p = F32x16::load_partial(rest, f32::NEG_INFINITY).sub(largest).exp::<FMA>();
            p.store_partial(rest);
            total += f64::from(sum.add(p).sum());
        }
        total
    }
}

simd_fn! {
    /// x ← factor·x
    fn multiply(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}
