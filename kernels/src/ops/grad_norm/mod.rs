//! The L2 norm of all gradients together, for clipping; in f64 over chunks of fixed size, so that the number of threads
//! changes none of its bits.

mod cpu;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Buffer, Cost, DType, Device};
use crate::error::{Result, expect_buffer};
use crate::simd::Isa;

/// A norm, and whether it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradNorm {
    /// √Σ g² over all tensors; 0 on Meta.
    pub norm: f64,
    /// The first tensor that holds an infinity or a NaN.
    pub first_non_finite: Option<usize>,
}

/// √Σ g² over f32 tensors.
///
/// # Errors
/// A tensor that is not f32.
pub fn grad_norm(device: &Device, grads: &[&Buffer]) -> Result<GradNorm> {
    device.expect_host("grad_norm")?;
    for grad in grads {
        expect_buffer("grad_norm", "gradient", grad, DType::F32, grad.len())?;
    }
    let elements: usize = grads.iter().map(|grad| grad.len()).sum();
    let mut result = GradNorm { norm: 0.0, first_non_finite: None };
    device.run(Cost::new("grad_norm", 2 * elements, 4 * elements, 8), || {
        let squares: Vec<f64> = grads.iter().map(|grad| cpu::sum_of_squares(Isa::best(), grad.f32())).collect();
        result.first_non_finite = squares.iter().position(|square| !square.is_finite());
        result.norm = squares.iter().sum::<f64>().sqrt();
    });
    Ok(result)
}
