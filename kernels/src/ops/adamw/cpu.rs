//! The CPU's AdamW: one pass over all tensors, cut into chunks that the threads share.

use rayon::prelude::*;

use super::Step;
use crate::simd::Isa;
use crate::simd_fn;

/// Elements of a task; a multiple of 64, so that tasks share no word of a mask.
const CHUNK: usize = 16 * 1024;

pub(super) struct Tensor<'a> {
    pub value: &'a mut [f32],
    pub grad: &'a [f32],
    pub mask: Option<&'a [u64]>,
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// What every element of a step shares, computed in f64 once.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) keep: f32,
    pub(super) beta1: f32,
    pub(super) rest1: f32,
    pub(super) beta2: f32,
    pub(super) rest2: f32,
    /// η/(1 − β₁ᵗ)
    pub(super) step_size: f32,
    /// 1/√(1 − β₂ᵗ)
    pub(super) root_scale: f32,
    pub(super) eps: f32,
}

impl Factors {
    pub(super) fn of(step: &Step) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
        Factors {
            keep: (1.0 - step.lr * step.weight_decay) as f32,
            beta1: step.beta1 as f32,
            rest1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            rest2: (1.0 - step.beta2) as f32,
            step_size: (step.lr / correction(step.beta1)) as f32,
            root_scale: (1.0 / correction(step.beta2).sqrt()) as f32,
            eps: step.eps as f32,
        }
    }
}

/// `scale` is the clip factor c.
pub(super) fn step<'a>(isa: Isa, tensors: impl Iterator<Item = Tensor<'a>>, factors: Factors, scale: f32) {
    let chunks: Vec<Tensor<'a>> = tensors
        .flat_map(|t| {
            let state = t.m.chunks_mut(CHUNK).zip(t.v.chunks_mut(CHUNK));
            let pairs = t.value.chunks_mut(CHUNK).zip(t.grad.chunks(CHUNK)).zip(state).enumerate();
            pairs.map(move |(chunk, ((value, grad), (m, v)))| {
                let mask = t.mask.map(|mask| &mask[chunk * CHUNK / 64..][..grad.len().div_ceil(64)]);
                Tensor { value, grad, mask, m, v }
            })
        })
        .collect();
    chunks.into_par_iter().for_each(|t| match t.mask {
        None => step_chunk(isa, t.value, t.grad, t.m, t.v, factors, scale),
        Some(mask) => step_masked_chunk(isa, t.value, t.grad, mask, t.m, t.v, factors, scale),
    });
}

/// `g` is scaled by c already.
#[inline(always)]
fn update(w: &mut f32, g: f32, m: &mut f32, v: &mut f32, f: &Factors) {
    *m = f.beta1 * *m + f.rest1 * g;
    *v = f.beta2 * *v + f.rest2 * g * g;
    *w = f.keep * *w - f.step_size * *m / (v.sqrt() * f.root_scale + f.eps);
}

simd_fn! {
    fn step_chunk(value: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], f: Factors, scale: f32) {
        for (((w, g), m), v) in value.iter_mut().zip(grad).zip(m).zip(v) {
            update(w, scale * g, m, v, &f);
        }
    }
}

simd_fn! {
    /// The gradient of what the mask does not keep counts as zero.
    fn step_masked_chunk(
        value: &mut [f32], grad: &[f32], mask: &[u64], m: &mut [f32], v: &mut [f32], f: Factors, scale: f32,
    ) {
        let state = m.chunks_mut(64).zip(v.chunks_mut(64));
        for (((value, grad), (m, v)), word) in value.chunks_mut(64).zip(grad.chunks(64)).zip(state).zip(mask) {
            for (i, (((w, g), m), v)) in value.iter_mut().zip(grad).zip(m).zip(v).enumerate() {
                update(w, if word >> i & 1 == 1 { scale * g } else { 0.0 }, m, v, &f);
            }
        }
    }
}

pub(super) fn apply_mask(isa: Isa, values: &mut [f32], mask: &[u64]) {
    values
        .par_chunks_mut(CHUNK)
        .zip(mask.par_chunks(CHUNK / 64))
        .for_each(|(values, mask)| mask_chunk(isa, values, mask));
}

simd_fn! {
    fn mask_chunk(values: &mut [f32], mask: &[u64]) {
        for (values, word) in values.chunks_mut(64).zip(mask) {
            for (i, x) in values.iter_mut().enumerate() {
                *x = if word >> i & 1 == 1 { *x } else { 0.0 };
            }
        }
    }
}
