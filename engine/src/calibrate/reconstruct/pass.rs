//! A batch through one layer, and how far what it gives is from what it should.

use kernels::Category;
use rayon::prelude::*;

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::model::{self, Model, TokenBatch};
use crate::prune::{narrowed, widened};
use crate::tensor::Tensor;

/// What a layer gives.
pub(super) fn decode(model: &dyn Model, layer: usize, input: Tensor, batch: &TokenBatch) -> Result<Tensor> {
    let mut tape = Tape::inference(&model::device_of(model));
    Ok(model.decode(&mut tape, layer, Var::constant(input), batch)?.into_tensor())
}

/// Forward and backward of one layer, from the gradient that `gradient` makes of its output.
pub(super) fn step(
    model: &dyn Model,
    layer: usize,
    input: Tensor,
    batch: &TokenBatch,
    gradient: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let mut tape = Tape::training(&model::device_of(model), 0);
    let output = model.decode(&mut tape, layer, Var::constant(input), batch)?;
    let gradient = gradient(output.tensor())?;
    tape.backward(output, gradient).map(drop)
}

/// Entries that one thread sums.
const CHUNK: usize = 1 << 14;

/// ‖a − b‖², in f64 and in an order that the size decides.
pub(super) fn squared_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (widened(a.buffer())?, widened(b.buffer())?);
    Ok(squares(&a, &b))
}

pub(super) fn squares(a: &[f32], b: &[f32]) -> f64 {
    let chunks = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    let sum = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let sums: Vec<f64> = chunks.map(sum).collect();
    sums.iter().sum()
}

/// 2(ŷ − y)/`expected`, the gradient of ‖ŷ − y‖²/`expected`, and ‖ŷ − y‖². The host computes it, for a layer's output is small beside
/// what made it.
pub(super) fn gradient(output: &Tensor, target: &Tensor, expected: f64) -> Result<(Tensor, f64)> {
    let (got, want) = (widened(output.buffer())?, widened(target.buffer())?);
    let scale = if expected == 0.0 { 0.0 } else { 2.0 / expected };
    let values: Vec<f32> =
        got.par_iter().zip(&want).map(|(got, want)| ((f64::from(*got) - f64::from(*want)) * scale) as f32).collect();
    let buffer = output.buffer();
    let values = narrowed(&values, buffer.device(), buffer.dtype())?.duplicate(Category::Activations)?;
    Ok((Tensor::new(values, output.rows(), output.cols()), squares(&got, &want)))
}
