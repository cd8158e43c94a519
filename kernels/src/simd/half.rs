//! 16-bit floating-point numbers to f32.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::{LANES, lane_mask};
use crate::device::Element;

/// `out[i] = x[i]`
///
/// # Panics
/// If the lengths differ.
pub fn widen_f16(isa: Isa, x: &[f16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        // SAFETY: the machine has AVX-512, and the lengths are equal.
        return unsafe { widen_f16_avx512(x, out) };
    }
    let _ = isa; // Where there is no x86, nothing asks for it.
    x.convert_to_f32_slice(out);
}

/// `out[i] = x[i]`
///
/// # Panics
/// If the lengths differ.
pub fn widen_bf16(x: &[bf16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    // A bf16 is the upper half of its f32, so this compiles to shifts of whole vectors.
    out.iter_mut().zip(x).for_each(|(out, x)| *out = f32::from_bits(u32::from(x.to_bits()) << 16));
}

/// # Safety
/// On a machine with AVX-512 F, BW and VL; `x` and `out` are of one length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn widen_f16_avx512(x: &[f16], out: &mut [f32]) {
    for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let lanes = lane_mask(x.len());
        // SAFETY: the masks keep both accesses within their chunks.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, f16::load_lanes(lanes, x.as_ptr())) };
    }
}

/// An element type of matrices that are read as f32.
pub trait Widen: Element {
    /// The element as f32.
    fn widen(self) -> f32;

    /// Sixteen elements.
    ///
    /// # Safety
    /// On a machine with [`Isa::Avx512`]; `from` has sixteen elements.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(from: *const Self) -> __m512;

    /// The elements that `lanes` has bits for; zeros in the other places.
    ///
    /// # Safety
    /// On a machine with [`Isa::Avx512`]; `from` has those elements.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_lanes(lanes: u16, from: *const Self) -> __m512;
}

impl Widen for f32 {
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_lanes(lanes: u16, from: *const f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_maskz_loadu_ps(lanes, from) }
    }
}

impl Widen for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f16) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_lanes(lanes: u16, from: *const f16) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(lanes, from.cast()) })
    }
}

impl Widen for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const bf16) -> __m512 {
        // SAFETY: the caller's.
        upper_halves(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_lanes(lanes: u16, from: *const bf16) -> __m512 {
        // SAFETY: the caller's.
        upper_halves(unsafe { _mm256_maskz_loadu_epi16(lanes, from.cast()) })
    }
}

/// A bf16 is the upper half of its f32.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_halves(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_pattern_is_widened_exactly() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let halves: Vec<f16> = all.iter().map(|bits| f16::from_bits(*bits)).collect();
        let brains: Vec<bf16> = all.iter().map(|bits| bf16::from_bits(*bits)).collect();
        for length in [halves.len(), halves.len() - 1, 17, 3, 0] {
            let mut out = vec![0.0; length];
            for isa in Isa::available() {
                widen_f16(isa, &halves[..length], &mut out);
                for (x, out) in halves.iter().zip(&out) {
                    assert!(x.to_f32() == *out || x.is_nan() && out.is_nan(), "{x} became {out} on {isa:?}");
                }
            }
            widen_bf16(&brains[..length], &mut out);
            for (x, out) in brains.iter().zip(&out) {
                assert!(x.to_f32() == *out || x.is_nan() && out.is_nan(), "{x} became {out}");
            }
        }
    }
}
