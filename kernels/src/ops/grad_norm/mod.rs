//! The L2 norm of all gradients together, and the factor that clips them to it; in f64 over chunks of fixed size, so that
//! the number of threads changes none of its bits.
//!
//! With masks, n = √Σ g² over the entries that they keep. As torch's `clip_grad_norm_`: c = min(1, clip/(n + 1e-6)).
//!
//! The result stays on the device, where [`adamw`](super::adamw) reads it: no one waits for it between backward and the
//! step. Bound by memory: reads every gradient once.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Backend, Buffer, Category, Cost, DType, Device, Graph, Kept};
use crate::error::{Result, expect_buffer};
use crate::simd::Isa;

/// One tensor's gradient.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// g, f32.
    pub values: &'a Buffer,
    /// The entries that count, where not all do: u64 words, bit i%64 of word i/64 set where entry i does.
    pub mask: Option<&'a Buffer>,
}

impl Gradient<'_> {
    pub(super) fn check(&self, op: &'static str, len: usize) -> Result<()> {
        expect_buffer(op, "gradient", self.values, DType::F32, len)?;
        self.mask.map_or(Ok(()), |mask| expect_buffer(op, "mask", mask, DType::U64, len.div_ceil(64)))
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.values.size_bytes() + self.mask.map_or(0, Buffer::size_bytes)
    }
}

/// A norm and what follows from it, on the device.
#[derive(Debug)]
pub struct GradNorm {
    /// u64 `[3]`: the bits of n (f64); the first tensor that is not finite, or [`ALL_FINITE`]; the bits of c (f64).
    words: Buffer,
}

/// The word that stands where no tensor is at fault; as in tensors.cuh.
const ALL_FINITE: u64 = u64::MAX;

/// A norm, and whether it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// n; 0 on Meta.
    pub norm: f64,
    /// The first tensor that holds an infinity or a NaN.
    pub first_non_finite: Option<usize>,
}

impl Reading {
    fn of(words: &[u64]) -> Reading {
        let first_non_finite = (words[1] != ALL_FINITE).then_some(words[1] as usize);
        Reading { norm: f64::from_bits(words[0]), first_non_finite }
    }

    /// Waits for the norm that a graph left; as [`GradNorm::read`].
    ///
    /// # Errors
    /// The GPU's.
    pub fn kept(graph: &mut Graph, kept: Kept, device: &Device) -> Result<Reading> {
        match device.is_meta() {
            true => Ok(Reading { norm: 0.0, first_non_finite: None }),
            false => Ok(Reading::of(&graph.result(kept)?)),
        }
    }
}

impl GradNorm {
    /// Waits for the norm.
    ///
    /// # Errors
    /// The GPU's.
    pub fn read(&self) -> Result<Reading> {
        if self.words.device().is_meta() {
            return Ok(Reading { norm: 0.0, first_non_finite: None });
        }
        Ok(Reading::of(&self.words.download::<u64>()?))
    }

    /// Has the graph that is captured leave it for the host.
    ///
    /// # Errors
    /// The GPU's, and where nothing is captured.
    pub fn keep(&self) -> Result<Kept> {
        self.words.keep()
    }

    /// Where a kernel finds it.
    pub(super) fn words(&self) -> &Buffer {
        &self.words
    }

    /// c, on the CPU; none where a gradient is not finite.
    pub(super) fn host_scale(&self) -> Option<f64> {
        let words = self.words.as_slice::<u64>();
        (words[1] == ALL_FINITE).then_some(f64::from_bits(words[2]))
    }
}

/// The norm of `gradients`, and the factor that brings it down to `clip`.
///
/// # Errors
/// A gradient that is not f32, a mask that is not u64 or of another length, or no memory.
pub fn grad_norm(device: &Device, gradients: &[Gradient<'_>], clip: Option<f64>) -> Result<GradNorm> {
    const OP: &str = "grad_norm";
    for gradient in gradients {
        gradient.check(OP, gradient.values.len())?;
    }
    // Nothing is above an infinite norm.
    let clip = clip.unwrap_or(f64::INFINITY);
    let mut words = device.alloc(Category::Workspace, DType::U64, 3)?;
    let elements: usize = gradients.iter().map(|gradient| gradient.values.len()).sum();
    let read = gradients.iter().map(Gradient::size_bytes).sum();
    let cost = Cost::new(OP, 2 * elements, read, words.size_bytes());
    let work = (device.backend() == Backend::Cuda).then(|| cuda::Work::alloc(device, gradients)).transpose()?;
    if let (Some(_), Some(mut work)) = (device.gpu(), work) {
        device.launch(cost, |gpu| cuda::grad_norm(gpu, gradients, clip, &mut work, &mut words))?;
        return Ok(GradNorm { words });
    }
    device.run(cost, || {
        let squares: Vec<f64> = gradients
            .iter()
            .map(|g| cpu::sum_of_squares(Isa::best(), g.values.f32(), g.mask.map(Buffer::as_slice)))
            .collect();
        let norm = squares.iter().sum::<f64>().sqrt();
        let first = squares.iter().position(|square| !square.is_finite()).map_or(ALL_FINITE, |at| at as u64);
        let scale = (clip / (norm + 1e-6)).min(1.0);
        words.as_mut_slice::<u64>().copy_from_slice(&[norm.to_bits(), first, scale.to_bits()]);
    });
    Ok(GradNorm { words })
}
