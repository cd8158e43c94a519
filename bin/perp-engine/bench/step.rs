//! One training step, timed: tokens a second, memory, and the kernels.

use std::path::Path;

use engine::model::{Loader, Offload, Source};
use engine::peft;
use engine::plan::{self, StepTiming};
use engine::prune::prune_linear;
use kernels::Device;
use models::Architecture;
use serde::Serialize;

use super::{Args, Machine, fit, median, publish, random_dtype};
use crate::error::Failure;
use crate::fetch;
use crate::progress::Console;
use crate::report::PeakBytes;
use crate::session;
use crate::tables;

/// What a benchmark of a step measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    method: String,
    pattern: String,
    batch: usize,
    accumulate: usize,
    seq_len: usize,
    recomputed_layers: usize,
    offloaded_layers: usize,
    machine: Machine,
    /// The median over steps.
    tokens_per_second: f64,
    step_seconds: Vec<f64>,
    peak_bytes: PeakBytes,
    /// The process's largest resident set, where the system tells.
    peak_resident_bytes: Option<u64>,
    kernels: Vec<Kernel>,
}

/// All calls of one kernel in one step, on average.
#[derive(Debug, Serialize)]
struct Kernel {
    kernel: &'static str,
    calls: u64,
    seconds: f64,
    flops: f64,
    bytes: f64,
    /// Of the machine's peak in arithmetic or in memory traffic, whichever bounds this kernel.
    share_of_peak: f64,
}

pub fn run(args: &Args, device: &Device, architecture: &dyn Architecture, machine: Machine) -> Result<(), Failure> {
    let named = Path::new(&args.model);
    let has_weights = named.exists() || fetch::model_id(named).is_some();
    let folder = has_weights.then(|| session::open(&Console::new(args.machine.quiet), named)).transpose()?;
    let dtype = folder.as_ref().map_or(random_dtype(device), |opened| session::weight_dtype(&opened.folder));
    let (shape, offloaded_layers) = fit(args, device, architecture, dtype)?;
    let pruning = args.pruning.pruning(0);
    let source = match &folder {
        Some(opened) => Source::Folder(&opened.folder),
        None => Source::Random { seed: 0, std: architecture.init_std(), dtype },
    };
    let mut model = {
        let offload = Offload::new(device, offloaded_layers);
        let loader = Loader::new(device, source).on_linear(|linear| {
            prune_linear(linear, &pruning)?;
            offload.take(linear)
        });
        architecture.build(&loader)?
    };
    let params = peft::apply(&mut *model, &args.method.train_set()?, 0)?;
    device.trim();
    let timing = plan::time(&mut *model, params, shape, architecture.info().vocab, args.steps)?;
    let report = Report {
        model: args.model.clone(),
        method: args.method.label(),
        pattern: args.pruning.pattern().to_string(),
        batch: shape.batch,
        accumulate: shape.accumulate,
        seq_len: shape.seq_len,
        recomputed_layers: shape.recompute,
        offloaded_layers,
        tokens_per_second: timing.tokens as f64 / median(&timing.seconds),
        peak_bytes: PeakBytes::of(&timing.peak),
        peak_resident_bytes: plan::peak_resident_bytes(),
        kernels: kernels_of(&timing, &machine),
        step_seconds: timing.seconds,
        machine,
    };
    publish(args, &report, &report.text(timing.tokens))
}

fn kernels_of(timing: &StepTiming, machine: &Machine) -> Vec<Kernel> {
    let steps = timing.seconds.len() as f64;
    let mut kernels: Vec<Kernel> = timing
        .kernels
        .iter()
        .map(|stats| {
            let (flops, bytes) = (stats.flops as f64 / steps, (stats.bytes_read + stats.bytes_written) as f64 / steps);
            let seconds = stats.seconds / steps;
            Kernel {
                kernel: stats.kernel,
                calls: stats.calls / timing.seconds.len() as u64,
                seconds,
                flops,
                bytes,
                share_of_peak: machine.share(flops, bytes, seconds),
            }
        })
        .collect();
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kernels
}

impl Report {
    fn text(&self, tokens: usize) -> String {
        let rate = |seconds: f64| tokens as f64 / seconds;
        let slowest = self.step_seconds.iter().copied().fold(0.0, f64::max);
        let fastest = self.step_seconds.iter().copied().fold(f64::MAX, f64::min);
        let mut out = format!(
            "{} · {} · {} · {}×{}×{} tokens a step{}\n{}\n\n  {:.0} tok/s: the median of {} steps, {:.0} to {:.0}\n",
            self.model,
            self.pattern,
            self.method,
            self.accumulate,
            self.batch,
            self.seq_len,
            recomputed(self.recomputed_layers),
            self.machine,
            self.tokens_per_second,
            self.step_seconds.len(),
            rate(slowest),
            rate(fastest),
        );
        out += &format!("  peak memory {}", tables::bytes(self.peak_bytes.total));
        if let Some(resident) = self.peak_resident_bytes {
            out += &format!(", the process {}", tables::bytes(resident));
        }
        let step: f64 = self.step_seconds.iter().sum::<f64>() / self.step_seconds.len() as f64;
        let header = ["kernel", "calls", "ms", "of the step", "GFLOP/s", "GB/s", "of peak"];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(self.kernels.iter().map(|k| {
            vec![
                k.kernel.to_string(),
                k.calls.to_string(),
                format!("{:.1}", 1e3 * k.seconds),
                format!("{:.1} %", 100.0 * k.seconds / step),
                format!("{:.0}", k.flops / k.seconds / 1e9),
                format!("{:.1}", k.bytes / k.seconds / 1e9),
                format!("{:.0} %", 100.0 * k.share_of_peak),
            ]
        }));
        out + "\n\n"
            + &tables::columns(&rows)
            + "\nOperations are those with stored weights: on a processor a pruned one counts nothing. Bytes are the least that could\n\
               be moved. A share above 100 % is traffic that the caches kept from memory, or products on matrix tiles (amx), which\n\
               the peak, that of f32 vectors, does not bound.\n"
    }
}

fn recomputed(layers: usize) -> String {
    match layers {
        0 => String::new(),
        layers => format!(" · {layers} layers recomputed"),
    }
}
