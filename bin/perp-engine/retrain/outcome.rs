//! What is told of a run: its configuration, its report, its summary.

use engine::data::{self, TokenStream};
use engine::evaluate::Protocol;
use engine::model::{self, Counts, Model, Sparsity};
use engine::peft::MergeReport;
use engine::retrain::StepRecord;
use kernels::device::MemoryReport;
use serde_json::{Map, Value, json};

use super::{Args, Run};
use crate::allocation::Allocated;
use crate::checkpoints::Measured;
use crate::error::Failure;
use crate::gemm;
use crate::live::Probed;
use crate::report::{self, Matrix, Merged, PeakBytes, Report, SparsityReport, Step, StepDetail, Trainable};
use crate::session;
use crate::tables;
use crate::validation::Validation;

/// What a run measured.
pub struct Outcome {
    pub measured: Measured,
    pub records: Vec<(usize, StepRecord)>,
    pub peak: MemoryReport,
    pub counts: Counts,
    /// Of all parameters those that train, in percent: the mean over all steps.
    pub aggregated_percent: f64,
    pub sparsity: Sparsity,
    pub allocated: Allocated,
    /// What the last cycle's merging did, where adapters merge.
    pub merged: Option<MergeReport>,
    /// One step in detail.
    pub probed: Option<Probed>,
}

impl Run<'_> {
    pub(super) fn configuration(&self) -> Value {
        let Args { method, optimizer, merging, .. } = self.args;
        let mut configuration = json!({
            "model": self.opened.path,
            "train": self.train,
            "eval": self.eval.files,
            "eval_protocol": self.eval.protocol.map(Protocol::name),
            "packing": optimizer.packing.to_string(),
            "eval_every": self.args.validation.eval_every,
            "validation_windows": self.validation.as_ref().map(Validation::sequences),
            "criterion": self.args.criterion(),
            "pattern": self.pattern.to_string(),
            "allocation": self.allocating.configuration(),
            "calibrate": self.calibrate,
            "calibration_samples": self.calibration.as_ref().map(|calibration| calibration.windows.len()),
            "cycles": self.args.cycles,
            "method": method.label(),
            "rank": method.rank,
            "alpha": method.alpha,
            "targets": if self.adapter.is_some() { self.set.targets.clone() } else { method.targets_of(self.set.kind) },
            "freeze": self.args.freezing.name(),
            "steps": self.config.steps,
            "batch": self.shape.batch,
            "accumulate": self.shape.accumulate,
            "seq_len": self.shape.seq_len,
            "lr": self.config.lr,
            "warmup": self.config.warmup,
            "clip": self.config.clip,
            "weight_decay": self.config.weight_decay,
            "seed": optimizer.seed,
            "recomputed_layers": self.config.recompute,
            "offloaded_layers": self.offload,
            "threads": rayon::current_num_threads(),
        });
        if let Some(adapter) = &self.adapter {
            configuration["adapter"] = json!(adapter.path);
        }
        if self.set.kind.merges() {
            configuration["merge"] = merging.name().into();
        }
        configuration
    }

    /// All that decides about the run's numbers: its configuration without what only places it, base model and text by their
    /// content. Threads, recomputed and offloaded layers change no bit, and paths may move.
    pub fn identity(&self) -> Map<String, Value> {
        let Value::Object(mut identity) = self.configuration() else { unreachable!("a configuration is an object") };
        for place in
            ["model", "train", "eval", "eval_protocol", "calibrate", "recomputed_layers", "offloaded_layers", "threads"]
        {
            identity.shift_remove(place);
        }
        let evaluated = self.eval_tokens.as_ref().map(TokenStream::hash);
        identity.insert("evaluation text".into(), json!(evaluated));
        identity.insert("evaluation windows".into(), json!(self.eval_windows));
        identity.insert("training text".into(), json!(self.windows.stream().hash()));
        identity.insert("validation text".into(), json!(self.validation.as_ref().map(Validation::hash)));
        let calibration = self.calibration.as_ref().map(|calibration| data::hash(&calibration.windows.concat()));
        identity.insert("calibration windows".into(), json!(calibration));
        identity.insert("base model".into(), json!(self.opened.folder.hash()));
        if let Some(adapter) = &self.adapter {
            // Element types were checked when it was opened: there is no error.
            identity.insert("adapter".into(), json!(adapter.hash().ok()));
        }
        identity
    }

    /// The report of a run of `command`.
    ///
    /// # Errors
    /// A matrix that cannot be read back from the device or the folder.
    pub fn report(&self, model: &mut dyn Model, outcome: &Outcome, command: String) -> Result<Report, Failure> {
        let records: Vec<StepRecord> = outcome.records.iter().map(|(_, record)| *record).collect();
        let windows = self.eval_tokens.as_ref().map(|tokens| tokens.tokens().len() / self.shape.seq_len);
        let Outcome { measured, counts, sparsity, .. } = outcome;
        let matrices = model::changes(model, &self.opened.folder)?;
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            model: self.opened.name.clone(),
            device: self.device.name().into(),
            gpu: session::gpu_name(&self.device),
            library: gemm::title(&self.device),
            method: self.args.method.label(),
            criterion: Some(self.args.criterion().into()),
            pattern: Some(self.pattern.to_string()),
            allocation: Some(self.allocating.told(&outcome.allocated)),
            seed: self.args.optimizer.seed,
            perplexity: measured.perplexities(),
            eval_windows: windows.map(|windows| windows.min(self.eval_windows.unwrap_or(usize::MAX))),
            sparsity: SparsityReport {
                weights: sparsity.weights,
                with_adapters: sparsity.with_adapters,
                layers: sparsity.layers.clone(),
            },
            trainable: Trainable {
                count: counts.trainable,
                percent: counts.trainable_percent(),
                aggregated_percent: outcome.aggregated_percent,
            },
            tokens_per_second: report::median_tokens_per_second(&records),
            seconds: measured.seconds,
            peak_bytes: PeakBytes::of(&outcome.peak),
            cycles: measured.cycles.clone(),
            validation: measured.validation.clone(),
            merged: outcome.merged.as_ref().map(Merged::of),
            steps: outcome.records.iter().map(|(cycle, record)| Step::of(record, *cycle)).collect(),
            matrices: matrices.into_iter().map(Matrix::of).collect(),
            step_detail: outcome.probed.clone().map(StepDetail::of),
            config: self.configuration(),
            command,
        })
    }

    pub fn summary(&self, outcome: &Outcome) -> String {
        let perplexity = |value: Option<f64>| value.map_or("–".to_string(), |value| format!("{value:.2}"));
        let records: Vec<StepRecord> = outcome.records.iter().map(|(_, record)| *record).collect();
        let perplexities = outcome.measured.perplexities();
        let row = |name: &str, value: String| vec![name.to_string(), value];
        let mut rows = vec![
            row("perplexity dense", perplexity(perplexities.dense)),
            row("perplexity pruned", perplexity(perplexities.pruned)),
            row("perplexity retrained", perplexity(perplexities.retrained)),
            row("sparsity of the weights", format!("{:.2} %", 100.0 * outcome.sparsity.weights)),
            row("sparsity with adapters", format!("{:.2} %", 100.0 * outcome.sparsity.with_adapters)),
            row(
                "trainable parameters",
                format!("{} ({:.2} %)", tables::count(outcome.counts.trainable), outcome.counts.trainable_percent()),
            ),
            row(
                "tokens a second",
                report::median_tokens_per_second(&records).map_or("–".into(), |r| format!("{r:.0}")),
            ),
            row("peak memory of training", tables::bytes(outcome.peak.total)),
        ];
        if self.args.freezing.freezing().is_some() {
            let after = rows.iter().position(|row| row[0] == "trainable parameters").map_or(rows.len(), |at| at + 1);
            rows.insert(after, row("trainable, mean over steps", format!("{:.2} %", outcome.aggregated_percent)));
        }
        let title = format!("{} · {} · {}", self.opened.name, self.pattern, self.args.method.label());
        format!("{title}\n{}", tables::columns(&rows))
    }
}
