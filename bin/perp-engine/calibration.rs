//! Pruning that must see a model's inputs: the text it is shown, and how it goes.

use std::path::PathBuf;

use clap::Args;
use engine::calibrate::{Calibration, sample_windows};
use engine::checkpoint::Tokenizer;
use engine::prune::Criterion;

use crate::allocation::AllocationArgs;
use crate::args::small;
use crate::error::Failure;
use crate::planned::Target;
use crate::text::Texts;

/// Calibration text.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct CalibrationArgs {
    /// Text that --criterion wanda and sparsegpt and --allocation owl show the model: .txt files (a document each), .jsonl or .json files (a document
    /// a line, in the field "text"), these also as .gz or .zst, .parquet files (a document a row, in the column "text"), or
    /// quoted patterns, or data sets of the hub, such as allenai/c4:en; retrain's demo shows its training text.
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub calibrate: Vec<PathBuf>,
    /// Windows of --seq-len tokens drawn from it. Their activations that do not fit in memory go to a temporary file, in the
    /// folder that TMPDIR names.
    #[arg(long, default_value_t = 128, value_parser = small, value_name = "N")]
    pub calibration_samples: usize,
}

impl CalibrationArgs {
    /// The text for `criterion` and `allocation`, `default` where none is named; none where they need none.
    pub fn files(
        &self,
        criterion: Criterion,
        allocation: &AllocationArgs,
        default: &[PathBuf],
    ) -> Result<Vec<PathBuf>, Failure> {
        let needs = criterion.needs_calibration() || allocation.needs_calibration();
        let who = || match criterion.needs_calibration() {
            true => format!("--criterion {criterion}"),
            false => "--allocation owl".to_string(),
        };
        match (needs, self.calibrate.is_empty()) {
            (false, true) => Ok(Vec::new()),
            (false, false) => Err(Failure::usage(format!(
                "--calibrate goes with --criterion wanda or sparsegpt, or with --allocation owl: {criterion} looks at the weights alone"
            ))),
            (true, false) => Ok(self.calibrate.clone()),
            (true, true) if default.is_empty() => Err(Failure::usage(format!(
                "{} needs calibration text: name text with --calibrate, such as files of .txt, .jsonl or .parquet",
                who()
            ))),
            (true, true) => Ok(default.to_vec()),
        }
    }

    /// Draws the windows from `files`, if there are any.
    pub fn read(
        &self,
        texts: &Texts<'_>,
        tokenizer: &Tokenizer,
        files: &[PathBuf],
        (batch, seq_len): (usize, usize),
        seed: u64,
        target: Target,
    ) -> Result<Option<Calibration>, Failure> {
        if files.is_empty() {
            return Ok(None);
        }
        let stream = texts.stream(tokenizer, files, "calibration")?;
        let windows = sample_windows(&stream, self.calibration_samples, seq_len, seed)?;
        Ok(Some(Calibration { windows, batch, limit: target.limit }))
    }
}

/// The mean of layers' errors; 0 of none.
pub fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len().max(1) as f64
}

/// What is said of a Hessian that needed more dampening than usual.
pub fn dampened(tensor: &str, dampening: f64) -> String {
    format!(
        "{tensor}: its inputs' second moments are not positive definite; dampened by {dampening} of their mean instead of 0.01"
    )
}
