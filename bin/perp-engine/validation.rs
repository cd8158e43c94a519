//! Validation while a run trains: the perplexity of the same sequences, every so many steps.

use std::fmt;
use std::path::PathBuf;

use engine::data::{self, Packing, TokenStream, Windows};
use engine::error::Error;
use engine::evaluate;
use engine::model::Model;
use serde::{Deserialize, Serialize};

use crate::args::positive;
use crate::error::Failure;

/// Validation while the run trains.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation")]
pub struct ValidationArgs {
    /// Measure the validation perplexity before the first step, after every N steps, and after the last.
    #[arg(long, value_parser = positive, value_name = "N")]
    pub eval_every: Option<usize>,
    /// Validation text, in the forms that --train takes [default: that of --eval].
    #[arg(long, num_args = 1.., requires = "eval_every", value_name = "TEXT")]
    pub validation: Vec<PathBuf>,
    /// Validation sequences, drawn from the validation text by the seed; the same ones each time.
    #[arg(long, default_value_t = 100, value_parser = positive, requires = "eval_every", value_name = "N")]
    pub validation_windows: usize,
}

/// A validation perplexity.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Validated {
    pub cycle: usize,
    /// Steps of the cycle that were done.
    pub step: usize,
    pub perplexity: f64,
    pub seconds: f64,
}

impl fmt::Display for Validated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "validation {:.2} at step {}", self.perplexity, self.step)
    }
}

/// What is measured, and when.
pub struct Validation {
    every: usize,
    windows: Windows,
    chosen: Vec<usize>,
}

impl Validation {
    /// Draws the sequences of a text.
    pub fn new(
        args: &ValidationArgs,
        stream: TokenStream,
        packing: Packing,
        seq_len: usize,
        seed: u64,
    ) -> Result<Validation, Failure> {
        let windows = Windows::new(stream, packing, seq_len)?;
        let chosen = data::sample(windows.count(), args.validation_windows, seed);
        Ok(Validation { every: args.eval_every.unwrap_or(usize::MAX), windows, chosen })
    }

    /// BLAKE3 of the text's tokens.
    pub fn hash(&self) -> String {
        self.windows.stream().hash()
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.chosen.len()
    }

    /// Whether it is time after `step` of `steps`.
    pub fn is_due(&self, step: usize, steps: usize) -> bool {
        step.is_multiple_of(self.every) || step == steps
    }

    /// The perplexity of `model`, `batch` sequences at a time.
    pub fn measure(&self, model: &dyn Model, batch: usize) -> Result<f64, Error> {
        Ok(evaluate::validation(model, &self.windows, &self.chosen, batch)?.value)
    }

    /// All that decides about the perplexity, beside the model.
    pub fn key(&self, batch: usize) -> String {
        let sequences: Vec<&[u32]> = self.chosen.iter().map(|index| self.windows.tokens(*index)).collect();
        format!("{} {:?} {batch}", data::hash(&sequences.concat()), self.chosen)
    }
}
