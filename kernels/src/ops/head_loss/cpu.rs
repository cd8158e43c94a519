//! The CPU's head and loss: chunks of whole strips of tokens, each a few matrix products and two passes over its logits.
//!
//! Traffic: h and W are read once a chunk forward and once backward; a chunk's logits are written by the product, read for
//! their largest and their sum of exponentials, a block of the vocabulary at a time that stays in the second-level cache,
//! turned into their gradient in place, and read by each product after. To read them less, dx is multiplied with W and B in
//! one product, as if they were one matrix `[V, D + r]`.

use rayon::prelude::*;

use super::{Head, IGNORED};
use crate::narrow;
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::spmm::{Beside, Epilogue, Matrix, Output, Rows, Term, features_workspace_len, spmm, tokens_workspace_len};
use crate::strips::{STRIP, Strips};

/// Entries of the vocabulary that one task takes through a strip: 384 KiB of logits.
const ENTRIES: usize = 1024;

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
    /// Rows of a chunk, at least 1; whole strips unless there is but one chunk.
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

/// Elements of workspace for the CPU alone: the statistics of each block of logits, what the largest of a chunk's products
/// packs its A operand into, and for the gradients what comes out of a product before it goes where it belongs. The last
/// chunk of `n` rows has fewer than the others, but may end in a strip that must be packed where they have none.
pub(super) fn work_len(isa: Isa, n: usize, chunk: usize, head: &Head<'_>, gradients: bool) -> usize {
    let (vocab, dim, rank) = (head.vocab(), head.dim(), head.rank());
    let packed = |rows: usize| {
        if gradients {
            let of_features = features_workspace_len(isa, dim, rows);
            of_features.max(tokens_workspace_len(isa, rows, vocab.max(dim + rank)))
        } else {
            tokens_workspace_len(isa, rows, dim + rank)
        }
    };
    let product_len = if gradients { product_len(chunk, head) } else { 0 };
    statistics_len(chunk, head) + product_len + packed(chunk).max(packed(n % chunk))
}

/// The largest logit and the sum of exponentials of each block and row.
fn statistics_len(chunk: usize, head: &Head<'_>) -> usize {
    2 * chunk * head.vocab().div_ceil(ENTRIES)
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
    assert!(chunk.is_multiple_of(STRIP) || chunk >= targets.len(), "a chunk begins where a strip does");
    let (statistics, work) = work.split_at_mut(statistics_len(chunk, &head));
    let product_len = if gradients.is_some() { product_len(chunk, &head) } else { 0 };
    let (product, work) = work.split_at_mut(product_len);
    for first in (0..targets.len()).step_by(chunk) {
        let rows = first..targets.len().min(first + chunk);
        let n = rows.len();
        let (logits, z, u) = (&mut logits[..n * vocab], &mut z[..n * rank], &mut u[..n * rank]);
        let chunk = Chunk { isa, head, n, hidden: Strips::new(&hidden[rows.start * dim..rows.end * dim], n, dim) };
        chunk.logits(logits, z, work);
        let scale = gradients.as_ref().map(|gradients| gradients.scale);
        chunk.losses(logits, &targets[rows.clone()], &mut losses[rows.clone()], scale, statistics);
        if let Some(gradients) = &mut gradients {
            let d_hidden = gradients.hidden.as_deref_mut().map(|d| &mut d[rows.start * dim..rows.end * dim]);
            let d_lora = gradients.lora.as_mut().map(|(d_a, d_b)| (&mut **d_a, &mut **d_b));
            chunk.hidden_gradient(logits, u, d_hidden, d_lora.is_some(), product, work);
            if let Some((d_a, d_b)) = d_lora {
                chunk.lora_gradients(logits, z, u, d_a, d_b);
            }
            if let Some(d_weight) = gradients.weight.as_deref_mut() {
                chunk.weight_gradient(logits, d_weight, work);
            }
        }
    }
}

/// A few strips of h.
struct Chunk<'a> {
    isa: Isa,
    head: Head<'a>,
    n: usize,
    /// `[n, D]`
    hidden: Strips<'a>,
}

impl Chunk<'_> {
    /// logits = h·Wᵀ + z·Bᵀ with z = s·h·Aᵀ.
    fn logits(&self, logits: &mut [f32], z: &mut [f32], work: &mut [f32]) {
        let (n, vocab, dim, rank) = (self.n, self.head.vocab(), self.head.dim(), self.head.rank());
        let w = self.head.weight.transposed();
        let product = Term { a: Rows::Tokens(self.hidden), b: &w, k: dim };
        match self.head.lora {
            None => spmm(self.isa, (n, vocab), &[product], Output::Strips(logits), SET, work),
            Some(lora) => {
                let (a, b) = (Matrix::transposed(lora.a.f32(), dim), Matrix::transposed(lora.b.f32(), rank));
                spmm(self.isa, (n, rank), &[Term { b: &a, ..product }], Output::Strips(z), SET, work);
                z.iter_mut().for_each(|z| *z *= lora.scale);
                let up = Term { a: Rows::Tokens(Strips::new(z, n, rank)), b: &b, k: rank };
                spmm(self.isa, (n, vocab), &[product, up], Output::Strips(logits), SET, work);
            }
        }
    }

    /// The loss of each row; its logits become their gradient times `scale` where there is one.
    fn losses(
        &self,
        logits: &mut [f32],
        targets: &[u32],
        losses: &mut [f32],
        scale: Option<f32>,
        statistics: &mut [f32],
    ) {
        let (isa, vocab) = (self.isa, self.head.vocab());
        let blocks = vocab.div_ceil(ENTRIES);
        let strips = logits.par_chunks_mut((STRIP * vocab).max(1)).zip(targets.par_chunks(STRIP));
        let strips =
            strips.zip(losses.par_chunks_mut(STRIP)).zip(statistics.par_chunks_mut((2 * STRIP * blocks).max(1)));
        strips.for_each(|(((logits, targets), losses), statistics)| {
            let width = targets.len();
            let statistics = &mut statistics[..2 * width * blocks];
            let entries = logits.par_chunks(ENTRIES * width).zip(statistics.par_chunks_exact_mut(2 * width));
            entries.for_each(|(logits, statistics)| {
                let (largest, total) = statistics.split_at_mut(width);
                block_statistics(isa, logits, largest, total);
            });
            let mut softmax = Softmax { largest: [0.0; STRIP], factor: [0.0; STRIP] };
            for (lane, (target, loss)) in targets.iter().zip(losses).enumerate() {
                *loss = 0.0;
                if *target == IGNORED {
                    continue;
                }
                let of_target = logits[*target as usize * width + lane];
                let (largest, total) = merge(statistics.chunks_exact(2 * width), lane);
                *loss = (f64::from(largest) - f64::from(of_target) + total.ln()) as f32;
                softmax.largest[lane] = largest;
                softmax.factor[lane] = scale.map_or(0.0, |scale| (f64::from(scale) / total) as f32);
            }
            let Some(scale) = scale else { return };
            logits.par_chunks_mut(ENTRIES * width).for_each(|logits| softmax.differentiate(isa, width, logits));
            for (lane, target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORED) {
                logits[*target as usize * width + lane] -= scale;
            }
        });
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
        let term = Term { a: Rows::Tokens(Strips::new(d_logits, n, vocab)), b: &both, k: vocab };
        spmm(self.isa, (n, width), &[term], Output::Strips(product), SET, work);
        if let Some(lora) = lora {
            u.par_chunks_mut((STRIP * rank).max(1)).zip(product.par_chunks((STRIP * width).max(1))).for_each(
                |(u, product)| {
                    let (_, of_lora) = product.split_at(product.len() - u.len());
                    u.iter_mut().zip(of_lora).for_each(|(u, product)| *u = product * lora.scale);
                },
            );
        }
        if let Some(d_hidden) = d_hidden {
            d_hidden.par_chunks_mut((STRIP * dim).max(1)).zip(product.par_chunks((STRIP * width).max(1))).for_each(
                |(d_hidden, product)| {
                    d_hidden.copy_from_slice(&product[..d_hidden.len()]);
                },
            );
            if let Some(lora) = lora {
                let a = Matrix::rows(lora.a.f32(), dim);
                let up = Term { a: Rows::Tokens(Strips::new(u, n, rank)), b: &a, k: rank };
                spmm(self.isa, (n, dim), &[up], Output::Strips(d_hidden), ADD, work);
            }
        }
    }

    /// dA += uᵀ·h and dB += dxᵀ·z.
    fn lora_gradients(&self, d_logits: &[f32], z: &[f32], u: &[f32], d_a: &mut [f32], d_b: &mut [f32]) {
        let (n, vocab, dim, rank) = (self.n, self.head.vocab(), self.head.dim(), self.head.rank());
        let (u, z, d_logits) = (Strips::new(u, n, rank), Strips::new(z, n, rank), Strips::new(d_logits, n, vocab));
        narrow::add_products(self.isa, (self.hidden, dim), (u, rank), narrow::Output::Transposed(d_a));
        narrow::add_products(self.isa, (d_logits, vocab), (z, rank), narrow::Output::Rows(d_b));
    }

    /// dW += dxᵀ·h, as the columns of hᵀ·dx.
    fn weight_gradient(&self, d_logits: &[f32], d_weight: &mut [f32], work: &mut [f32]) {
        let (vocab, dim) = (self.head.vocab(), self.head.dim());
        let d_logits = Strips::new(d_logits, self.n, vocab);
        let terms = [Term { a: Rows::Features(self.hidden), b: &d_logits, k: self.n }];
        spmm(self.isa, (dim, vocab), &terms, Output::Transposed(d_weight, dim), ADD, work);
    }
}

/// The largest logit of a row, and Σ exp(logit − largest), from those of its blocks. Blocks are summed in f32 and added up
/// in f64, so that the sum of a large vocabulary is as good as that of a small one.
fn merge<'a>(blocks: impl Iterator<Item = &'a [f32]> + Clone, lane: usize) -> (f32, f64) {
    let of = |block: &[f32]| (block[lane], block[block.len() / 2 + lane]);
    let largest = blocks.clone().map(|block| of(block).0).fold(f32::NEG_INFINITY, f32::max);
    let terms = blocks.map(|block| {
        let (of_block, total) = of(block);
        f64::from(total) * (f64::from(of_block) - f64::from(largest)).exp()
    });
    (largest, terms.sum())
}

simd_fn! {
    /// The largest of some entries' logits `[entries, width]` in each lane, and Σ exp(logit − largest).
    fn block_statistics(logits: &[f32], largest: &mut [f32], total: &mut [f32]) {
        let width = largest.len();
        for at in (0..width).step_by(LANES) {
            let lanes = at..width.min(at + LANES);
            let mut most = F32x16::splat(f32::NEG_INFINITY);
            for row in logits.chunks_exact(width) {
                most = load(&row[lanes.clone()]).max(most);
            }
            let mut sum = F32x16::ZERO;
            for row in logits.chunks_exact(width) {
                sum = sum.add(load(&row[lanes.clone()]).sub(most).exp::<FMA>());
            }
            most.store_partial(&mut largest[lanes.clone()]);
            sum.store_partial(&mut total[lanes]);
        }
    }
}

/// What turns the logits of a strip into their gradients.
struct Softmax {
    /// The largest logit of each lane.
    largest: [f32; STRIP],
    /// The gradient's scale over the sum of exponentials; 0 in an ignored lane.
    factor: [f32; STRIP],
}

impl Softmax {
    /// x ← factor·exp(x − largest) for some entries `[entries, width]`; 0 in an ignored lane, whatever it held.
    fn differentiate(&self, isa: Isa, width: usize, logits: &mut [f32]) {
        differentiate(isa, logits, &self.largest[..width], &self.factor[..width]);
    }
}

simd_fn! {
    fn differentiate(logits: &mut [f32], largest: &[f32], factor: &[f32]) {
        let width = largest.len();
        for row in logits.chunks_exact_mut(width) {
            for at in (0..width).step_by(LANES) {
                let lanes = at..width.min(at + LANES);
                let [most, factor] = [largest, factor].map(|of| load(&of[lanes.clone()]));
                let mut p = load(&row[lanes.clone()]).sub(most).exp::<FMA>().mul(factor);
                for (p, factor) in p.0.iter_mut().zip(factor.0) {
                    *p = if factor == 0.0 { 0.0 } else { *p };
                }
                store(p, &mut row[lanes]);
            }
        }
    }
}

#[inline(always)]
fn load(x: &[f32]) -> F32x16 {
    if x.len() == LANES { F32x16::load(x) } else { F32x16::load_partial(x, 0.0) }
}

#[inline(always)]
fn store(x: F32x16, out: &mut [f32]) {
    if out.len() == LANES { x.store(out) } else { x.store_partial(out) }
}
