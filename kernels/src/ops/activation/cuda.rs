//! The GPU's activations: the launches of activation.cu.

use super::Activation;
use crate::device::{Buffer, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::{kernel_name, pointwise};

static KERNELS: Source = Source { name: "activation", ptx: include_str!("../../../ptx/activation.ptx") };

/// As `Kind` in functions.cuh.
pub(in crate::ops) fn number(kind: Activation) -> i32 {
    match kind {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Silu => 3,
    }
}

pub(super) fn relu(gpu: &Gpu, x: &mut Buffer, signs: Option<&mut Buffer>) -> Result<()> {
    let len = x.len();
    if len == 0 {
        return Ok(());
    }
    // Threads for the bits past the end, too.
    let launch = pointwise(gpu, &KERNELS, kernel_name!("relu", x.dtype()), x, len.next_multiple_of(64))?
        .write(x)
        .value(len as u64)
        .write_or_null(signs);
    // SAFETY: `mod.rs` allocates a word of signs for each 64 elements.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn relu_backward(gpu: &Gpu, dx: &mut Buffer, signs: &Buffer) -> Result<()> {
    let len = dx.len();
    if len == 0 {
        return Ok(());
    }
    let launch = pointwise(gpu, &KERNELS, kernel_name!("relu_backward", dx.dtype()), dx, len)?
        .write(dx)
        .read(signs)
        .value(len as u64);
    // SAFETY: `mod.rs` checks that there is a bit for each element.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn forward(gpu: &Gpu, kind: Activation, x: &Buffer, y: &mut Buffer) -> Result<()> {
    let len = x.len();
    if len == 0 {
        return Ok(());
    }
    let launch = pointwise(gpu, &KERNELS, kernel_name!("activation", x.dtype()), x, len)?
        .value(number(kind))
        .read(x)
        .value(len as u64)
        .write(y);
    // SAFETY: `mod.rs` allocates y like x.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn backward(gpu: &Gpu, kind: Activation, dx: &mut Buffer, x: &Buffer) -> Result<()> {
    let len = x.len();
    if len == 0 {
        return Ok(());
    }
    let launch = pointwise(gpu, &KERNELS, kernel_name!("activation_backward", x.dtype()), x, len)?
        .value(number(kind))
        .write(dx)
        .read(x)
        .value(len as u64);
    // SAFETY: `mod.rs` checks that both have the same length and element type.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn silu_gate(gpu: &Gpu, gate: &Buffer, up: &Buffer, y: &mut Buffer) -> Result<()> {
    let len = gate.len();
    if len == 0 {
        return Ok(());
    }
    let launch = pointwise(gpu, &KERNELS, kernel_name!("silu_gate", gate.dtype()), gate, len)?
        .read(gate)
        .read(up)
        .value(len as u64)
        .write(y);
    // SAFETY: `mod.rs` checks that both have the same length and element type, and allocates y like them.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn silu_gate_backward(
    gpu: &Gpu,
    gate: &Buffer,
    up: &Buffer,
    d_gate: &mut Buffer,
    d_up: &mut Buffer,
) -> Result<()> {
    let len = gate.len();
    if len == 0 {
        return Ok(());
    }
    let launch = pointwise(gpu, &KERNELS, kernel_name!("silu_gate_backward", gate.dtype()), gate, len)?
        .read(gate)
        .read(up)
        .write(d_up)
        .value(len as u64)
        .write(d_gate);
    // SAFETY: as above, for all four.
    Ok(unsafe { launch.run() }?)
}
