//! AdamW over a list of tensors (Loshchilov and Hutter 2019), as torch's: decoupled decay first, moments corrected for
//! their start at zero, ε outside the root.
//!
//! With g′ = c·g for the clip factor c of the gradients' [`GradNorm`], at step t from 1:
//!
//! * w ← w·(1 − η·λ)
//! * m ← β₁·m + (1 − β₁)·g′, v ← β₂·v + (1 − β₂)·g′²
//! * w ← w − η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
//!
//! Everything is f32. A mask keeps pruned entries at zero: their gradient counts as zero, in the norm as here, so their
//! moments stay zero, and a zero weight ([`apply_mask`]) with zero moments does not move. Where the norm found a gradient
//! that is not finite nothing changes. Bound by memory: reads four numbers an entry, writes three.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use super::grad_norm::{GradNorm, Gradient};
use crate::device::{Backend, Buffer, Cost, DType, Device};
use crate::error::{Error, Result, expect_buffer};
use crate::simd::Isa;

/// One tensor and its state; all f32, of one length.
#[derive(Debug)]
pub struct Slot<'a> {
    /// w.
    pub value: &'a mut Buffer,
    /// g, with the mask that the norm was taken with.
    pub grad: Gradient<'a>,
    /// m.
    pub m: &'a mut Buffer,
    /// v.
    pub v: &'a mut Buffer,
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// η.
    pub lr: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ.
    pub weight_decay: f64,
    /// t, from 1.
    pub step: usize,
}

/// How many [`factors`] there are.
const FACTORS: usize = 8;

/// What every element of a step shares, as it is uploaded to a GPU: 1 − η·λ, β₁, 1 − β₁, β₂, 1 − β₂, η/(1 − β₁ᵗ), 1/√(1 − β₂ᵗ), ε.
pub fn factors(step: &Step) -> [f32; FACTORS] {
    let cpu::Factors { keep, beta1, rest1, beta2, rest2, step_size, root_scale, eps } = cpu::Factors::of(step);
    [keep, beta1, rest1, beta2, rest2, step_size, root_scale, eps]
}

/// One step of all tensors, whose gradients have the norm `norm`; none where one of them is not finite.
///
/// # Errors
/// A tensor that is not f32, whose gradient, mask or state has another length; a step of 0, for which the moments'
/// correction is not defined; or no memory. Nothing has changed then.
pub fn step(device: &Device, slots: &mut [Slot<'_>], step: Step, norm: &GradNorm) -> Result<()> {
    const OP: &str = "adamw";
    if step.step == 0 {
        return Err(Error::Domain { op: OP, reason: "step 0: steps count from 1".into() });
    }
    let mut elements = 0;
    for slot in &*slots {
        let len = slot.value.len();
        for (what, buffer) in [("value", &*slot.value), ("m", slot.m), ("v", slot.v)] {
            expect_buffer(OP, what, buffer, DType::F32, len)?;
        }
        slot.grad.check(OP, len)?;
        elements += len;
    }
    let gradients: usize = slots.iter().map(|slot| slot.grad.size_bytes()).sum();
    let cost = Cost::new(OP, 14 * elements, 12 * elements + gradients, 12 * elements);
    let work = (device.backend() == Backend::Cuda).then(|| cuda::Work::alloc(device, slots)).transpose()?;
    if let (Some(_), Some(mut work)) = (device.gpu(), work) {
        return device.launch(cost, |gpu| cuda::step(gpu, slots, &mut work, &step, norm));
    }
    device.run(cost, || {
        let Some(scale) = norm.host_scale() else { return };
        let tensors = slots.iter_mut().map(|slot| cpu::Tensor {
            value: slot.value.f32_mut(),
            grad: slot.grad.values.f32(),
            mask: slot.grad.mask.map(Buffer::as_slice),
            m: slot.m.f32_mut(),
            v: slot.v.f32_mut(),
        });
        cpu::step(Isa::best(), tensors, cpu::Factors::of(&step), scale as f32);
    });
    Ok(())
}

/// Zeroes the entries that a mask does not keep: u64 words, bit i%64 of word i/64 set where entry i is kept.
///
/// # Errors
/// Values that are not f32; a mask that is not u64 or of another length.
pub fn apply_mask(values: &mut Buffer, mask: &Buffer) -> Result<()> {
    const OP: &str = "apply_mask";
    expect_buffer(OP, "values", values, DType::F32, values.len())?;
    expect_buffer(OP, "mask", mask, DType::U64, values.len().div_ceil(64))?;
    let device = values.device().clone();
    let cost = Cost::new(OP, 0, values.size_bytes() + mask.size_bytes(), values.size_bytes());
    if device.gpu().is_some() {
        return device.launch(cost, |gpu| cuda::apply_mask(gpu, values, mask));
    }
    device.run(cost, || cpu::apply_mask(Isa::best(), values.f32_mut(), mask.as_slice()));
    Ok(())
}
