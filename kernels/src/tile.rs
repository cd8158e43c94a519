//! Dense products of small tiles: an MR×NR tile of C held in registers while it walks packed panels of A and B. Attention is
//! built from these; products with weights are [`spmm`](crate::spmm)'s.

use crate::simd::Isa;

/// The largest MR and NR of any micro-kernel: workspaces sized by them do not depend on the instruction set.
pub(crate) const TALLEST: usize = 14;
pub(crate) const WIDEST: usize = 32;
/// A micro-kernel and its tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    isa: Isa,
    /// Rows.
    pub mr: usize,
    /// Columns.
    pub nr: usize,
}

impl Tile {
    pub(crate) fn of(isa: Isa) -> Tile {
        match isa {
            // 28 accumulators, 2 registers of B, 1 for the broadcast of A: 31 of 32.
            Isa::Avx512 | Isa::Amx => Tile { isa, mr: 14, nr: 32 },
            // 12 accumulators, 2 registers of B, 1 for the broadcast of A: 15 of 16.
            Isa::Avx2 => Tile { isa, mr: 6, nr: 16 },
            Isa::Portable => Tile { isa, mr: 4, nr: 16 },
        }
    }

    /// c[i·ldc + j] (+)= Σ_p a[p·mr + i] · b[p·nr + j] for p < kc.
    ///
    /// # Safety
    /// `c` points to a tile of `mr` rows `ldc` apart with `nr` elements each, and `a` and `b` hold `kc` rows.
    unsafe fn run(&self, kc: usize, a: &[f32], b: &[f32], c: *mut f32, ldc: usize, add: bool) {
        debug_assert!(a.len() >= kc * self.mr && b.len() >= kc * self.nr);
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller vouches for the pointers, and an `Isa` exists only where the machine has it.
            Isa::Avx512 | Isa::Amx => unsafe { x86::avx512::<14, 1>(kc, a.as_ptr(), b.as_ptr(), c, ldc, add) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::avx2::<6, 1>(kc, a.as_ptr(), b.as_ptr(), c, ldc, add) },
            // SAFETY: the caller vouches for `c`.
            _ => unsafe { portable::<4, 1>(kc, a, b, c, ldc, add) },
        }
    }

    /// [`Tile::run`] on a tile of C that is `[mr, nr]` without gaps.
    pub(crate) fn multiply(&self, kc: usize, a: &[f32], b: &[f32], c: &mut [f32], add: bool) {
        assert!(a.len() >= kc * self.mr && b.len() >= kc * self.nr && c.len() >= self.mr * self.nr);
        // SAFETY: the lengths were just checked.
        unsafe { self.run(kc, a, b, c.as_mut_ptr(), self.nr, add) }
    }

    /// c[i·nr + j] (+)= Σ_p a[i·nr + p] · b[p·nr + j] for p < nr: A is itself a tile of an earlier product, so that a
    /// chain of products needs no packing between them.
    pub(crate) fn multiply_tile(&self, a: &[f32], b: &[f32], c: &mut [f32], add: bool) {
        let (mr, nr) = (self.mr, self.nr);
        assert!(a.len() >= mr * nr && b.len() >= nr * nr && c.len() >= mr * nr);
        let out = c.as_mut_ptr();
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the lengths were just checked, and an `Isa` exists only where the machine has it.
            Isa::Avx512 | Isa::Amx => unsafe { x86::avx512::<1, 32>(nr, a.as_ptr(), b.as_ptr(), out, nr, add) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::avx2::<1, 16>(nr, a.as_ptr(), b.as_ptr(), out, nr, add) },
            // SAFETY: the lengths were just checked.
            _ => unsafe { portable::<1, 16>(nr, a, b, out, nr, add) },
        }
    }
}

// In each kernel, element (i, p) of A is at `p·STEP + i·ROW`.

/// # Safety
/// As [`Tile::run`] with a 4×16 tile.
unsafe fn portable<const STEP: usize, const ROW: usize>(
    kc: usize,
    a: &[f32],
    b: &[f32],
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    let mut sum = [[0.0f32; 16]; 4];
    for (p, b) in b.chunks_exact(16).take(kc).enumerate() {
        for (i, sum) in sum.iter_mut().enumerate() {
            let a = a[p * STEP + i * ROW];
            for (sum, b) in sum.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    for (i, sum) in sum.iter().enumerate() {
        // SAFETY: row `i` of the tile has sixteen elements.
        let out = unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), 16) };
        for (out, sum) in out.iter_mut().zip(sum) {
            *out = if add { *out + sum } else { *sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`super::Tile::run`] with a 14×32 tile, on a machine with AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512<const STEP: usize, const ROW: usize>(
        kc: usize,
        mut a: *const f32,
        mut b: *const f32,
        c: *mut f32,
        ldc: usize,
        add: bool,
    ) {
        let mut sum = [[_mm512_setzero_ps(); 2]; 14];
        for _ in 0..kc {
            // SAFETY: `a` and `b` stay within `kc` rows of their panels.
            unsafe {
                let b0 = _mm512_loadu_ps(b);
                let b1 = _mm512_loadu_ps(b.add(16));
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i * ROW));
                    sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                    sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
                }
                a = a.add(STEP);
                b = b.add(32);
            }
        }
        for (i, sum) in sum.iter().enumerate() {
            for (half, sum) in sum.iter().enumerate() {
                // SAFETY: `c` stays within its tile.
                unsafe {
                    let out = c.add(i * ldc + half * 16);
                    let value = if add { _mm512_add_ps(_mm512_loadu_ps(out), *sum) } else { *sum };
                    _mm512_storeu_ps(out, value);
                }
            }
        }
    }

    /// # Safety
    /// As [`super::Tile::run`] with a 6×16 tile, on a machine with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<const STEP: usize, const ROW: usize>(
        kc: usize,
        mut a: *const f32,
        mut b: *const f32,
        c: *mut f32,
        ldc: usize,
        add: bool,
    ) {
        let mut sum = [[_mm256_setzero_ps(); 2]; 6];
        for _ in 0..kc {
            // SAFETY: `a` and `b` stay within `kc` rows of their panels.
            unsafe {
                let b0 = _mm256_loadu_ps(b);
                let b1 = _mm256_loadu_ps(b.add(8));
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*a.add(i * ROW));
                    sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
                }
                a = a.add(STEP);
                b = b.add(16);
            }
        }
        for (i, sum) in sum.iter().enumerate() {
            for (half, sum) in sum.iter().enumerate() {
                // SAFETY: `c` stays within its tile.
                unsafe {
                    let out = c.add(i * ldc + half * 8);
                    let value = if add { _mm256_add_ps(_mm256_loadu_ps(out), *sum) } else { *sum };
                    _mm256_storeu_ps(out, value);
                }
            }
        }
    }
}
