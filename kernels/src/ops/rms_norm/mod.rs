//! Root-mean-square normalisation over the features of a token (Zhang and Sennrich 2019).
//!
//! For each row x of D features: r = 1/√(mean(x²) + ε), x̂ = x·r, y = w∘x̂.
//!
//! Backward, with g = w∘dy: dx = r·(g − x̂·mean(g∘x̂)), dw += Σ_rows dy∘x̂.
//!
//! Saved are x and r. Bound by memory, as [`layer_norm`](super::layer_norm).

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
    /// r, f32 `[N]`.
    pub rstd: Buffer,
}

/// y = w∘x·r. `weight` is f32 `[D]`, x is `[N, D]`.
///
/// # Errors
/// Lengths or element types that do not fit, or no memory.
pub fn forward(x: &Buffer, weight: &Buffer, eps: f32) -> Result<Forward> {
    const OP: &str = "rms_norm_forward";
    let (device, cols) = (x.device(), weight.len());
    let rows = expect_rows(OP, "x", x.len(), cols)?;
    expect_activations(OP, "x", x)?;
    expect_dtype(OP, "weight", weight.dtype(), DType::F32)?;
    let mut y = device.alloc(Category::Activations, x.dtype(), x.len())?;
    let mut rstd = device.alloc(Category::Activations, DType::F32, rows)?;
    let cost = Cost::new(OP, 4 * x.len(), x.size_bytes() + weight.size_bytes(), y.size_bytes() + rstd.size_bytes());
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::forward(gpu, OP, (x, weight, eps), rows, &mut y, &mut rstd))?;
        return Ok(Forward { y, rstd });
    }
    device.run(cost, || cpu::forward(Isa::best(), x.f32(), weight.f32(), eps, y.f32_mut(), rstd.f32_mut()));
    Ok(Forward { y, rstd })
}

/// dx from dy, in dy's place; `d_weight`, f32 `[D]`, is added to. Where `input_gradient` is not
/// wanted dy is dropped.
///
/// # Errors
/// Lengths or element types that do not fit, or no memory.
pub fn backward(
    dy: Buffer,
    x: &Buffer,
    weight: &Buffer,
    rstd: &Buffer,
    d_weight: Option<&mut Buffer>,
    input_gradient: InputGradient<'_>,
) -> Result<Option<Buffer>> {
    const OP: &str = "rms_norm_backward";
    let (device, cols) = (x.device(), weight.len());
    let rows = expect_rows(OP, "x", x.len(), cols)?;
    expect_len(OP, "dy", dy.len(), rows * cols)?;
    expect_len(OP, "rstd", rstd.len(), rows)?;
    expect_activations(OP, "x", x)?;
    expect_dtype(OP, "dy", dy.dtype(), x.dtype())?;
    expect_dtype(OP, "weight", weight.dtype(), DType::F32)?;
    expect_dtype(OP, "rstd", rstd.dtype(), DType::F32)?;
    if let Some(sum) = input_gradient.sum() {
        expect_len(OP, "the sum", sum.len(), rows * cols)?;
        expect_dtype(OP, "the sum", sum.dtype(), x.dtype())?;
    }
    let mut dx = dy;
    let added = input_gradient.sum().map_or(0, Buffer::size_bytes);
    let mut written = if input_gradient.is_wanted() { dx.size_bytes() } else { 0 };
    if let Some(gradient) = &d_weight {
        expect_len(OP, "dw", gradient.len(), cols)?;
        expect_dtype(OP, "dw", gradient.dtype(), DType::F32)?;
        written += gradient.size_bytes();
    }
    let read = x.size_bytes() + dx.size_bytes() + weight.size_bytes() + rstd.size_bytes() + added;
    let cost = Cost::new(OP, 10 * x.len(), read, written);
    let on_gpu = device.backend() == Backend::Cuda;
    let partials = on_gpu.then(|| cuda::partials(device, OP, x, (rows, cols), d_weight.is_some())).transpose()?;
    if let (Some(_), Some(mut partials)) = (device.gpu(), partials) {
        let saved = cuda::Saved { x, weight, rstd };
        device.launch(cost, |gpu| {
            cuda::backward(gpu, OP, &saved, rows, &mut dx, input_gradient, d_weight, &mut partials)
        })?;
        return Ok(input_gradient.is_wanted().then_some(dx));
    }
    device.run(cost, || {
        let saved = cpu::Saved { x: x.f32(), weight: weight.f32(), rstd: rstd.f32() };
        if let Some(d_weight) = d_weight {
            cpu::weight_gradient(Isa::best(), &saved, dx.f32(), d_weight.f32_mut());
        }
        if input_gradient.is_wanted() {
            cpu::input_gradient(Isa::best(), &saved, input_gradient.sum().map(Buffer::f32), dx.f32_mut());
        }
    });
    Ok(input_gradient.is_wanted().then_some(dx))
}
