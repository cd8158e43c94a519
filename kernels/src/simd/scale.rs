//! Copies of f32 blocks whose rows are too short for a call each.

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::{LANES, lane_mask};
use crate::simd_fn;

/// to[i·to_stride + j] = scale·from[i·from_stride + j] for i < rows, j < cols.
///
/// # Panics
/// If a slice is too short for the shape.
pub fn scale_block(
    isa: Isa,
    (rows, cols): (usize, usize),
    scale: f32,
    from: &[f32],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    assert!(rows == 0 || cols == 0 || from.len() >= (rows - 1) * from_stride + cols);
    // SAFETY: the rows lie in `from`, as was just checked, and no one writes them meanwhile.
    unsafe { scale_block_from(isa, (rows, cols), scale, from.as_ptr(), from_stride, to, to_stride) }
}

/// The same through a pointer, where others write between the rows of `from`.
///
/// # Panics
/// If `to` is too short for the shape.
///
/// # Safety
/// `from` points to `rows` rows of `cols` elements, `from_stride` apart, which no one writes meanwhile.
pub unsafe fn scale_block_from(
    isa: Isa,
    (rows, cols): (usize, usize),
    scale: f32,
    from: *const f32,
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(to.len() >= (rows - 1) * to_stride + cols);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        // SAFETY: the machine has AVX-512F, `from` is the caller's, and the rows were just seen to lie in `to`.
        return unsafe { masked(rows, cols, scale, from, from_stride, to.as_mut_ptr(), to_stride) };
    }
    for (row, to) in to.chunks_mut(to_stride).enumerate().take(rows) {
        // SAFETY: the caller's.
        let from = unsafe { std::slice::from_raw_parts(from.add(row * from_stride), cols) };
        scale_row(isa, from, scale, &mut to[..cols]);
    }
}

simd_fn! {
    fn scale_row(from: &[f32], scale: f32, to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = scale * from);
    }
}

/// # Safety
/// On a machine with AVX-512F; `from` and `to` point to `rows` rows of `cols` elements, their strides apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn masked(
    rows: usize,
    cols: usize,
    scale: f32,
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    use std::arch::x86_64::*;
    let scale = _mm512_set1_ps(scale);
    for at in (0..cols).step_by(LANES) {
        let lanes = lane_mask(cols - at);
        for row in 0..rows {
            // SAFETY: row `row` of both has an element for each lane of the mask.
            unsafe {
                let x = _mm512_maskz_loadu_ps(lanes, from.add(row * from_stride + at));
                _mm512_mask_storeu_ps(to.add(row * to_stride + at), lanes, _mm512_mul_ps(x, scale));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_scaled_and_nothing_else_is_written() {
        for isa in Isa::available() {
            for (rows, cols) in [(0, 3), (1, 1), (3, 14), (64, 16), (5, 33), (7, 96)] {
                let (from_stride, to_stride) = (cols + 3, cols + 2);
                let from: Vec<f32> = (0..rows * from_stride).map(|x| x as f32).collect();
                let mut to = vec![-1.0; rows * to_stride];
                scale_block(isa, (rows, cols), 0.5, &from, from_stride, &mut to, to_stride);
                for (at, x) in to.iter().enumerate() {
                    let (i, j) = (at / to_stride, at % to_stride);
                    let want = if j < cols { 0.5 * (i * from_stride + j) as f32 } else { -1.0 };
                    assert_eq!(*x, want, "({i}, {j}) of {rows}×{cols} on {isa:?}");
                }
            }
        }
    }
}
