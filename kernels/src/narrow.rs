//! Xᵀ·U where U has few columns: the gradients of adapters.
//!
//! X `[n, F]` and U `[n, r]` are activations in [strips](crate::strips), so the tokens over which is summed lie side by side. The
//! columns of U lie across the lanes, for which a strip of it is transposed, and an element of X is broadcast against
//! them: X is read once, where it stands, and nothing of it is packed. One vector of U serves as many features as registers
//! hold sums of. Every sum goes through the tokens in order, whatever the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::shared::SharedRows;
use crate::simd::{F32x16, Isa, LANES, prefetch, transpose};
use crate::simd_fn;
use crate::strips::{STRIP, Strip, Strips, strips};

/// Features of a task at most: their sums stay in the first-level cache while tokens pass.
const FEATURES: usize = 128;
/// Tasks are of whole groups of so many features where there are more.
const GROUP: usize = 12;

/// Where C = Xᵀ·U `[F, r]` is added to.
#[derive(Debug)]
pub enum Output<'a> {
    /// C row-major.
    Rows(&'a mut [f32]),
    /// Cᵀ `[r, F]` row-major.
    Transposed(&'a mut [f32]),
}

/// C += Xᵀ·U with all threads, for X `[n, features]` and U `[n, rank]`.
///
/// # Panics
/// If X and U differ in tokens, or C has another number of elements.
pub fn add_products(isa: Isa, (x, features): (Strips<'_>, usize), (u, rank): (Strips<'_>, usize), out: Output<'_>) {
    let (data, transposed) = match out {
        Output::Rows(data) => (data, false),
        Output::Transposed(data) => (data, true),
    };
    assert!(x.tokens() == u.tokens() && data.len() == features * rank, "X, U and C fit each other");
    if data.is_empty() {
        return;
    }
    let tasks = features.div_ceil(FEATURES / GROUP * GROUP).next_multiple_of(rayon::current_num_threads());
    let step = features.div_ceil(tasks).next_multiple_of(GROUP);
    let out = SharedRows::new(data, if transposed { features } else { rank });
    (0..features.div_ceil(step)).into_par_iter().for_each(|task| {
        let some = task * step..features.min((task + 1) * step);
        for column in (0..rank).step_by(LANES) {
            let columns = column..rank.min(column + LANES);
            let mut sums = [F32x16::ZERO; FEATURES];
            sum(isa, (x, some.clone()), (u, columns.clone()), &mut sums);
            for (feature, sums) in some.clone().zip(&sums) {
                for (column, sum) in columns.clone().zip(sums.0) {
                    let (row, at) = if transposed { (column, feature) } else { (feature, column) };
                    // SAFETY: a feature is one task's alone.
                    unsafe { out.row(row, at, 1)[0] += sum };
                }
            }
        }
    });
}

/// sums[i][j] += Σ over tokens of x[t, features.start + i]·u[t, columns.start + j], for at most sixteen columns.
fn sum(
    isa: Isa,
    (x, features): (Strips<'_>, Range<usize>),
    (u, columns): (Strips<'_>, Range<usize>),
    sums: &mut [F32x16; FEATURES],
) {
    let mut turned = [0.0; STRIP * LANES];
    for strip in strips(x.tokens()) {
        let Strip { width, .. } = strip;
        let rows = u.rows(strip, columns.start);
        transpose(isa, (columns.len(), width), rows, width, &mut turned, LANES);
        let rows = &x.rows(strip, features.start)[..features.len() * width];
        add_strip(isa, width, rows, &turned[..width * LANES], &mut sums[..features.len()]);
    }
}

simd_fn! {
    /// sums[i] += Σ_t rows[i·width + t]·u[t·16..]
    fn add_strip(width: usize, rows: &[f32], u: &[f32], sums: &mut [F32x16]) {
        let (mut rows, mut sums) = (rows, sums);
        while !sums.is_empty() {
            let taken = match sums.len() {
                GROUP.. => GROUP,
                4.. => 4,
                _ => 1,
            };
            let (mine, rest) = rows.split_at(taken * width);
            // The next group's lines: more streams than a machine follows by itself.
            prefetch(bytemuck::cast_slice(&rest[..rest.len().min(GROUP * width)]));
            let (of_group, others) = std::mem::take(&mut sums).split_at_mut(taken);
            match taken {
                GROUP => add_group::<GROUP, FMA>(width, mine, u, of_group),
                4 => add_group::<4, FMA>(width, mine, u, of_group),
                _ => add_group::<1, FMA>(width, mine, u, of_group),
            }
            (rows, sums) = (rest, others);
        }
    }
}

#[inline(always)]
fn add_group<const N: usize, const FMA: bool>(width: usize, rows: &[f32], u: &[f32], sums: &mut [F32x16]) {
    assert!(rows.len() == N * width && u.len() >= width * LANES && sums.len() == N);
    let mut of_group: [F32x16; N] = std::array::from_fn(|i| sums[i]);
    for t in 0..width {
        let u = F32x16::load(&u[t * LANES..]);
        for (i, sum) in of_group.iter_mut().enumerate() {
            // SAFETY: `rows` has `width` elements for each of N features.
            let x = unsafe { *rows.get_unchecked(i * width + t) };
            *sum = u.madd::<FMA>(F32x16::splat(x), *sum);
        }
    }
    sums.copy_from_slice(&of_group);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing;
    use crate::strips::from_rows;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        testing::random(len, seed).iter().map(|x| *x as f32).collect()
    }

    proptest! {
        #[test]
        fn products_equal_the_naive_loop_for_any_shape(
            n in 0usize..230, features in 0usize..300, rank in 0usize..40, transposed: bool, first in 0usize..3,
        ) {
            let all = first + features;
            let (x, u, c) = (random(n * all, 1), random(n * rank, 2), random(features * rank, 3));
            let (in_x, in_u) = (from_rows(&x, n, all), from_rows(&u, n, rank));
            for isa in Isa::available() {
                let mut got = c.clone();
                let out = if transposed { Output::Transposed(&mut got) } else { Output::Rows(&mut got) };
                let x_strips = Strips::new(&in_x, n, all).from_feature(first);
                add_products(isa, (x_strips, features), (Strips::new(&in_u, n, rank), rank), out);
                for (at, got) in got.iter().enumerate() {
                    let (f, j) = if transposed { (at % features, at / features) } else { (at / rank, at % rank) };
                    let terms = (0..n).map(|t| f64::from(x[t * all + first + f]) * f64::from(u[t * rank + j]));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let want = f64::from(c[at]) + sum;
                    let tolerance = (n as f64 + 2.0) * 2f64.powi(-24) * (size + f64::from(c[at]).abs());
                    prop_assert!((f64::from(*got) - want).abs() <= tolerance, "{at} on {isa:?}: {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let (n, features, rank) = (200, 301, 17);
        let (x, u) = (from_rows(&random(n * features, 1), n, features), from_rows(&random(n * rank, 2), n, rank));
        for isa in Isa::available() {
            let run = |threads| {
                let mut c = vec![0.0; features * rank];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let of = ((Strips::new(&x, n, features), features), (Strips::new(&u, n, rank), rank));
                pool.install(|| add_products(isa, of.0, of.1, Output::Rows(&mut c)));
                c
            };
            assert!(run(1) == run(7), "on {isa:?}");
        }
    }
}
