//! The upper Cholesky factor of an inverse, without the inverse.
//!
//! SparseGPT needs U, upper triangular, with UᵀU = H⁻¹. Inverting H and factoring the inverse costs 2·n³ multiply-adds and
//! loses digits twice. Instead: let R be H with its features in reverse order and R = L·Lᵀ. L read backwards is an upper
//! triangular V with H = V·Vᵀ, so that H⁻¹ = V⁻ᵀ·V⁻¹, and U = V⁻¹ is L⁻¹ read backwards. That is n³/6 multiply-adds for L and as
//! many for its inverse. In f64, because H's small eigenvalues are what U is made of.
//!
//! Both are blocked by rows. A block's work is a product with all rows before it, shared by threads, and something small with
//! its own rows. Every sum is in an order that depends on n alone.

use kernels::simd::Isa;
use kernels::simd_fn;
use rayon::prelude::*;

/// Rows of a block.
const BLOCK: usize = 64;
/// Rows that a task takes through one tile of what it multiplies.
const ROWS: usize = 8;
/// Columns of a tile: the tile of a block, 64·256·8 bytes, stays in the second-level cache.
const TILE: usize = 256;

/// The lower factor L of a positive definite matrix `[n, n]`, of which the lower triangle is read, in its place. What is
/// above the diagonal stays as it is.
///
/// # Errors
/// The first row whose pivot is not above zero.
pub(super) fn cholesky(a: &mut [f64], n: usize) -> Result<(), usize> {
    let isa = Isa::best();
    for first in (0..n).step_by(BLOCK) {
        let last = n.min(first + BLOCK);
        let width = last - first;
        let (block, below) = a[first * n..].split_at_mut(width * n);
        // The block's rows of L so far, which its own rows and all below are multiplied with.
        let panel: Vec<f64> = block.chunks(n).flat_map(|row| row[..first].iter().copied()).collect();
        block.par_chunks_mut(ROWS * n).for_each(|rows| subtract_products(isa, rows, n, &panel, first, width));
        let mut diagonal = vec![0.0; width * width];
        for i in 0..width {
            let (above, row) = block.split_at_mut(i * n);
            let row = &mut row[first..first + i + 1];
            for j in 0..i {
                let other = &above[j * n + first..][..j + 1];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let pivot = row[i] - dot(&row[..i], &row[..i]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(first + i);
            }
            row[i] = pivot.sqrt();
            diagonal[i * width..][..i + 1].copy_from_slice(row);
        }
        below.par_chunks_mut(ROWS * n).for_each(|rows| {
            subtract_products(isa, rows, n, &panel, first, width);
            for row in rows.chunks_mut(n) {
                let row = &mut row[first..last];
                for j in 0..width {
                    let other = &diagonal[j * width..][..j + 1];
                    row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
                }
            }
        });
    }
    Ok(())
}

/// The inverse of a lower triangular matrix `[n, n]` with nothing zero on its diagonal, in its place. What is above the
/// diagonal is not read and becomes zero.
pub(super) fn invert_lower(l: &mut [f64], n: usize) {
    let isa = Isa::best();
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let (done, rest) = l.split_at_mut(first * n);
        let block = &mut rest[..width * n];
        // D⁻¹ of the block on the diagonal, row by row.
        let mut inverse = vec![0.0; width * width];
        for i in 0..width {
            let row = &block[i * n + first..][..i + 1];
            let (above, out) = inverse.split_at_mut(i * width);
            for (p, factor) in row[..i].iter().enumerate() {
                let from = &above[p * width..][..p + 1];
                out.iter_mut().zip(from).for_each(|(out, x)| *out -= factor * x);
            }
            out[..i].iter_mut().for_each(|x| *x /= row[i]);
            out[i] = 1.0 / row[i];
        }
        // T = L·(inverse so far), then −D⁻¹·T.
        let mut product = vec![0.0; width * first];
        if first > 0 {
            let tasks = product.par_chunks_mut(ROWS * first).zip(block.par_chunks(ROWS * n));
            tasks.for_each(|(out, rows)| add_triangular_product(isa, out, rows, n, done, first));
        }
        block.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            row[..first].fill(0.0);
            for p in 0..=i {
                if first > 0 {
                    add_scaled(isa, &mut row[..first], &product[p * first..][..first], -inverse[i * width + p]);
                }
            }
            row[first..first + width].copy_from_slice(&inverse[i * width..][..width]);
            row[first + width..].fill(0.0);
        });
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

simd_fn! {
    /// For each row of `n`: row[first + j] −= Σ_{p < first} row[p]·panel[j, p] for the `width` rows j of `panel` `[width, first]`.
    fn subtract_products(rows: &mut [f64], n: usize, panel: &[f64], first: usize, width: usize) {
        for tile in (0..first).step_by(TILE) {
            let end = first.min(tile + TILE);
            for row in rows.chunks_mut(n) {
                let (done, next) = row.split_at_mut(first);
                let x = &done[tile..end];
                for (j, next) in next[..width].iter_mut().enumerate() {
                    *next -= lane_dot::<FMA>(x, &panel[j * first + tile..j * first + end]);
                }
            }
        }
    }
}

simd_fn! {
    /// out[i, c] += Σ_{p < first} rows[i, p]·inverse[p, c] for rows of `first` in `out`, of `n` in `rows` and `inverse`, which
    /// is lower triangular.
    fn add_triangular_product(out: &mut [f64], rows: &[f64], n: usize, inverse: &[f64], first: usize) {
        for tile in (0..first).step_by(TILE) {
            let end = first.min(tile + TILE);
            // Rows of the inverse above the tile's columns are zero there.
            for at in (tile..first).step_by(4) {
                let count = 4.min(first - at);
                for (out, row) in out.chunks_mut(first).zip(rows.chunks(n)) {
                    let out = &mut out[tile..end];
                    let from = |k: usize| &inverse[(at + k) * n + tile..(at + k) * n + end];
                    if count == 4 {
                        let (a, b, c, d) = (from(0), from(1), from(2), from(3));
                        let f = [row[at], row[at + 1], row[at + 2], row[at + 3]];
                        for (i, out) in out.iter_mut().enumerate() {
                            let sum = fused::<FMA>(f[0], a[i], *out);
                            let sum = fused::<FMA>(f[1], b[i], sum);
                            let sum = fused::<FMA>(f[2], c[i], sum);
                            *out = fused::<FMA>(f[3], d[i], sum);
                        }
                    } else {
                        for k in 0..count {
                            let (from, factor) = (from(k), row[at + k]);
                            for (i, out) in out.iter_mut().enumerate() {
                                *out = fused::<FMA>(factor, from[i], *out);
                            }
                        }
                    }
                }
            }
        }
    }
}

simd_fn! {
    /// out += factor·x
    fn add_scaled(out: &mut [f64], x: &[f64], factor: f64) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = fused::<FMA>(factor, *x, *out);
        }
    }
}

/// a·b + c, rounded once where the instruction set can.
#[inline(always)]
fn fused<const FMA: bool>(a: f64, b: f64, c: f64) -> f64 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Σ x·y in sixteen sums, so that it goes by vectors.
#[inline(always)]
fn lane_dot<const FMA: bool>(x: &[f64], y: &[f64]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = dot(xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            sums[lane] = fused::<FMA>(x[lane], y[lane], sums[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix: X·Xᵀ + I of pseudo-random X.
    fn positive(n: usize) -> Vec<f64> {
        let x: Vec<f64> = (0..n * n).map(|i| ((i * 7919 % 1009) as f64 - 504.0) / 504.0).collect();
        let entry = |i: usize, j: usize| dot(&x[i * n..][..n], &x[j * n..][..n]) + f64::from(u8::from(i == j));
        (0..n * n).map(|at| entry(at / n, at % n)).collect()
    }

    /// Of entries up to about n in magnitude, after n sums of products: n²·2⁻⁵³ each, and condition numbers up to n² more.
    fn close(got: f64, want: f64, n: usize) -> bool {
        (got - want).abs() <= 1e-9 * n as f64
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix_and_the_inverse_inverts() {
        for n in [1, 2, 7, 64, 65, 130, 300] {
            let a = positive(n);
            let mut l = a.clone();
            cholesky(&mut l, n).unwrap();
            for i in 0..n {
                for j in 0..=i {
                    let product = dot(&l[i * n..][..j + 1], &l[j * n..][..j + 1]);
                    assert!(close(product, a[i * n + j], n), "{n}: [{i}, {j}] is {product}, not {}", a[i * n + j]);
                }
            }
            let mut inverse = l.clone();
            invert_lower(&mut inverse, n);
            for i in 0..n {
                for j in 0..=i {
                    let product: f64 = (j..=i).map(|p| l[i * n + p] * inverse[p * n + j]).sum();
                    let want = f64::from(u8::from(i == j));
                    assert!(close(product, want, n), "{n}: [{i}, {j}] of the inverse's product is {product}");
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_told_by_its_row() {
        for (n, bad) in [(3, 0), (100, 70), (100, 99)] {
            let mut a = positive(n);
            a[bad * n + bad] = -1.0;
            assert_eq!(cholesky(&mut a, n), Err(bad));
        }
        let mut a = positive(4);
        a[2 * 4 + 2] = f64::NAN;
        assert_eq!(cholesky(&mut a, 4), Err(2));
    }
}
