//! How a matrix was pruned, seen from its zeros alone.

use super::Pattern;

/// The share of zeros from which a matrix counts as pruned. Trained matrices that are not have next to none.
pub const PRUNED: f64 = 0.01;

/// The longest group that is tried. The shortest is first: a matrix of 1:2 is one of 2:4 too, and is called what says more.
const LONGEST: usize = 32;

/// How full groups must be for n:m to be what was meant: criteria leave n of every m, and a few of those that stay are zero anyway.
/// Unstructured zeros fill their fullest group far above the mean.
const FULL: f64 = 0.95;

/// Counts a matrix' zeros and tells how they lie; `values` is row-major, `cols` wide. Nothing for a matrix that was not pruned. In every m
/// consecutive entries of a row of an n:m matrix at most n are not zero, and nearly always n; any other is unstructured, with its
/// share of zeros.
pub fn detect(values: &[f32], cols: usize) -> Option<Pattern> {
    let stored = values.iter().filter(|x| **x != 0.0).count();
    let sparsity = 1.0 - stored as f64 / values.len().max(1) as f64;
    // Of nothing but zeros no share is left to keep, so no pattern says it.
    if values.is_empty() || sparsity < PRUNED || stored == 0 {
        return None;
    }
    let group = |m: usize| {
        // One that is fuller than all could be is soon met where zeros lie anywhere, and the search is over.
        let most = (stored as f64 / (FULL * (values.len() / m) as f64)).min((m - 1) as f64);
        let fullest = values.chunks_exact(m).try_fold(0, |fullest: usize, group| {
            let fullest = fullest.max(group.iter().filter(|x| **x != 0.0).count());
            (fullest as f64 <= most).then_some(fullest)
        });
        fullest.map(|n| Pattern::NM { n, m })
    };
    let groups = (2..=LONGEST).filter(|m| cols.is_multiple_of(*m)).find_map(group);
    groups.or(Some(Pattern::Unstructured { sparsity }))
}

#[cfg(test)]
mod tests {
    use kernels::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::prune::{Criterion, Pruning, mask_for};

    /// A random matrix, pruned by magnitude.
    fn pruned(rows: usize, cols: usize, pattern: Pattern, mut state: u64) -> Vec<f32> {
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1 << 24) as f32) - 0.5
        };
        let mut values: Vec<f32> = (0..rows * cols).map(|_| random()).collect();
        let entries = Device::cpu().upload(kernels::Category::Weights, &values).unwrap();
        let pruning = Pruning { criterion: Criterion::Magnitude, pattern, seed: 0 };
        let mask = mask_for(&pruning, &entries, cols, "w").unwrap();
        let mask = mask.as_slice::<u64>();
        for (i, x) in values.iter_mut().enumerate() {
            if mask[i / 64] >> (i % 64) & 1 == 0 {
                *x = 0.0;
            }
        }
        values
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_was_pruned_is_told(rows in 8usize..24, groups in 8usize..20, of in 0usize..12, percent in 5usize..95, seed: u64) {
            const GROUPS: [(usize, usize); 10] =
                [(1, 2), (2, 4), (1, 4), (4, 8), (3, 8), (8, 16), (1, 3), (3, 5), (5, 12), (31, 32)];
            let nm = GROUPS.get(of).map(|&(n, m)| Pattern::NM { n, m });
            let cols = 4 * groups * GROUPS.get(of).map_or(32, |nm| nm.1);
            let pattern = nm.unwrap_or(Pattern::Unstructured { sparsity: percent as f64 / 100.0 });
            let found = detect(&pruned(rows, cols, pattern, seed), cols).unwrap();
            match pattern {
                Pattern::NM { .. } => prop_assert_eq!(found, pattern),
                Pattern::Unstructured { sparsity } => {
                    prop_assert!(matches!(found, Pattern::Unstructured { .. }), "{found}");
                    prop_assert!((found.sparsity() - sparsity).abs() <= 1.0 / (rows * cols) as f64);
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_was_not_pruned_has_no_pattern() {
        assert_eq!(detect(&[], 0), None);
        assert_eq!(detect(&[0.0; 64], 8), None);
        let mut values = [1.0; 256];
        assert_eq!(detect(&values, 16), None);
        values[3] = 0.0;
        assert_eq!(detect(&values, 16), None);
    }

    #[test]
    fn zeros_among_what_stays_do_not_hide_a_pattern() {
        let mut values: Vec<f32> = (0..1024).map(|i| if i % 4 < 2 { 1.0 } else { 0.0 }).collect();
        values[0] = 0.0;
        values[33] = 0.0;
        assert_eq!(detect(&values, 32), Some(Pattern::NM { n: 2, m: 4 }));
    }
}
