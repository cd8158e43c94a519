//! Pruning: criteria score the entries of a matrix, a pattern says how many go and within what they are compared.

mod apply;
mod criterion;
mod pattern;
#[cfg(test)]
mod tests;

use kernels::ops::select;
use kernels::{Buffer, Category, Device};

pub use apply::{Pruning, prune_linear, prune_model};
pub use criterion::Criterion;
pub use pattern::Pattern;

/// The result of pruning calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in pruning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From an operation or a device.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// A sparsity that leaves nothing, or is none.
    #[error("sparsity {0} is outside [0, 1): it is the share of weights to remove, such as 0.5")]
    Sparsity(f64),
    /// Text that is no n:m pattern.
    #[error("'{0}' is no pattern: write n:m, the number kept of every m consecutive weights, such as 2:4 (n < m ≤ 32)")]
    Pattern(String),
    /// A matrix that cannot be cut into groups.
    #[error("{tensor}: its {cols} input features cannot be cut into groups of {m} for {n}:{m}; use --sparsity instead")]
    Groups {
        /// The tensor.
        tensor: String,
        /// Its input features.
        cols: usize,
        /// Kept of a group.
        n: usize,
        /// Size of a group.
        m: usize,
    },
    /// A weight that is an infinity or a NaN.
    #[error("{tensor}: entry [{row}, {col}] is {value}; the model is damaged")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Output feature.
        row: usize,
        /// Input feature.
        col: usize,
        /// What stands there.
        value: f32,
    },
}

/// The mask of a `[rows, cols]` matrix: a flat bitmap over its row-major entries, set where an entry is kept. Entries that
/// are zero already score lowest under every criterion.
///
/// # Errors
/// A weight that is not finite, a pattern that does not fit, or no memory.
pub fn mask_for(
    device: &Device,
    criterion: Criterion,
    pattern: Pattern,
    weights: &[f32],
    cols: usize,
    tensor: &str,
    seed: u64,
) -> Result<Buffer> {
    let mut values = device.upload(Category::Workspace, weights)?;
    mask_of(device, criterion, pattern, values.f32_mut(), cols, tensor, seed)
}

/// [`mask_for`] of weights that are overwritten by their scores.
fn mask_of(
    device: &Device,
    criterion: Criterion,
    pattern: Pattern,
    weights: &mut [f32],
    cols: usize,
    tensor: &str,
    seed: u64,
) -> Result<Buffer> {
    if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
        let (row, col) = (at / cols, at % cols);
        return Err(Error::NonFinite { tensor: tensor.into(), row, col, value: weights[at] });
    }
    let rows = weights.len() / cols.max(1);
    let kept = pattern.kept(rows, cols, tensor)?;
    criterion.score(weights, tensor, seed);
    Ok(match pattern {
        Pattern::Unstructured { .. } => select::keep_largest(device, weights, rows * cols - kept)?,
        Pattern::NM { n, m } => select::keep_n_of_m(device, weights, cols, n, m)?,
    })
}

/// The sparsity after cycle `cycle` (from 1) of `cycles` toward `target`: 1 − (1 − s)^(i/c), so that each cycle removes the
/// same share of what is left.
pub fn imp_sparsity(target: f64, cycle: usize, cycles: usize) -> f64 {
    if cycle >= cycles { target } else { 1.0 - (1.0 - target).powf(cycle as f64 / cycles as f64) }
}
