//! One training step, timed: tokens a second, memory, and the kernels.

use std::path::Path;

use engine::model::{Loader, Offload, Source};
use engine::peft;
use engine::plan;
use engine::prune::prune_linear;
use kernels::Device;
use kernels::device::KernelStats;
use models::Architecture;
use serde::Serialize;

use super::{Args, Machine, RANDOM_DTYPE, fit, median, publish};
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

/// All calls of one kernel in one step.
#[derive(Debug, Serialize)]
struct Kernel {
    kernel: &'static str,
    calls: u64,
    /// The median over steps: whatever disturbs one of them is not the kernel's.
    seconds: f64,
    /// Each step's, in order.
    step_seconds: Vec<f64>,
    flops: f64,
    bytes: f64,
    /// Of the machine's peak in arithmetic or in memory traffic, whichever bounds this kernel.
    share_of_peak: f64,
}

pub fn run(args: &Args, device: &Device, architecture: &dyn Architecture, machine: Machine) -> Result<(), Failure> {
    let named = Path::new(&args.model);
    let has_weights = named.exists() || fetch::model_id(named).is_some();
    let folder = has_weights.then(|| session::open(&Console::new(args.machine.quiet), named)).transpose()?;
    let dtype = folder.as_ref().map_or(RANDOM_DTYPE, |opened| session::weight_dtype(&opened.folder));
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
        kernels: kernels_of(&timing.kernels, &machine),
        step_seconds: timing.seconds,
        machine,
    };
    publish(args, &report, &report.text(timing.tokens))
}

/// The kernels of steps that did the same work.
fn kernels_of(steps: &[Vec<KernelStats>], machine: &Machine) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = steps
        .first()
        .into_iter()
        .flatten()
        .map(|stats| {
            let of = |step: &Vec<KernelStats>| step.iter().find(|of| of.kernel == stats.kernel).map(|of| of.seconds);
            let step_seconds: Vec<f64> = steps.iter().filter_map(of).collect();
            let (flops, bytes) = (stats.flops as f64, (stats.bytes_read + stats.bytes_written) as f64);
            let seconds = median(&step_seconds);
            Kernel {
                kernel: stats.kernel,
                calls: stats.calls,
                seconds,
                step_seconds,
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
        let step = median(&self.step_seconds);
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
        out += "\n\n";
        out += &tables::columns(&rows);
        out + "\nTimes are medians over the steps. Operations are those with stored weights: on a processor a pruned one counts nothing.\n\
               Bytes are the least that could be moved. "
            + if self.machine.gpu.is_some() { OF_A_GPU } else { OF_A_PROCESSOR }
    }
}

/// What shares of the peak are held against.
const OF_A_PROCESSOR: &str = "A share above 100 % is traffic that the caches kept from memory, or products\n\
    on matrix tiles (amx), which the peak, that of f32 vectors, does not bound.\n";
const OF_A_GPU: &str = "The peak is the highest clock that the driver names, with what NVIDIA\n\
    publishes of tensor cores in 16 bits with sums in f32; boards at their limit of power stay below it. What is computed in f32\n\
    (norms, activations, AdamW, and products of features that are no multiple of 8) is held against the same peak, though its own is\n\
    lower: but for those products, memory bounds it. A share above 100 % is traffic that the caches kept from memory.\n";

fn recomputed(layers: usize) -> String {
    match layers {
        0 => String::new(),
        layers => format!(" · {layers} layers recomputed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_disturbed_moves_no_kernels_time() {
        let machine = Machine {
            gpu: None,
            library: None,
            instruction_set: "portable",
            threads: 1,
            peak_flops: 1e9,
            peak_bandwidth: 1e9,
        };
        let stats = |kernel, seconds| KernelStats {
            kernel,
            calls: 4,
            flops: 1_000_000,
            bytes_read: 10,
            bytes_written: 20,
            seconds,
        };
        let steps = [(0.002, 0.004), (0.9, 0.005), (0.002, 0.006)].map(|(a, b)| vec![stats("a", a), stats("b", b)]);
        let kernels = kernels_of(&steps, &machine);
        // The slower first. One step's work, and the share of the peak in the median time: a millisecond of two, and of five.
        let found: Vec<_> = kernels.iter().map(|k| (k.kernel, k.calls, k.seconds, k.share_of_peak)).collect();
        assert_eq!(found, [("b", 4, 0.005, 0.2), ("a", 4, 0.002, 0.5)]);
        assert_eq!(kernels[1].step_seconds, [0.002, 0.9, 0.002]);
    }
}
