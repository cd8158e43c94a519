//! `retrain`: prune, retrain a few parameters, measure what that wins back. `prepare` makes a run of the flags,
//! `execute` runs it, `outcome` tells of it.

mod execute;
mod outcome;
mod prepare;

use std::path::PathBuf;

use engine::calibrate::Calibration;
use engine::checkpoint::OutputFolder;
use engine::data::{TokenStream, Windows};
use engine::peft::TrainSet;
use engine::plan::StepShape;
use engine::prune::Pattern;
use engine::retrain::Config;
use kernels::Device;

use crate::allocation::{Allocating, AllocationArgs};
use crate::args::{EvalArgs, MachineArgs, MethodArgs, OptimizerArgs, PruneArgs, StepArgs};
use crate::calibration::CalibrationArgs;
use crate::checkpoints::{CheckpointArgs, Keeper};
use crate::error::{Failure, print};
use crate::freezing::FreezeArgs;
use crate::progress::Console;
use crate::report;
use crate::session::Opened;
use crate::signals::Signals;
use crate::text::TextArgs;
use crate::validation::{Validation, ValidationArgs};

/// Prune a model, retrain a few of its parameters, and measure what that wins back. Without --model this is the demo: a
/// small OPT trained on Jane Austen's novels.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json, model.safetensors (or shards with an index), tokenizer.json [default: the demo].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pruning: PruneArgs,
    #[command(flatten)]
    allocation: AllocationArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Cycles of prune and retrain (iterative magnitude pruning); each removes the same share of what is left.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    cycles: u32,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    freezing: FreezeArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    eval: EvalArgs,
    #[command(flatten)]
    validation: ValidationArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    checkpoints: CheckpointArgs,
    /// Write the retrained model (and its LoRA adapter, in the subfolder adapter) to this new folder.
    #[arg(long, value_name = "DIR", help_heading = "Machine and output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Everything a run knows before it touches a weight.
struct Run<'a> {
    args: &'a Args,
    console: Console,
    signals: Signals,
    device: Device,
    opened: Opened,
    set: TrainSet,
    pattern: Pattern,
    allocating: Allocating,
    shape: StepShape,
    config: Config,
    /// Layers whose weights stay in the host's memory.
    offload: usize,
    train: Vec<PathBuf>,
    windows: Windows,
    calibrate: Vec<PathBuf>,
    calibration: Option<Calibration>,
    eval: Vec<PathBuf>,
    eval_tokens: Option<TokenStream>,
    eval_windows: Option<usize>,
    validation: Option<Validation>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        OutputFolder::check(out)?;
    }
    if let Some(report) = &args.machine.report {
        report::check("--report", report)?;
    }
    let run = prepare::prepare(args)?;
    let mut keeper = Keeper::open(&args.checkpoints, run.console, run.device.name(), || run.identity())?;
    let (mut model, outcome) = run.execute(keeper.as_mut())?;
    if let Some(path) = &args.machine.report {
        report::write(path, &run.report(&outcome))?;
    }
    // The model comes last: where it is, nothing of the run is missing.
    if let Some(out) = &args.out {
        run.write(&mut *model, out)?;
    }
    print(&run.summary(&outcome))
}
