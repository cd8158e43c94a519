//! 16-bit floating-point numbers to f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Isa;

/// out[i] = x[i]
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

/// out[i] = x[i]
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
    use std::arch::x86_64::*;
    for (x, out) in x.chunks(16).zip(out.chunks_mut(16)) {
        let lanes = ((1u32 << x.len()) - 1) as u16;
        // SAFETY: the masks keep both accesses within their chunks.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(lanes, x.as_ptr().cast());
            _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, _mm512_cvtph_ps(halves));
        }
    }
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
