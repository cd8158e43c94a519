//! Transposes of blocks to f32: between tokens × features, which tensors are, and features × tokens, where vectors of tokens
//! meet one weight.

#[cfg(target_arch = "x86_64")]
use super::lane_mask;
use super::{Isa, Widen};

/// Rows and columns of the block that the vector registers transpose at once.
const SIDE: usize = 16;
/// Elements of a row that are asked for before they are needed.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 3 * SIDE;
/// Rows this many elements apart are more streams than the machine follows by itself; nearer ones are a block of scratch.
#[cfg(target_arch = "x86_64")]
const FAR: usize = 256;

/// to[j·to_stride + i] = from[i·from_stride + j] for i < rows, j < cols.
///
/// # Panics
/// If a slice is too short for the shape.
pub fn transpose<T: Widen>(
    isa: Isa,
    shape: (usize, usize),
    from: &[T],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    let (rows, cols) = shape;
    assert!(rows == 0 || cols == 0 || to.len() >= (cols - 1) * to_stride + rows);
    // SAFETY: the rows lie in `to`, as was just checked.
    unsafe { blocks::<_, false>(isa, shape, from, from_stride, to.as_mut_ptr(), to_stride) }
}

/// The same through a pointer, where others write between the rows of `to`: `to[…] += …` where `add` says so.
///
/// # Panics
/// If `from` is too short for the shape.
///
/// # Safety
/// `to` points to `cols` rows of `rows` elements, `to_stride` apart, which no one else touches meanwhile.
pub unsafe fn transpose_into(
    isa: Isa,
    shape: (usize, usize),
    from: &[f32],
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
    add: bool,
) {
    if add {
        // SAFETY: the caller's.
        unsafe { blocks::<_, true>(isa, shape, from, from_stride, to, to_stride) }
    } else {
        // SAFETY: the caller's.
        unsafe { blocks::<_, false>(isa, shape, from, from_stride, to, to_stride) }
    }
}

/// # Safety
/// As [`transpose_into`].
unsafe fn blocks<T: Widen, const ADD: bool>(
    isa: Isa,
    (rows, cols): (usize, usize),
    from: &[T],
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * from_stride + cols);
    for i in (0..rows).step_by(SIDE) {
        let height = SIDE.min(rows - i);
        for j in (0..cols).step_by(SIDE) {
            let width = SIDE.min(cols - j);
            let from = &from[i * from_stride + j..];
            // SAFETY: row j of `to` has an element i.
            let to = unsafe { to.add(j * to_stride + i) };
            #[cfg(target_arch = "x86_64")]
            if isa.has_avx512() {
                assert!(from.len() >= (height - 1) * from_stride + width);
                // SAFETY: the machine has AVX-512, and both blocks, of `height` by `width` and turned, are there.
                unsafe {
                    match (height, width) {
                        (SIDE, SIDE) if from_stride >= FAR => {
                            for row in 0..SIDE {
                                fetch(from.as_ptr().wrapping_add(row * from_stride + AHEAD));
                            }
                            transpose_16::<_, ADD>(from.as_ptr(), from_stride, to, to_stride);
                        }
                        (SIDE, SIDE) => transpose_16::<_, ADD>(from.as_ptr(), from_stride, to, to_stride),
                        _ => transpose_part::<_, ADD>((height, width), from.as_ptr(), from_stride, to, to_stride),
                    }
                }
                continue;
            }
            for row in 0..height {
                for col in 0..width {
                    let x = from[row * from_stride + col].widen();
                    // SAFETY: (j + col, i + row) lies in `to`.
                    unsafe {
                        let to = to.add(col * to_stride + row);
                        *to = if ADD { *to + x } else { x };
                    }
                }
            }
        }
    }
    let _ = isa; // Where there is no x86, nothing asks for it.
}

/// Asks for a line of a row to come. Into the second level: rows a multiple of 4 KiB apart would push each other out of the first.
#[cfg(target_arch = "x86_64")]
fn fetch<T>(row: *const T) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: every x86-64 has the instruction, and it never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(row.cast()) };
}

/// # Safety
/// On a machine with [`Isa::Avx512`]; `from` and `to` point to sixteen rows of sixteen elements, their strides apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_16<T: Widen, const ADD: bool>(from: *const T, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    let mut r = [_mm512_setzero_ps(); SIDE];
    for (i, r) in r.iter_mut().enumerate() {
        // SAFETY: row `i` has sixteen elements.
        *r = unsafe { T::load(from.add(i * from_stride)) };
    }
    for (column, value) in turn(&r).into_iter().enumerate() {
        // SAFETY: row `column` of the transpose has sixteen elements.
        unsafe {
            let to = to.add(column * to_stride);
            _mm512_storeu_ps(to, if ADD { _mm512_add_ps(_mm512_loadu_ps(to), value) } else { value });
        }
    }
}

/// The same for a block of `height` rows and `width` columns, at most sixteen of each.
///
/// # Safety
/// On a machine with [`Isa::Avx512`]; `from` points to `height` rows of `width` elements, `to` to `width` rows of `height`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_part<T: Widen, const ADD: bool>(
    (height, width): (usize, usize),
    from: *const T,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    use std::arch::x86_64::*;
    let (across, down) = (lane_mask(width), lane_mask(height));
    let mut r = [_mm512_setzero_ps(); SIDE];
    for (i, r) in r.iter_mut().enumerate().take(height) {
        // SAFETY: row `i` has `width` elements, and the mask reads no more.
        *r = unsafe { T::load_lanes(across, from.add(i * from_stride)) };
    }
    for (column, value) in turn(&r).into_iter().enumerate().take(width) {
        // SAFETY: row `column` of the transpose has `height` elements, and the masks touch no more.
        unsafe {
            let to = to.add(column * to_stride);
            let held = if ADD { _mm512_maskz_loadu_ps(down, to) } else { _mm512_setzero_ps() };
            _mm512_mask_storeu_ps(to, down, if ADD { _mm512_add_ps(held, value) } else { value });
        }
    }
}

/// The transpose of sixteen rows of sixteen.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn turn(r: &[std::arch::x86_64::__m512; SIDE]) -> [std::arch::x86_64::__m512; SIDE] {
    use std::arch::x86_64::*;
    // Pairs of rows, then quadruples within the 128-bit lanes: lane l of t[4g + c] is column 4l + c of rows 4g..4g + 4.
    let mut t = [_mm512_setzero_ps(); SIDE];
    for g in 0..4 {
        let low01 = _mm512_unpacklo_ps(r[4 * g], r[4 * g + 1]);
        let high01 = _mm512_unpackhi_ps(r[4 * g], r[4 * g + 1]);
        let low23 = _mm512_unpacklo_ps(r[4 * g + 2], r[4 * g + 3]);
        let high23 = _mm512_unpackhi_ps(r[4 * g + 2], r[4 * g + 3]);
        t[4 * g] = _mm512_shuffle_ps::<0x44>(low01, low23);
        t[4 * g + 1] = _mm512_shuffle_ps::<0xEE>(low01, low23);
        t[4 * g + 2] = _mm512_shuffle_ps::<0x44>(high01, high23);
        t[4 * g + 3] = _mm512_shuffle_ps::<0xEE>(high01, high23);
    }
    // A 4×4 transpose of 128-bit lanes for each c gathers the columns.
    let mut columns = [_mm512_setzero_ps(); SIDE];
    for c in 0..4 {
        let even01 = _mm512_shuffle_f32x4::<0x88>(t[c], t[4 + c]);
        let odd01 = _mm512_shuffle_f32x4::<0xDD>(t[c], t[4 + c]);
        let even23 = _mm512_shuffle_f32x4::<0x88>(t[8 + c], t[12 + c]);
        let odd23 = _mm512_shuffle_f32x4::<0xDD>(t[8 + c], t[12 + c]);
        columns[c] = _mm512_shuffle_f32x4::<0x88>(even01, even23);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd01, odd23);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xDD>(even01, even23);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xDD>(odd01, odd23);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned<T: Widen>(isa: Isa, (rows, cols): (usize, usize), from: &[T], from_stride: usize) -> Vec<f32> {
        let mut to = vec![f32::NAN; rows * cols];
        transpose(isa, (rows, cols), from, from_stride, &mut to, rows);
        to
    }

    #[test]
    fn every_shape_is_transposed_and_nothing_else_is_written() {
        for isa in Isa::available() {
            for (rows, cols) in [(1, 1), (16, 16), (15, 17), (64, 64), (33, 48), (3, 70), (14, 32), (30, 14), (20, 300)]
            {
                let (from_stride, to_stride) = (cols + 3, rows + 2);
                let from: Vec<f32> = (0..rows * from_stride).map(|x| x as f32).collect();
                let mut to = vec![-1.0; cols * to_stride];
                transpose(isa, (rows, cols), &from, from_stride, &mut to, to_stride);
                for (at, x) in to.iter().enumerate() {
                    let (j, i) = (at / to_stride, at % to_stride);
                    let want = if i < rows { (i * from_stride + j) as f32 } else { -1.0 };
                    assert_eq!(*x, want, "({i}, {j}) of {rows}×{cols} on {isa:?}");
                }
                let halves: Vec<half::f16> = from.iter().map(|x| half::f16::from_f32(*x % 2048.0)).collect();
                let brains: Vec<half::bf16> = from.iter().map(|x| half::bf16::from_f32(*x % 256.0)).collect();
                for (at, got) in turned(isa, (rows, cols), &halves, from_stride).iter().enumerate() {
                    assert_eq!(*got, from[at % rows * from_stride + at / rows] % 2048.0, "{at} of f16 on {isa:?}");
                }
                for (at, got) in turned(isa, (rows, cols), &brains, from_stride).iter().enumerate() {
                    assert_eq!(*got, from[at % rows * from_stride + at / rows] % 256.0, "{at} of bf16 on {isa:?}");
                }
                let once = to.clone();
                // SAFETY: `to` has `cols` rows of `rows` elements, `to_stride` apart.
                unsafe { transpose_into(isa, (rows, cols), &from, from_stride, to.as_mut_ptr(), to_stride, true) };
                for (at, (x, once)) in to.iter().zip(&once).enumerate() {
                    let want = if at % to_stride < rows { 2.0 * once } else { -1.0 };
                    assert_eq!(*x, want, "element {at} of {rows}×{cols} added on {isa:?}");
                }
            }
        }
    }
}
