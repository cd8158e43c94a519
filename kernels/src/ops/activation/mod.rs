//! Activation functions, element by element.
//!
//! | kind | f(x) | f′(x) | saved |
//! |---|---|---|---|
//! | `Relu` | max(x, 0) | 1 where x > 0, else 0 | one bit an element |
//! | `Gelu` | x·Φ(x), Φ(x) = (1 + erf(x/√2))/2 | Φ(x) + x·φ(x) | x |
//! | `GeluTanh` | x·(1 + tanh u)/2, u = √(2/π)(x + 0.044715x³) | (1 + tanh u)/2 + x·(1 − tanh² u)·u′/2 | x |
//! | `Silu` | x·σ(x), σ(x) = 1/(1 + e⁻ˣ) | σ(x)·(1 + x·(1 − σ(x))) | x |
//!
//! (Hendrycks and Gimpel 2016 for GELU and SiLU.) The gated form of the Llama family is silu(gate)∘up; it saves both.
//! All are bound by memory. ReLU runs in place.

mod cpu;
pub(super) mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Buffer, Category, Cost, DType};
use crate::error::{Result, expect_activations, expect_dtype, expect_len};
use crate::simd::Isa;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// With erf: `gelu` in Hugging Face configs.
    Gelu,
    /// With tanh: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// x·σ(x): `silu`, `swish`.
    Silu,
}

/// y = f(x), and the signs that [`relu_backward`] needs where `save` asks for them: a u64 bitmap, bit i%64 of word i/64 set
/// where x_i > 0. x is overwritten. NaN stays NaN and counts as positive, so that a broken step shows in the loss.
///
/// # Errors
/// An element type that the device does not compute in, or no memory.
pub fn relu(x: Buffer, save: bool) -> Result<(Buffer, Option<Buffer>)> {
    let device = x.device().clone();
    check_types("relu", &[("x", &x)])?;
    let mut y = x;
    let words = y.len().div_ceil(64);
    let mut signs = save.then(|| device.alloc(Category::Activations, DType::U64, words)).transpose()?;
    let written = y.size_bytes() + signs.as_ref().map_or(0, Buffer::size_bytes);
    let cost = Cost::new("relu", y.len(), y.size_bytes(), written);
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::relu(gpu, &mut y, signs.as_mut()))?;
        return Ok((y, signs));
    }
    device.run(cost, || {
        cpu::relu(Isa::best(), y.f32_mut(), signs.as_mut().map(Buffer::as_mut_slice));
    });
    Ok((y, signs))
}

/// dx = dy where x was positive, else 0; in dy's place.
///
/// # Errors
/// Lengths or element types that do not fit.
pub fn relu_backward(dy: Buffer, signs: &Buffer) -> Result<Buffer> {
    const OP: &str = "relu_backward";
    expect_len(OP, "signs", signs.len(), dy.len().div_ceil(64))?;
    expect_dtype(OP, "signs", signs.dtype(), DType::U64)?;
    check_types(OP, &[("dy", &dy)])?;
    let device = dy.device().clone();
    let mut dx = dy;
    let cost = Cost::new(OP, dx.len(), dx.size_bytes() + signs.size_bytes(), dx.size_bytes());
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::relu_backward(gpu, &mut dx, signs))?;
        return Ok(dx);
    }
    device.run(cost, || cpu::relu_backward(Isa::best(), dx.f32_mut(), signs.as_slice()));
    Ok(dx)
}

/// y = f(x), x kept.
///
/// # Errors
/// An element type that the device does not compute in, or no memory.
pub fn forward(kind: Activation, x: &Buffer) -> Result<Buffer> {
    const OP: &str = "activation";
    check_types(OP, &[("x", x)])?;
    let device = x.device();
    let mut y = device.alloc(Category::Activations, x.dtype(), x.len())?;
    let cost = Cost::new(OP, 16 * x.len(), x.size_bytes(), y.size_bytes());
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::forward(gpu, kind, x, &mut y))?;
        return Ok(y);
    }
    device.run(cost, || cpu::forward(Isa::best(), kind, x.f32(), y.f32_mut()));
    Ok(y)
}

/// dx = dy·f′(x), in dy's place.
///
/// # Errors
/// Lengths or element types that do not fit.
pub fn backward(kind: Activation, dy: Buffer, x: &Buffer) -> Result<Buffer> {
    const OP: &str = "activation_backward";
    expect_len(OP, "dy", dy.len(), x.len())?;
    check_types(OP, &[("x", x), ("dy", &dy)])?;
    let mut dx = dy;
    let cost = Cost::new(OP, 24 * x.len(), x.size_bytes() + dx.size_bytes(), dx.size_bytes());
    if x.device().gpu().is_some() {
        x.device().launch(cost, |gpu| cuda::backward(gpu, kind, &mut dx, x))?;
        return Ok(dx);
    }
    x.device().run(cost, || cpu::backward(Isa::best(), kind, dx.f32_mut(), x.f32()));
    Ok(dx)
}

/// y = silu(gate)∘up.
///
/// # Errors
/// Lengths or element types that do not fit, or no memory.
pub fn silu_gate(gate: &Buffer, up: &Buffer) -> Result<Buffer> {
    const OP: &str = "silu_gate";
    expect_len(OP, "up", up.len(), gate.len())?;
    check_types(OP, &[("gate", gate), ("up", up)])?;
    let device = gate.device();
    let mut y = device.alloc(Category::Activations, gate.dtype(), gate.len())?;
    let cost = Cost::new(OP, 17 * y.len(), gate.size_bytes() + up.size_bytes(), y.size_bytes());
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::silu_gate(gpu, gate, up, &mut y))?;
        return Ok(y);
    }
    device.run(cost, || cpu::silu_gate(Isa::best(), gate.f32(), up.f32(), y.f32_mut()));
    Ok(y)
}

/// (dgate, dup) = (dy∘up∘silu′(gate), dy∘silu(gate)); the second in dy's place.
///
/// # Errors
/// Lengths or element types that do not fit, or no memory.
pub fn silu_gate_backward(dy: Buffer, gate: &Buffer, up: &Buffer) -> Result<(Buffer, Buffer)> {
    const OP: &str = "silu_gate_backward";
    expect_len(OP, "up", up.len(), gate.len())?;
    expect_len(OP, "dy", dy.len(), gate.len())?;
    check_types(OP, &[("gate", gate), ("up", up), ("dy", &dy)])?;
    let device = gate.device();
    let mut d_gate = device.alloc(Category::Activations, gate.dtype(), gate.len())?;
    let mut d_up = dy;
    let read = gate.size_bytes() + up.size_bytes() + d_up.size_bytes();
    let cost = Cost::new(OP, 28 * gate.len(), read, 2 * d_up.size_bytes());
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::silu_gate_backward(gpu, gate, up, &mut d_gate, &mut d_up))?;
        return Ok((d_gate, d_up));
    }
    device.run(cost, || {
        cpu::silu_gate_backward(Isa::best(), gate.f32(), up.f32(), d_gate.f32_mut(), d_up.f32_mut());
    });
    Ok((d_gate, d_up))
}

/// Checks that all operands have one type, which their device computes in.
fn check_types(op: &'static str, operands: &[(&'static str, &Buffer)]) -> Result<()> {
    operands.iter().try_for_each(|(what, x)| {
        expect_activations(op, what, x)?;
        expect_dtype(op, what, x.dtype(), operands[0].1.dtype())
    })
}
