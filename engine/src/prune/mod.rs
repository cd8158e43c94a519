//! Pruning: criteria score the entries of a matrix, a pattern says how many go and within what they are compared, an
//! allocation gives matrices sparsities of their own.
//!
//! Magnitude and random look at a matrix alone and prune it as it is loaded ([`prune_linear`]). Wanda and SparseGPT must know
//! its inputs ([`Inputs`], [`prune_calibrated`]), which [`crate::calibrate`] collects layer by layer.

mod allocation;
mod apply;
mod criterion;
mod detect;
mod factor;
mod pattern;
mod sparsegpt;
#[cfg(test)]
mod tests;
mod wanda;

use half::{bf16, f16};
use kernels::ops::select;
use kernels::{Buffer, DType};

pub use allocation::{Allocation, Matrix, Owl, matrices};
pub use apply::{Inputs, Pruning, prune_calibrated, prune_linear, prune_model, workspace_bytes};
pub(crate) use apply::{narrowed, packed, rounded, widened};
pub use criterion::Criterion;
pub use detect::{PRUNED, detect};
pub use pattern::Pattern;
pub use sparsegpt::Hessian;
pub use wanda::InputNorms;

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
    /// A layer's sparsity by OWL that leaves nothing, or is none.
    #[error(
        "OWL would give layer {layer} a sparsity of {sparsity:.4}, outside [0, 1): take --owl-lambda below {largest:.4}"
    )]
    OwlRange {
        /// The decoder layer.
        layer: usize,
        /// What it would get.
        sparsity: f64,
        /// The λ from which on a layer's is outside.
        largest: f64,
    },
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
    /// A criterion that was not shown the layer's inputs.
    #[error("{tensor}: {criterion} needs the layer's inputs on calibration text; prune the model with calibration")]
    Uncalibrated {
        /// The tensor.
        tensor: String,
        /// The criterion.
        criterion: &'static str,
    },
    /// Calibration inputs with an infinity or a NaN.
    #[error(
        "{tensor}: its calibration inputs are not finite (feature {feature}); the model overflows on this text: measure its \
         perplexity before pruning, or give other text"
    )]
    NonFiniteInputs {
        /// The tensor.
        tensor: String,
        /// The first such input feature.
        feature: usize,
    },
    /// A Hessian that no dampening makes positive definite.
    #[error(
        "{tensor}: the inputs' second moments cannot be inverted, even dampened by {dampening} times their mean; give more \
         calibration samples, or use --criterion wanda"
    )]
    Singular {
        /// The tensor.
        tensor: String,
        /// The last dampening that was tried.
        dampening: f64,
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

/// The mask of a `[rows, cols]` matrix of f32, f16 or bf16 entries: a flat bitmap over its row-major entries, set where an
/// entry is kept. Entries that are zero already score lowest under every criterion. On Meta the mask has no bits.
///
/// # Errors
/// A weight that is not finite, a pattern that does not fit, or no memory.
pub fn mask_for(pruning: &Pruning, entries: &Buffer, cols: usize, tensor: &str) -> Result<Buffer> {
    let rows = entries.len() / cols.max(1);
    let kept = pruning.pattern.kept(rows, cols, tensor)?;
    let scores = pruning.criterion.scores(entries, tensor, pruning.seed)?;
    let compared = scores.as_ref().unwrap_or(entries);
    let selection = match pruning.pattern {
        Pattern::Unstructured { .. } => select::keep_largest(compared, rows * cols - kept)?,
        Pattern::NM { n, m } => select::keep_n_of_m(compared, cols, n, m)?,
    };
    match selection.first_unusable()? {
        None => Ok(selection.mask),
        Some(at) => {
            Err(Error::NonFinite { tensor: tensor.into(), row: at / cols, col: at % cols, value: entry(compared, at)? })
        }
    }
}

/// One entry of a matrix.
fn entry(entries: &Buffer, at: usize) -> Result<f32> {
    Ok(match entries.dtype() {
        DType::F16 => entries.download::<f16>()?[at].to_f32(),
        DType::BF16 => entries.download::<bf16>()?[at].to_f32(),
        _ => entries.download::<f32>()?[at],
    })
}

/// The sparsity after cycle `cycle` (from 1) of `cycles` toward `target`: 1 − (1 − s)^(i/c), so that each cycle removes the
/// same share of what is left.
pub fn imp_sparsity(target: f64, cycle: usize, cycles: usize) -> f64 {
    if cycle >= cycles { target } else { 1.0 - (1.0 - target).powf(cycle as f64 / cycles as f64) }
}
