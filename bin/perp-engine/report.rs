//! run.json: everything a run measured, and what it takes to repeat it.

use std::collections::BTreeMap;
use std::path::Path;

use engine::checkpoint::{check_replaceable, replace_file};
use engine::model::MatrixChange;
use engine::peft::MergeReport;
use engine::retrain::StepRecord;
use kernels::Category;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Failure;
use crate::live::Probed;
use crate::reports;
use crate::validation::Validated;

/// Perplexities; null where nothing was evaluated.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Perplexities {
    pub dense: Option<f64>,
    pub pruned: Option<f64>,
    pub retrained: Option<f64>,
}

/// Shares of zeros among the prunable weights, and with LoRA's parameters counted in.
#[derive(Debug, Default, Serialize)]
pub struct SparsityReport {
    pub weights: f64,
    pub with_adapters: f64,
    /// Of each decoder layer.
    pub layers: Vec<f64>,
}

/// Parameters that train, and their percentage of all parameters, adapters included.
#[derive(Debug, Serialize)]
pub struct Trainable {
    pub count: usize,
    pub percent: f64,
    /// The percentage's mean over all steps: less where layers are frozen in some.
    pub aggregated_percent: f64,
}

/// Wall seconds of each phase.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Seconds {
    pub prune: f64,
    pub retrain: f64,
    pub eval: f64,
}

/// The accountant's high-water mark over training, in bytes.
#[derive(Debug, Serialize)]
pub struct PeakBytes {
    pub total: u64,
    pub by_category: BTreeMap<&'static str, u64>,
}

impl PeakBytes {
    /// From the accountant's report.
    pub fn of(peak: &kernels::device::MemoryReport) -> PeakBytes {
        PeakBytes { total: peak.total, by_category: peak.iter().collect() }
    }
}

/// One optimizer step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub step: usize,
    pub cycle: usize,
    pub loss: f64,
    pub lr: f64,
    pub grad_norm: f64,
    pub seconds: f64,
}

impl Step {
    /// From the loop's record.
    pub fn of(record: &StepRecord, cycle: usize) -> Step {
        let StepRecord { step, loss, lr, grad_norm, seconds, .. } = *record;
        Step { step, cycle, loss, lr, grad_norm, seconds }
    }
}

/// What became of one prunable matrix: see [`MatrixChange`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Matrix {
    pub name: String,
    pub layer: Option<usize>,
    pub entries: usize,
    pub zeros: usize,
    pub dense_norm: f64,
    pub removed_norm: f64,
    pub changed_norm: f64,
}

impl Matrix {
    /// From the engine's measurement.
    pub fn of(change: MatrixChange) -> Matrix {
        let MatrixChange { name, layer, entries, zeros, dense_norm, removed_norm, changed_norm } = change;
        Matrix { name, layer, entries, zeros, dense_norm, removed_norm, changed_norm }
    }
}

/// What merging adapters did to the matrices that they went into.
#[derive(Debug, Serialize)]
pub struct Merged {
    pub matrices: usize,
    pub zeros_before: usize,
    pub zeros_after: usize,
    /// What rounding to the element type changed, as a share of what the adapters changed.
    pub rounding: f64,
}

impl Merged {
    /// From the engine's counts.
    pub fn of(report: &MergeReport) -> Merged {
        let MergeReport { matrices, zeros_before, zeros_after, .. } = *report;
        Merged { matrices, zeros_before, zeros_after, rounding: report.rounding() }
    }
}

/// One step in detail.
#[derive(Debug, Serialize)]
pub struct StepDetail {
    pub step: usize,
    pub seconds: f64,
    /// The names of what memory is used for.
    pub categories: Vec<&'static str>,
    /// Bytes in use by category, one row after the other as the step took and gave memory.
    pub memory: Vec<[u64; 7]>,
    /// The slowest first.
    pub kernels: Vec<KernelTime>,
}

/// All calls of one kernel in one step.
#[derive(Debug, Serialize)]
pub struct KernelTime {
    pub kernel: &'static str,
    pub calls: u64,
    pub seconds: f64,
    pub flops: u64,
    pub bytes: u64,
}

impl StepDetail {
    /// From what was seen of the step.
    pub fn of(probed: Probed) -> StepDetail {
        let mut kernels: Vec<KernelTime> = probed
            .kernels
            .iter()
            .map(|stats| KernelTime {
                kernel: stats.kernel,
                calls: stats.calls,
                seconds: stats.seconds,
                flops: stats.flops,
                bytes: stats.bytes_read + stats.bytes_written,
            })
            .collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        StepDetail {
            step: probed.step,
            seconds: probed.seconds,
            categories: Category::ALL.map(Category::name).to_vec(),
            memory: probed.memory,
            kernels,
        }
    }
}

/// One cycle of pruning and retraining.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cycle {
    pub cycle: usize,
    pub sparsity: f64,
    pub pruned: Option<f64>,
    pub retrained: Option<f64>,
    /// Of each decoder layer, the share that pruning with calibration changed of what it adds to its input.
    pub layer_errors: Vec<f64>,
}

/// The report of `retrain` and `pretrain`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub model: String,
    pub device: String,
    pub gpu: Option<String>,
    /// What NVIDIA's library multiplied, where it did.
    pub library: Option<String>,
    pub method: String,
    pub criterion: Option<String>,
    pub pattern: Option<String>,
    /// How sparsity was shared out among layers, and by what.
    pub allocation: Option<Value>,
    pub seed: u64,
    pub perplexity: Perplexities,
    pub eval_windows: Option<usize>,
    pub sparsity: SparsityReport,
    pub trainable: Trainable,
    /// Trained tokens a wall second, the median over steps.
    pub tokens_per_second: Option<f64>,
    pub seconds: Seconds,
    pub peak_bytes: PeakBytes,
    pub cycles: Vec<Cycle>,
    /// Perplexities of the validation sequences while it trained.
    pub validation: Vec<Validated>,
    /// What merging adapters into the weights did, where they merge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged: Option<Merged>,
    pub steps: Vec<Step>,
    /// Of the last cycle; empty where nothing was pruned.
    pub matrices: Vec<Matrix>,
    pub step_detail: Option<StepDetail>,
    pub config: Value,
    /// What to type to have it again.
    pub command: String,
}

/// The median of tokens a second over steps.
pub fn median_tokens_per_second(records: &[StepRecord]) -> Option<f64> {
    let mut rates: Vec<f64> = records.iter().map(|record| record.tokens as f64 / record.seconds).collect();
    rates.sort_by(f64::total_cmp);
    match rates.len() {
        0 => None,
        n if n % 2 == 1 => Some(rates[n / 2]),
        n => Some((rates[n / 2 - 1] + rates[n / 2]) / 2.0),
    }
}

/// Checks that a report can be written to `path` before the long work starts.
pub fn check(flag: &str, path: &Path) -> Result<(), Failure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(Failure::usage(format!("{flag} {}: is a folder; name a file", path.display())));
    }
    if !parent.is_dir() {
        return Err(Failure::usage(format!("{flag} {}: there is no folder {}", path.display(), parent.display())));
    }
    Ok(check_replaceable(path)?)
}

/// Whether `path` asks for a page to look at.
fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "html" || extension == "htm")
}

/// As [`check`], for commands whose reports have no page.
pub fn check_data(flag: &str, path: &Path) -> Result<(), Failure> {
    if is_page(path) {
        let path = path.display();
        return Err(Failure::usage(format!("{flag} {path}: a page is made of training runs; name a .json file here")));
    }
    check(flag, path)
}

/// Writes the report of a training run: a page to look at where `path` ends in .html, JSON otherwise.
pub fn write_run(path: &Path, run: &Report) -> Result<(), Failure> {
    if is_page(path) { Ok(replace_file(path, reports::page_of(run)?.as_bytes())?) } else { write(path, run) }
}

/// Writes a report beside `path` and renames it into place.
pub fn write<T: Serialize>(path: &Path, report: &T) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(report).map_err(|e| Failure::failed(format!("the report: {e}")))?;
    text.push('\n');
    Ok(replace_file(path, text.as_bytes())?)
}
