//! Sums of activations: residual connections, and gradients that meet.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;

use crate::device::{Buffer, Cost};
use crate::error::{Result, expect_activations, expect_dtype, expect_len};
use crate::simd::Isa;

/// sum += x, element by element.
///
/// # Errors
/// Lengths or element types that differ, or a type that the device does not compute in.
pub fn add_assign(sum: &mut Buffer, x: &Buffer) -> Result<()> {
    const OP: &str = "add";
    expect_len(OP, "x", x.len(), sum.len())?;
    let device = sum.device().clone();
    expect_activations(OP, "sum", sum)?;
    expect_dtype(OP, "x", x.dtype(), sum.dtype())?;
    let cost = Cost::new(OP, sum.len(), sum.size_bytes() + x.size_bytes(), sum.size_bytes());
    if device.gpu().is_some() {
        return device.launch(cost, |gpu| cuda::add_assign(gpu, sum, x));
    }
    device.run(cost, || cpu::add_assign(Isa::best(), sum.f32_mut(), x.f32()));
    Ok(())
}

#[cfg(test)]
mod tests;
