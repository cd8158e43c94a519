//! What pages read of a run: the fields of run.json. A report of an older version lacks some, and its page what they show.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::report::{Matrix, Perplexities, Seconds, Step};

/// The most bytes of a report; a run of a million steps has about 200 million.
const LIMIT: u64 = 1 << 30;

/// A run.
#[derive(Clone, Debug, Deserialize)]
pub struct RunData {
    pub version: String,
    pub model: String,
    pub device: String,
    pub gpu: Option<String>,
    pub method: String,
    pub criterion: Option<String>,
    pub pattern: Option<String>,
    pub seed: u64,
    pub perplexity: Perplexities,
    pub eval_windows: Option<usize>,
    pub sparsity: Sparsity,
    pub trainable: Trainable,
    pub tokens_per_second: Option<f64>,
    pub seconds: Seconds,
    pub peak_bytes: PeakBytes,
    #[serde(default)]
    pub cycles: Vec<Cycle>,
    #[serde(default)]
    pub steps: Vec<Step>,
    #[serde(default)]
    pub matrices: Vec<Matrix>,
    #[serde(default)]
    pub step_detail: Option<StepDetail>,
    #[serde(default)]
    pub validation: Vec<Validated>,
    #[serde(default)]
    pub config: Map<String, Value>,
    #[serde(default)]
    pub command: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Sparsity {
    pub weights: f64,
    pub with_adapters: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Trainable {
    pub count: usize,
    pub percent: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PeakBytes {
    pub total: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Cycle {
    pub cycle: usize,
    pub sparsity: f64,
    pub pruned: Option<f64>,
    pub retrained: Option<f64>,
    #[serde(default, deserialize_with = "numbers")]
    pub layer_errors: Vec<f64>,
}

/// A validation perplexity after so many steps.
#[derive(Clone, Debug, Deserialize)]
pub struct Validated {
    pub cycle: usize,
    pub step: usize,
    #[serde(deserialize_with = "number")]
    pub perplexity: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct StepDetail {
    pub step: usize,
    pub seconds: f64,
    pub categories: Vec<String>,
    pub memory: Vec<Vec<u64>>,
    pub kernels: Vec<Kernel>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Kernel {
    pub kernel: String,
    pub calls: u64,
    pub seconds: f64,
    pub flops: u64,
    pub bytes: u64,
}

/// A number; what overflowed stands in JSON as null.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
}

fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let numbers: Vec<Option<f64>> = Vec::deserialize(from)?;
    Ok(numbers.into_iter().map(|number| number.unwrap_or(f64::INFINITY)).collect())
}

impl RunData {
    /// From a report as it is written.
    pub fn of(report: Value) -> Result<RunData, Failure> {
        serde_json::from_value(report).map_err(|e| Failure::failed(format!("the report: {e}")))
    }

    /// From a file that `retrain` or `pretrain` wrote.
    ///
    /// # Errors
    /// One that is not there, or something else.
    pub fn read(path: &Path) -> Result<RunData, Failure> {
        let cannot = |reason: String| Failure::failed(format!("{}: {reason}", path.display()));
        let kind = std::fs::metadata(path).map_err(|e| cannot(format!("cannot be read: {e}")))?;
        if !kind.is_file() || kind.len() > LIMIT {
            return Err(cannot("is no report: name a .json file that retrain --report wrote".into()));
        }
        let file = File::open(path).map_err(|e| cannot(format!("cannot be read: {e}")))?;
        // As it is read: its text is not held beside what it says.
        serde_json::from_reader(BufReader::new(file))
            .map_err(|e| cannot(format!("is no report of retrain or pretrain: {e}")))
    }

    /// Of what it was pruned by, as people say it.
    pub fn pattern(&self) -> String {
        match self.pattern.as_deref() {
            None => "dense".into(),
            Some(pattern) => match pattern.strip_prefix("unstructured ").and_then(|share| share.parse::<f64>().ok()) {
                Some(share) => format!("{} %", super::scale::short(100.0 * share)),
                None => pattern.into(),
            },
        }
    }

    /// The perplexity of the validation text after the last step, by which a learning rate is chosen.
    pub fn validation(&self) -> Option<f64> {
        self.validation.last().map(|validated| validated.perplexity)
    }

    /// Steps of each cycle.
    pub fn steps_of_a_cycle(&self) -> usize {
        self.steps.iter().map(|step| step.step).max().unwrap_or(0)
    }
}
