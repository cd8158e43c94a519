//! Layer normalisation over the features of a token (Ba et al. 2016).
//!
//! For each row x of D features: μ = mean(x), σ² = mean((x − μ)²), r = 1/√(σ² + ε), x̂ = (x − μ)·r, y = w∘x̂ + b.
//!
//! Backward, with g = w∘dy: dx = r·(g − mean(g) − x̂·mean(g∘x̂)), dw += Σ_rows dy∘x̂, db += Σ_rows dy.
//!
//! Saved are x, μ and r; x̂ is formed again. Bound by memory: forward reads x and writes y, backward reads x and dy and
//! writes dx into dy's place.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Backend, Buffer, Category, Cost, DType};
use crate::error::{Result, expect_activations, expect_dtype, expect_len, expect_rows};
use crate::ops::InputGradient;
use crate::simd::Isa;

/// y and what backward needs of the statistics.
#[derive(Debug)]
pub struct Forward {
    /// `[N, D]`, in x's element type.
    pub y: Buffer,
    /// μ, f32 `[N]`.
    pub mean: Buffer,
    /// r, f32 `[N]`.
    pub rstd: Buffer,
}

/// Gradients of the parameters that train: f32 `[D]` each, added to.
#[derive(Debug, Default)]
pub struct ParamGradients<'a> {
    /// dw.
    pub weight: Option<&'a mut Buffer>,
    /// db.
    pub bias: Option<&'a mut Buffer>,
}

/// y = w∘(x − μ)·r + b. `weight` and `bias` are f32 `[D]`, x is `[N, D]`.
///
/// # Errors
/// Lengths or element types that do not fit, or no memory.
pub fn forward(x: &Buffer, weight: &Buffer, bias: &Buffer, eps: f32) -> Result<Forward> {
    const OP: &str = "layer_norm_forward";
    let (device, cols) = (x.device(), weight.len());
    let rows = expect_rows(OP, "x", x.len(), cols)?;
    expect_len(OP, "bias", bias.len(), cols)?;
    expect_activations(OP, "x", x)?;
    expect_dtype(OP, "weight", weight.dtype(), DType::F32)?;
    expect_dtype(OP, "bias", bias.dtype(), DType::F32)?;
    let mut y = device.alloc(Category::Activations, x.dtype(), x.len())?;
    let mut mean = device.alloc(Category::Activations, DType::F32, rows)?;
    let mut rstd = device.alloc(Category::Activations, DType::F32, rows)?;
    let read = x.size_bytes() + weight.size_bytes() + bias.size_bytes();
    let cost = Cost::new(OP, 8 * x.len(), read, y.size_bytes() + mean.size_bytes() + rstd.size_bytes());
    if device.gpu().is_some() {
        let input = cuda::Input { x, weight, bias, eps };
        device.launch(cost, |gpu| cuda::forward(gpu, OP, &input, rows, &mut y, &mut mean, &mut rstd))?;
        return Ok(Forward { y, mean, rstd });
    }
    device.run(cost, || {
        let out = cpu::Output { y: y.f32_mut(), mean: mean.f32_mut(), rstd: rstd.f32_mut() };
        cpu::forward(Isa::best(), x.f32(), weight.f32(), bias.f32(), eps, out);
    });
    Ok(Forward { y, mean, rstd })
}

/// dx from dy, in dy's place; the parameters' gradients are added to. Where `input_gradient` is not
/// wanted dy is dropped.
///
/// # Errors
/// Lengths or element types that do not fit, or no memory.
pub fn backward(
    dy: Buffer,
    x: &Buffer,
    weight: &Buffer,
    (mean, rstd): (&Buffer, &Buffer),
    mut gradients: ParamGradients<'_>,
    input_gradient: InputGradient<'_>,
) -> Result<Option<Buffer>> {
    const OP: &str = "layer_norm_backward";
    let (device, cols) = (x.device(), weight.len());
    let rows = expect_rows(OP, "x", x.len(), cols)?;
    expect_len(OP, "dy", dy.len(), rows * cols)?;
    expect_len(OP, "mean", mean.len(), rows)?;
    expect_len(OP, "rstd", rstd.len(), rows)?;
    expect_activations(OP, "x", x)?;
    expect_dtype(OP, "dy", dy.dtype(), x.dtype())?;
    for (name, operand) in [("weight", weight), ("mean", mean), ("rstd", rstd)] {
        expect_dtype(OP, name, operand.dtype(), DType::F32)?;
    }
    if let Some(sum) = input_gradient.sum() {
        expect_len(OP, "the sum", sum.len(), rows * cols)?;
        expect_dtype(OP, "the sum", sum.dtype(), x.dtype())?;
    }
    let mut dx = dy;
    let added = input_gradient.sum().map_or(0, Buffer::size_bytes);
    let mut written = if input_gradient.is_wanted() { dx.size_bytes() } else { 0 };
    for (name, gradient) in [("dw", &gradients.weight), ("db", &gradients.bias)] {
        if let Some(gradient) = gradient {
            expect_len(OP, name, gradient.len(), cols)?;
            expect_dtype(OP, name, gradient.dtype(), DType::F32)?;
            written += gradient.size_bytes();
        }
    }
    let read = x.size_bytes() + dx.size_bytes() + weight.size_bytes() + mean.size_bytes() + rstd.size_bytes() + added;
    let cost = Cost::new(OP, 14 * x.len(), read, written);
    let on_gpu = device.backend() == Backend::Cuda;
    let partials = on_gpu.then(|| cuda::partials(device, OP, x, (rows, cols), &gradients)).transpose()?;
    if let (Some(_), Some(mut partials)) = (device.gpu(), partials) {
        let saved = cuda::Saved { x, weight, mean, rstd };
        device.launch(cost, |gpu| {
            cuda::backward(gpu, OP, &saved, rows, &mut dx, input_gradient, gradients, &mut partials)
        })?;
        return Ok(input_gradient.is_wanted().then_some(dx));
    }
    device.run(cost, || {
        let saved = cpu::Saved { x: x.f32(), weight: weight.f32(), mean: mean.f32(), rstd: rstd.f32() };
        let d_weight = gradients.weight.as_deref_mut().map(Buffer::f32_mut);
        let d_bias = gradients.bias.as_deref_mut().map(Buffer::f32_mut);
        cpu::param_gradients(Isa::best(), &saved, dx.f32(), d_weight, d_bias);
        if input_gradient.is_wanted() {
            cpu::input_gradient(Isa::best(), &saved, input_gradient.sum().map(Buffer::f32), dx.f32_mut());
        }
    });
    Ok(input_gradient.is_wanted().then_some(dx))
}
