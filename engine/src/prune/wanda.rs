//! Wanda: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695), equation 1
//! and section 3: |w_ij|·‖x_j‖₂, compared within each output row (in n:m, within groups).

use kernels::ops::select;
use kernels::{Buffer, Category, DType, Device};
use rayon::prelude::*;

use super::{Error, Pattern, Result};

/// Norms of a linear layer's input features over calibration tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct InputNorms {
    /// Roots of the mean squares `[in]`: ‖x_j‖₂ up to a factor that is the same for all.
    norms: Vec<f32>,
}

impl InputNorms {
    /// From the sums of squares of each feature over `tokens` tokens.
    ///
    /// # Errors
    /// Sums that are not finite; names `tensor`, the weight that reads them.
    pub fn new(squares: &[f64], tokens: usize, tensor: &str) -> Result<InputNorms> {
        let norms: Vec<f32> = squares.iter().map(|sum| (sum / tokens.max(1) as f64).sqrt() as f32).collect();
        match norms.iter().position(|norm| !norm.is_finite()) {
            Some(feature) => Err(Error::NonFiniteInputs { tensor: tensor.into(), feature }),
            None => Ok(InputNorms { norms }),
        }
    }

    /// ‖x_j‖ of each feature, up to a factor that is the same for all layers which the same tokens go through.
    pub(crate) fn roots(&self) -> &[f32] {
        &self.norms
    }

    /// The mask of a `[rows, in]` matrix, and Σ of the removed entries' squared scores. `values` are its finite entries.
    pub(super) fn choose(&self, device: &Device, mut values: Vec<f32>, pattern: Pattern) -> Result<(Buffer, f64)> {
        let cols = self.norms.len();
        values.par_chunks_mut(cols.max(1)).for_each(|row| {
            row.iter_mut().zip(&self.norms).for_each(|(w, norm)| *w = score(*w, *norm));
        });
        let mut scores = device.alloc(Category::Workspace, DType::F32, values.len())?;
        scores.write(bytemuck::cast_slice(&values))?;
        let selection = match pattern {
            Pattern::Unstructured { .. } => select::keep_largest_of_rows(&scores, cols, pattern.removed(cols))?,
            Pattern::NM { n, m } => select::keep_n_of_m(&scores, cols, n, m)?,
        };
        let words = selection.mask.read::<u64>()?;
        let removed = values.iter().enumerate().filter(|(at, _)| words[at / 64] >> (at % 64) & 1 == 0);
        let cost = removed.map(|(_, score)| f64::from(*score).powi(2)).sum();
        drop(words);
        Ok((selection.mask, cost))
    }
}

/// |w|·norm, finite. Only an entry that is zero already scores zero, so that it goes before those of a feature that
/// calibration never saw.
fn score(w: f32, norm: f32) -> f32 {
    if w == 0.0 { 0.0 } else { (w.abs() * norm).clamp(f32::MIN_POSITIVE, f32::MAX) }
}
