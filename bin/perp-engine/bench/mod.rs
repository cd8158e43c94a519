//! `bench`: what a training step takes on this machine, kernel by kernel, against what the machine can do at most.

mod plot;
mod products;
mod scaling;
mod step;

use std::path::PathBuf;

use engine::plan::StepShape;
use kernels::peak::Peak;
use kernels::simd::Isa;
use kernels::{DType, Device};
use models::Architecture;
use serde::Serialize;

use crate::args::{MachineArgs, MethodArgs, PruneArgs, SavingArgs, bytes, positive, sequence, small};
use crate::error::{Failure, print};
use crate::gemm;
use crate::planned::{Planned, Target};
use crate::progress::Console;
use crate::report;
use crate::session;

/// Time training steps on random tokens: tokens a second, peak memory, and each kernel's share of this machine's measured
/// peak. A built-in name gives random weights of that shape.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder, model of the hub, or a built-in name: opt-125m, -350m, -1.3b, -2.7b, -6.7b, -13b, -30b, -66b.
    #[arg(long, default_value = "opt-125m", value_name = "DIR|ID|NAME")]
    model: String,
    #[command(flatten)]
    pruning: PruneArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// Sequences of a micro-batch.
    #[arg(long, default_value_t = 2, value_parser = positive, value_name = "N")]
    batch: usize,
    /// Micro-batches of a step.
    #[arg(long, default_value_t = 1, value_parser = small, value_name = "N")]
    accumulate: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 512, value_parser = sequence, value_name = "N")]
    seq_len: usize,
    /// Steps to time, after one that is not; with --products, rounds.
    #[arg(long, default_value_t = 5, value_parser = positive, value_name = "N")]
    steps: usize,
    #[command(flatten)]
    saving: SavingArgs,
    /// The most memory a step may plan for, such as 8GiB or 500MB [default: what the machine has left].
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    memory_budget: Option<u64>,
    /// Time instead the products with the model's matrices, one by one and in turn: dense, and at several sparsities.
    #[arg(long, conflicts_with_all = ["scaling", "sparsity", "pattern"])]
    products: bool,
    /// Time instead a series of steps (sequence lengths, batches, model sizes, sparsities), each in a process of its own,
    /// and draw them to this SVG file.
    #[arg(long, value_name = "FILE")]
    scaling: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
}

/// The machine: a processor as it was measured at the start, or a GPU by its clocks.
#[derive(Clone, Debug, Serialize)]
struct Machine {
    gpu: Option<String>,
    /// What NVIDIA's library multiplies, where it is taken.
    library: Option<String>,
    instruction_set: &'static str,
    threads: usize,
    /// Operations a second: in f32, or on the GPU's tensor cores.
    peak_flops: f64,
    /// Bytes a second.
    peak_bandwidth: f64,
}

impl Machine {
    fn of(device: &Device) -> Result<Machine, Failure> {
        let isa = Isa::best();
        let peak = match device.gpu() {
            Some(gpu) => Peak::of(gpu).map_err(kernels::Error::from)?,
            None => Peak::measure(isa),
        };
        Ok(Machine {
            gpu: session::gpu_name(device),
            library: gemm::title(device),
            instruction_set: isa.name(),
            threads: rayon::current_num_threads(),
            peak_flops: peak.flops,
            peak_bandwidth: peak.bandwidth,
        })
    }

    /// The share of the bound that is nearer: arithmetic or memory.
    fn share(&self, flops: f64, bytes: f64, seconds: f64) -> f64 {
        (flops / self.peak_flops).max(bytes / self.peak_bandwidth) / seconds
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (flops, bandwidth) = (self.peak_flops / 1e9, self.peak_bandwidth / 1e9);
        if let Some(gpu) = &self.gpu {
            let library = self.library.as_ref().map_or(String::new(), |library| format!("; {library}"));
            return write!(f, "{gpu}: {flops:.0} GFLOP/s in 16 bits, {bandwidth:.0} GB/s{library}");
        }
        let s = if self.threads == 1 { "" } else { "s" };
        write!(
            f,
            "{} thread{s}, {}: {flops:.0} GFLOP/s of f32, {bandwidth:.0} GB/s",
            self.threads, self.instruction_set
        )
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    for (flag, path) in [("--report", &args.machine.report), ("--scaling", &args.scaling)] {
        if let Some(path) = path {
            report::check(flag, path)?;
        }
    }
    let device = session::device(&Console::new(args.machine.quiet), &args.machine)?;
    if let Some(svg) = &args.scaling {
        return scaling::run(args, svg);
    }
    let architecture = session::open_config(&args.model)?;
    let machine = Machine::of(&device)?;
    if args.products {
        return products::run(args, &device, &*architecture, machine);
    }
    step::run(args, &device, &*architecture, machine)
}

/// What random weights are stored in: what the files of OPT have.
const RANDOM_DTYPE: DType = DType::F16;

/// Plans the step; chooses the layers to recompute, and to offload.
fn fit(
    args: &Args,
    device: &Device,
    architecture: &dyn Architecture,
    dtype: DType,
) -> Result<(StepShape, usize), Failure> {
    let seq_len = session::sequence_length(Some(args.seq_len), architecture)?;
    let shape = StepShape { batch: args.batch, accumulate: args.accumulate, seq_len, recompute: 0 };
    let (pattern, set) = (args.pruning.pattern(), args.method.train_set()?);
    let criterion = args.pruning.criterion;
    if criterion.needs_calibration() {
        return Err(Failure::usage(format!(
            "bench times random weights, which --criterion {criterion} says nothing about: take magnitude or random"
        )));
    }
    let planned = Planned {
        architecture,
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
    let plan = planned.fit(args.saving, Target::of(device, args.memory_budget)?)?;
    Ok((StepShape { recompute: plan.recompute, ..shape }, plan.offload))
}

/// Writes the report where one is asked for, and the text.
fn publish<T: Serialize>(args: &Args, report: &T, text: &str) -> Result<(), Failure> {
    if let Some(path) = &args.machine.report {
        report::write(path, report)?;
    }
    print(text)
}

/// The middle value.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let mid = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[mid] } else { (sorted[mid - 1] + sorted[mid]) / 2.0 }
}
