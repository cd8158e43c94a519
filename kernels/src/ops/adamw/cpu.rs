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
    pub(super) grad_scale: f32,
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
            grad_scale: step.grad_scale as f32,
            step_size: (step.lr / correction(step.beta1)) as f32,
            root_scale: (1.0 / correction(step.beta2).sqrt()) as f32,
            eps: step.eps as f32,
        }
    }
}

pub(super) fn step<'a>(isa: Isa, tensors: impl Iterator<Item = Tensor<'a>>, factors: Factors) {
    let chunks: Vec<Tensor<'a>> = tensors
        .flat_map(|t| {
            let state = t.m.chunks_mut(CHUNK).zip(t.v.chunks_mut(CHUNK));
            let pairs = t.value.chunks_mut(CHUNK).zip(t.grad.chunks(CHUNK)).zip(state);
            pairs.map(|((value, grad), (m, v))| Tensor { value, grad, m, v })
        })
        .collect();
    chunks.into_par_iter().for_each(|t| step_chunk(isa, t.value, t.grad, t.m, t.v, factors));
}

simd_fn! {
    fn step_chunk(value: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
        for (((w, g), m), v) in value.iter_mut().zip(grad).zip(m).zip(v) {
            let g = f.grad_scale * g;
            *m = f.beta1 * *m + f.rest1 * g;
            *v = f.beta2 * *v + f.rest2 * g * g;
            *w = f.keep * *w - f.step_size * *m / (v.sqrt() * f.root_scale + f.eps);
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
