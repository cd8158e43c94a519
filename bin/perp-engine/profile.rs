//! `profile`: a training step on Meta: memory, work, and an estimate of its time on a GPU.

use std::path::PathBuf;

use clap::ValueEnum;
use engine::model;
use engine::peft;
use engine::plan::{self, GPUS, Gpu, Peaks, StepShape};
use kernels::{Backend, DType};
use serde_json::{Value, json};

use crate::args::{DeviceChoice, MachineArgs, MethodArgs, PruneArgs, SavingArgs, positive, sequence, small, threads};
use crate::error::{Failure, print};
use crate::gemm::GemmArgs;
use crate::planned::{Plan, Planned, Target};
use crate::progress::Console;
use crate::session;
use crate::tables;

/// Element type of frozen weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stored {
    F32,
    F16,
    Bf16,
}

/// Plan a training step without weights: peak memory by category, work by kernel, and whether it fits. On a GPU the times
/// are estimates: what its data sheet or clocks allow at best, and what each kernel is assumed to reach of it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder, configuration file, model of the hub, or a built-in name: opt-125m, -350m, -1.3b, -2.7b, -6.7b, -13b,
    /// -30b, -66b.
    #[arg(long, value_name = "DIR|ID|NAME")]
    model: String,
    /// GPU to plan for: a100-80gb, a100-40gb, h100 or rtx4090 [default: this machine's processor].
    #[arg(long, value_parser = |name: &str| Gpu::find(name).ok_or_else(unknown_gpu), value_name = "NAME")]
    gpu: Option<Gpu>,
    /// Plan for a device of this machine as it is now: cuda (or cuda:N), with the memory that its driver calls free and its clocks;
    /// cpu; auto: a GPU where there is one, cpu otherwise.
    #[arg(long, conflicts_with = "gpu", value_parser = |s: &str| s.parse::<DeviceChoice>(), value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    #[command(flatten)]
    pruning: PruneArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// Sequences of a micro-batch.
    #[arg(long, default_value_t = 1, value_parser = positive, value_name = "N")]
    batch: usize,
    /// Micro-batches of a step.
    #[arg(long, default_value_t = 1, value_parser = small, value_name = "N")]
    accumulate: usize,
    /// Tokens of a sequence [default: the model's context].
    #[arg(long, value_parser = sequence, value_name = "N")]
    seq_len: Option<usize>,
    #[command(flatten)]
    saving: SavingArgs,
    #[command(flatten)]
    gemm: GemmArgs,
    /// Element type of frozen weights.
    #[arg(long, value_enum, default_value = "f16", value_name = "TYPE")]
    dtype: Stored,
    /// Processor threads to plan for [default: all].
    #[arg(long, value_parser = threads, value_name = "N")]
    threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Read flags from a TOML file: the names of the flags without dashes. Flags given here win over the file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn unknown_gpu() -> String {
    format!("expected one of {}", GPUS.map(|gpu| gpu.name).join(", "))
}

/// What a step is planned for: its name for programs, and its title.
struct For {
    name: String,
    title: String,
    target: Target,
}

impl Args {
    fn planned_for(&self) -> Result<For, Failure> {
        let threads = self.threads.unwrap_or_else(rayon::current_num_threads);
        if let Some(gpu) = self.gpu {
            let (limit, gemm) = (gpu.usable_bytes(), self.gemm.gemm());
            // Of the host that such a GPU would be in nothing is known.
            let (host, peaks) = (u64::MAX, Some(gpu.peaks));
            let target = Target { backend: Backend::Cuda, threads, gemm, limit, host, peaks };
            return Ok(For { name: gpu.name.into(), title: gpu.title.into(), target });
        }
        let choice = self.device.unwrap_or(DeviceChoice::Cpu);
        let machine = MachineArgs {
            device: choice,
            gemm: self.gemm,
            threads: None,
            config: None,
            // Nothing is computed there.
            quiet: true,
            report: None,
        };
        let device = session::device(&Console::new(true), &machine)?;
        let target = Target { threads, ..Target::of(&device, None)? };
        let name = match choice {
            DeviceChoice::Cuda(_) => choice.to_string(),
            DeviceChoice::Auto | DeviceChoice::Cpu => device.name().into(),
        };
        let title = session::gpu_name(&device).unwrap_or_else(|| "this machine's processor".into());
        Ok(For { name, title, target })
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let architecture = session::open_config(&args.model)?;
    let seq_len = session::sequence_length(args.seq_len, &*architecture)?;
    let set = args.method.train_set()?;
    let (batch, accumulate) = (args.batch, args.accumulate);
    let dtype = match args.dtype {
        Stored::F32 => DType::F32,
        Stored::F16 => DType::F16,
        Stored::Bf16 => DType::BF16,
    };
    let For { name, title, target } = args.planned_for()?;
    let pattern = args.pruning.pattern();
    let shape = StepShape { batch, accumulate, seq_len, recompute: 0 };
    let criterion = args.pruning.criterion;
    let planned = Planned {
        architecture: &*architecture,
        dtype,
        criterion,
        pattern,
        allocation: None,
        set: &set,
        adapter: None,
        freezing: None,
        shape,
        offload: 0,
    };
    let plan = planned.choose(args.saving, target)?;
    let short = plan.needed() > target.limit;
    let remedies = if short { Some(planned.remedies(args.saving, target)?) } else { None };
    let mut model = planned.build(&target.meta())?;
    peft::apply(&mut *model, &set, 0)?;
    let counts = model::count(&mut *model);
    let measures = planned.measures(&plan);
    let view = View { args, name, title, counts, plan: &plan, shape, target, remedies, measures };
    print(&if args.json { view.json() } else { view.text() })
}

struct View<'a> {
    args: &'a Args,
    name: String,
    title: String,
    counts: model::Counts,
    plan: &'a Plan,
    shape: StepShape,
    target: Target,
    /// Where the device has no room.
    remedies: Option<String>,
    measures: String,
}

impl View<'_> {
    fn json(&self) -> String {
        let kernels: Vec<Value> = self
            .plan
            .step
            .kernels
            .iter()
            .map(|stats| {
                json!({
                    "kernel": stats.kernel,
                    "calls": stats.calls,
                    "flops": stats.flops,
                    "bytes_read": stats.bytes_read,
                    "bytes_written": stats.bytes_written,
                    "roofline_seconds": self.target.peaks.map(|peaks| peaks.roofline_seconds(stats)),
                    "assumed_share": self.target.peaks.map(|peaks| peaks.assumed(stats.kernel).share),
                    "estimated_seconds": self.target.peaks.map(|peaks| peaks.estimated_seconds(stats)),
                })
            })
            .collect();
        let peak = &self.plan.step.peak;
        let by_category: serde_json::Map<String, Value> =
            peak.iter().map(|(name, bytes)| (name.to_string(), json!(bytes))).collect();
        let all = json!({
            "model": self.args.model,
            "target": self.name,
            "title": self.title,
            "method": self.args.method.label(),
            "pattern": self.args.pruning.pattern().to_string(),
            "batch": self.shape.batch,
            "accumulate": self.shape.accumulate,
            "seq_len": self.shape.seq_len,
            "recomputed_layers": self.plan.recompute,
            "offloaded_layers": self.plan.offload,
            "host_bytes": self.plan.host_bytes,
            "parameters": self.counts.base,
            "trainable": {"count": self.counts.trainable, "percent": self.counts.trainable_percent()},
            "peak_bytes": {"total": peak.total, "by_category": by_category},
            "memory_bytes": self.target.limit,
            "fits": self.plan.fits(self.target),
            "kernels": kernels,
            "roofline_seconds": self.target.peaks.map(|peaks| self.at_the_peak(peaks)),
            "estimated_seconds": self.target.peaks.map(|peaks| self.plan.estimated_seconds(peaks)),
            "tokens_per_second": self.target.peaks.map(|peaks| self.tokens() / self.plan.estimated_seconds(peaks)),
            "offload_seconds": self.plan.slower,
        });
        format!("{}\n", serde_json::to_string_pretty(&all).expect("JSON values serialize"))
    }

    fn text(&self) -> String {
        let StepShape { batch, accumulate, seq_len, .. } = self.shape;
        let mut out = format!(
            "{} · {} · {} · {accumulate}×{batch}×{seq_len} tokens a step{} · on {}\n\
             {} parameters, {} trainable ({:.2} %)\n\npeak memory over a step\n",
            self.args.model,
            self.args.pruning.pattern(),
            self.args.method.label(),
            self.measures,
            self.title,
            tables::count(self.counts.base),
            tables::count(self.counts.trainable),
            self.counts.trainable_percent(),
        );
        let peak = &self.plan.step.peak;
        let mut rows: Vec<Vec<String>> =
            peak.iter().map(|(name, bytes)| vec![name.into(), tables::bytes(bytes)]).collect();
        rows.push(vec!["total".into(), tables::bytes(peak.total)]);
        out += &tables::columns(&rows);

        out += &format!("\nkernels of a step\n{}\n", self.kernels());
        if let Some(peaks) = self.target.peaks {
            out += &self.estimate(peaks);
        }
        let (needed, limit) = (tables::bytes(peak.total), tables::bytes(self.target.limit));
        let host = tables::bytes(self.plan.host_bytes);
        out += &match &self.remedies {
            Some(remedies) => {
                let short = tables::bytes(peak.total - self.target.limit);
                format!("does not fit: {needed} of {limit}, {short} short; {remedies}\n")
            }
            None if self.plan.host_bytes > self.target.host => {
                let available = tables::bytes(self.target.host);
                format!(
                    "does not fit: offloaded layers need {host} of the host, {available} are available: offload fewer\n"
                )
            }
            None if self.plan.offload > 0 => format!("fits: {needed} of {limit}, and {host} of the host\n"),
            None => format!("fits: {needed} of {limit}\n"),
        };
        out
    }

    /// Tokens of a step.
    fn tokens(&self) -> f64 {
        (self.shape.accumulate * self.shape.batch * self.shape.seq_len) as f64
    }

    /// Seconds of a step whose every kernel is at the GPU's peak.
    fn at_the_peak(&self, peaks: Peaks) -> f64 {
        self.plan.seconds(peaks, |stats| peaks.roofline_seconds(stats))
    }

    /// Calls, work and, on a GPU, times of each kernel.
    fn kernels(&self) -> String {
        let mut header = vec!["kernel", "calls", "GFLOP", "GB"];
        if self.target.peaks.is_some() {
            header.extend(["at the peak", "assumed", "estimate"]);
        }
        let mut rows = vec![header.into_iter().map(String::from).collect::<Vec<_>>()];
        let milliseconds = |seconds: f64| format!("{:.3} ms", 1e3 * seconds);
        let (mut flops, mut bytes) = (0, 0);
        for stats in &self.plan.step.kernels {
            let moved = stats.bytes_read + stats.bytes_written;
            (flops, bytes) = (flops + stats.flops, bytes + moved);
            let mut row = vec![stats.kernel.into(), stats.calls.to_string(), giga(stats.flops, 2), giga(moved, 3)];
            if let Some(peaks) = self.target.peaks {
                row.push(milliseconds(peaks.roofline_seconds(stats)));
                row.push(format!("{:.0} %", 100.0 * peaks.assumed(stats.kernel).share));
                row.push(milliseconds(peaks.estimated_seconds(stats)));
            }
            rows.push(row);
        }
        let mut total = vec!["total".into(), String::new(), giga(flops, 2), giga(bytes, 3)];
        if let Some(peaks) = self.target.peaks {
            total.push(milliseconds(self.at_the_peak(peaks)));
            total.push(String::new());
            total.push(milliseconds(self.plan.estimated_seconds(peaks)));
        }
        rows.push(total);
        tables::columns(&rows)
    }

    /// What the times come to, and what they assume.
    fn estimate(&self, peaks: Peaks) -> String {
        let (tokens, seconds) = (self.tokens(), self.plan.estimated_seconds(peaks));
        let mut out = format!(
            "estimate, not a measurement: {:.1} ms a step, {:.0} tok/s; with every kernel at the GPU's peak {:.0} tok/s\n\
             assumed of the peak in arithmetic or memory traffic, whichever bounds a kernel:\n",
            1e3 * seconds,
            tokens / seconds,
            tokens / self.at_the_peak(peaks)
        );
        let mut reasons: Vec<plan::Assumption> = Vec::new();
        for assumed in self.plan.step.kernels.iter().map(|stats| peaks.assumed(stats.kernel)) {
            if !reasons.contains(&assumed) {
                reasons.push(assumed);
            }
        }
        reasons.sort_by(|a, b| a.share.total_cmp(&b.share));
        for plan::Assumption { share, why } in reasons {
            out += &format!("  {:.0} %: {why}\n", 100.0 * share);
        }
        out
    }
}

/// In units of 10⁹.
fn giga(count: u64, digits: usize) -> String {
    format!("{:.digits$}", count as f64 / 1e9)
}
