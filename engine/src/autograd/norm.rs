//! LayerNorm and RMSNorm. The formulas stand in [`kernels::ops::layer_norm`] and [`kernels::ops::rms_norm`].
//!
//! Both save their input, which the residual connection around them keeps alive anyway, and a number or two a token. Their gradient
//! meets that of the connection: the kernel adds it.

use kernels::ops::{layer_norm, rms_norm};

use super::{Tape, Var};
use crate::error::Result;
use crate::model::{Norm, NormKind};
use crate::tensor::Tensor;

/// Normalises each row of x `[N, D]`.
///
/// # Errors
/// Shapes that do not fit, or no memory.
pub fn norm(tape: &mut Tape, norm: &Norm, x: &Var) -> Result<Var> {
    match norm.kind {
        NormKind::Layer => layer(tape, norm, x),
        NormKind::Rms => rms(tape, norm, x),
    }
}

fn layer(tape: &mut Tape, norm: &Norm, x: &Var) -> Result<Var> {
    let (rows, cols) = (x.tensor().rows(), x.tensor().cols());
    let bias = norm.bias.clone().expect("a LayerNorm has a bias");
    let weight = norm.weight.clone();
    let out = layer_norm::forward(x.tensor().buffer(), &weight.value(), &bias.value(), norm.eps)?;
    let y = Tensor::new(out.y, rows, cols);
    if !tape.needs_grad(&[x], &[Some(&weight), Some(&bias)]) {
        return Ok(Var::constant(y));
    }
    let (saved, mean, rstd) = (x.tensor().clone(), out.mean, out.rstd);
    Ok(tape.record_sum(y, x, move |dy, wanted| {
        let mut d_weight = weight.is_trainable().then(|| weight.take_grad()).transpose()?;
        let mut d_bias = bias.is_trainable().then(|| bias.take_grad()).transpose()?;
        let gradients = layer_norm::ParamGradients { weight: d_weight.as_mut(), bias: d_bias.as_mut() };
        let statistics = (&mean, &rstd);
        let dy = dy.into_buffer()?;
        let dx = layer_norm::backward(dy, saved.buffer(), &weight.value(), statistics, gradients, wanted)?;
        d_weight.into_iter().for_each(|grad| weight.put_grad(grad));
        d_bias.into_iter().for_each(|grad| bias.put_grad(grad));
        Ok(dx.map(|dx| Tensor::new(dx, rows, cols)))
    }))
}

fn rms(tape: &mut Tape, norm: &Norm, x: &Var) -> Result<Var> {
    let (rows, cols) = (x.tensor().rows(), x.tensor().cols());
    let weight = norm.weight.clone();
    let out = rms_norm::forward(x.tensor().buffer(), &weight.value(), norm.eps)?;
    let y = Tensor::new(out.y, rows, cols);
    if !tape.needs_grad(&[x], &[Some(&weight)]) {
        return Ok(Var::constant(y));
    }
    let (saved, rstd) = (x.tensor().clone(), out.rstd);
    Ok(tape.record_sum(y, x, move |dy, wanted| {
        let mut d_weight = weight.is_trainable().then(|| weight.take_grad()).transpose()?;
        let dy = dy.into_buffer()?;
        let dx = rms_norm::backward(dy, saved.buffer(), &weight.value(), &rstd, d_weight.as_mut(), wanted)?;
        d_weight.into_iter().for_each(|grad| weight.put_grad(grad));
        Ok(dx.map(|dx| Tensor::new(dx, rows, cols)))
    }))
}
