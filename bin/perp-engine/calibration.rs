//! Pruning that must see a model's inputs: the text it is shown, and how it goes.

use std::path::PathBuf;

use clap::Args;
use engine::calibrate::{self, Calibration, Progress, sample_windows};
use engine::checkpoint::Tokenizer;
use engine::model::Model;
use engine::prune::{self, Criterion, Pruning};
use kernels::Device;

use crate::args::small;
use crate::error::Failure;
use crate::planned::Target;
use crate::progress::Console;
use crate::session::{self, Opened};
use crate::tables;
use crate::text::Texts;

/// Calibration text.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct CalibrationArgs {
    /// Text that --criterion wanda and sparsegpt show the model: .txt files (a document each), .jsonl or .json files (a document
    /// a line, in the field "text"), these also as .gz or .zst, .parquet files (a document a row, in the column "text"), or
    /// quoted patterns; retrain's demo shows its training text.
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub calibrate: Vec<PathBuf>,
    /// Windows of --seq-len tokens drawn from it. Their activations that do not fit in memory go to a temporary file, in the
    /// folder that TMPDIR names.
    #[arg(long, default_value_t = 128, value_parser = small, value_name = "N")]
    pub calibration_samples: usize,
}

impl CalibrationArgs {
    /// The text for `criterion`, `default` where none is named; none where it needs none.
    pub fn files(&self, criterion: Criterion, default: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
        match (criterion.needs_calibration(), self.calibrate.is_empty()) {
            (false, true) => Ok(Vec::new()),
            (false, false) => Err(Failure::usage(format!(
                "--calibrate goes with --criterion wanda or sparsegpt: {criterion} looks at the weights alone"
            ))),
            (true, false) => Ok(self.calibrate.clone()),
            (true, true) if default.is_empty() => Err(Failure::usage(format!(
                "--criterion {criterion} needs calibration text: name text with --calibrate, such as files of .txt, .jsonl or .parquet"
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

/// Loads a model and prunes it; returns each decoder layer's error where it was calibrated.
pub fn load_pruned(
    console: &Console,
    device: &Device,
    opened: &Opened,
    pruning: &Pruning,
    calibration: Option<&Calibration>,
    offloaded_layers: usize,
) -> Result<(Box<dyn Model>, Vec<f64>), Failure> {
    let Some(_) = calibration else {
        return Ok((session::load(console, device, opened, Some(*pruning), offloaded_layers)?, Vec::new()));
    };
    let mut model = session::load(console, device, opened, None, offloaded_layers)?;
    let errors = prune(console, &mut *model, pruning, calibration)?;
    Ok((model, errors))
}

/// Prunes a model; returns each decoder layer's error where it was calibrated.
pub fn prune(
    console: &Console,
    model: &mut dyn Model,
    pruning: &Pruning,
    calibration: Option<&Calibration>,
) -> Result<Vec<f64>, Failure> {
    let Some(calibration) = calibration else {
        prune::prune_model(model, pruning, &mut |_, _| {})?;
        return Ok(Vec::new());
    };
    let batches = calibration.windows.len().div_ceil(calibration.batch);
    let layers = model.info().layers;
    let mut task = console.task("prune", 2 * (batches * layers) as u64);
    let reports = calibrate::prune_model(model, pruning, calibration, &mut |progress| {
        match progress {
        Progress::Pass { layer, done, .. } => task.update(done as u64, &format!("layer {layer}")),
        Progress::Dampened { tensor, dampening } => task.say(&format!(
            "{tensor}: its inputs' second moments are not positive definite; dampened by {dampening} of their mean instead of 0.01"
        )),
        Progress::Layer(report) => task.say(&format!(
            "layer {}: pruning changed {} of what it adds",
            report.layer,
            tables::percent(report.error)
        )),
    }
    })?;
    let errors: Vec<f64> = reports.iter().map(|report| report.error).collect();
    let mean = mean(&errors);
    task.finish(&format!(
        "{layers} layers at {} by {}, mean error {}",
        pruning.pattern,
        pruning.criterion,
        tables::percent(mean)
    ));
    Ok(errors)
}

/// The mean of layers' errors; 0 of none.
pub fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len().max(1) as f64
}
