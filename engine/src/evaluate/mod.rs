//! Perplexity.
//!
//! The tokens are cut into ⌊tokens/L⌋ windows of L, the tail dropped; the perplexity is exp of the mean over windows of
//! each window's mean next-token loss over its L−1 predictions. [`validation`] is the same over chosen sequences of a text,
//! [`Protocol`] the texts that are compared by name.

mod protocol;

use kernels::ops::head_loss::IGNORED;

use crate::autograd::{Tape, head_loss_values};
use crate::data::{self, Windows};
use crate::error::Result;
use crate::model::{self, Model, TokenBatch};

pub use protocol::Protocol;

/// A perplexity and what it was measured on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// exp(mean loss).
    pub value: f64,
    /// Windows measured.
    pub windows: usize,
}

/// Measures the perplexity of `tokens` in windows of `seq_len`, `batch` windows at a time; at most `max_windows` of them
/// where given. `progress` hears of windows done and in all.
///
/// # Errors
/// Text shorter than one window, a token outside the vocabulary, or no memory.
pub fn perplexity(
    model: &dyn Model,
    tokens: &[u32],
    seq_len: usize,
    batch: usize,
    max_windows: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let all = data::windows(tokens, seq_len)?;
    let windows = max_windows.unwrap_or(usize::MAX).min(all.len());
    let mut total = 0.0;
    for start in (0..windows).step_by(batch) {
        let count = batch.min(windows - start);
        let part = &tokens[start * seq_len..(start + count) * seq_len];
        total += window_losses(model, TokenBatch::new(part.to_vec(), seq_len))?.iter().sum::<f64>();
        progress(start + count, windows);
    }
    Ok(Perplexity { value: (total / windows as f64).exp(), windows })
}

/// The perplexity of the sequences `chosen` of `windows`, `batch` at a time: exp of the mean of their mean losses.
///
/// # Errors
/// A token outside the vocabulary, or no memory.
pub fn validation(model: &dyn Model, windows: &Windows, chosen: &[usize], batch: usize) -> Result<Perplexity> {
    let mut total = 0.0;
    for chosen in chosen.chunks(batch) {
        let sequences: Vec<&[u32]> = chosen.iter().map(|index| windows.tokens(*index)).collect();
        total += window_losses(model, TokenBatch::padded(&sequences))?.iter().sum::<f64>();
    }
    Ok(Perplexity { value: (total / chosen.len() as f64).exp(), windows: chosen.len() })
}

/// The mean next-token loss of each sequence of a batch.
fn window_losses(model: &dyn Model, batch: TokenBatch) -> Result<Vec<f64>> {
    let device = model::device_of(model);
    let mut tape = Tape::inference(&device);
    let hidden = model.forward(&mut tape, &batch)?;
    let targets = batch.targets();
    let losses = head_loss_values(model.head(), hidden.tensor(), &targets)?.read()?;
    let mean = |(losses, targets): (&[f32], &[u32])| {
        let counted = || losses.iter().zip(targets).filter(|(_, target)| **target != IGNORED);
        counted().map(|(loss, _)| f64::from(*loss)).sum::<f64>() / counted().count() as f64
    };
    Ok(losses.chunks(batch.seq_len()).zip(targets.chunks(batch.seq_len())).map(mean).collect())
}
