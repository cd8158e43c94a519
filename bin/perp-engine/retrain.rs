//! `retrain`: prune, retrain a few parameters, measure what that wins back. `prepare` makes a run of the flags,
//! `execute` runs it, `outcome` tells of it.

mod execute;
mod merging;
mod outcome;
mod over;
mod past;
mod prepare;
mod shared;
mod start;

use std::path::PathBuf;
use std::rc::Rc;

use engine::calibrate::Calibration;
use engine::checkpoint::{Adapter, OutputFolder};
use engine::data::{TokenStream, Windows};
use engine::model::Model;
use engine::peft::TrainSet;
use engine::plan::StepShape;
use engine::prune::Pattern;
use engine::retrain::Config;
use kernels::Device;

use crate::allocation::{Allocating, AllocationArgs};
use crate::args::{EvalArgs, MachineArgs, MethodArgs, OptimizerArgs, PruneArgs, StepArgs};
use crate::calibration::CalibrationArgs;
use crate::checkpoints::{CheckpointArgs, Keeper};
use crate::command;
use crate::error::{Failure, print};
use crate::format::FormatArgs;
use crate::freezing::FreezeArgs;
use crate::graphs::Graphs;
use crate::live::{Event, Live, LiveArgs};
use crate::progress::Console;
use crate::report::{self, Report};
use crate::session::{self, Opened};
use crate::signals::Signals;
use crate::text::{EvalText, TextArgs};
use crate::validation::{Validation, ValidationArgs};
use merging::MergingArgs;
use outcome::Outcome;
pub use shared::Shared;
use start::StartArgs;

/// Whether a run prunes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Prune {
    Yes,
    None,
}

/// Prune a model, retrain a few of its parameters, and measure what that wins back. Without --model this is the demo: a
/// small OPT trained on Jane Austen's novels.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json, model.safetensors (or shards with an index), tokenizer.json; or a model of the hub, such as
    /// facebook/opt-1.3b or facebook/opt-1.3b@REVISION [default: the demo].
    #[arg(long, value_name = "DIR|ID")]
    model: Option<PathBuf>,
    /// none: the model is pruned already, by whatever program. What is zero in its matrices stays zero, how they were pruned is read
    /// off them, and nothing else goes.
    #[arg(long, value_enum, default_value = "yes", value_name = "WHETHER", help_heading = "Pruning")]
    prune: Prune,
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
    start: StartArgs,
    #[command(flatten)]
    merging: MergingArgs,
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
    #[command(flatten)]
    live: LiveArgs,
    /// Write the retrained model (and, where adapters do not merge, its LoRA adapter in the subfolder adapter) to this new
    /// folder.
    #[arg(long, value_name = "DIR", help_heading = "Machine and output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Everything a run knows before it touches a weight.
struct Run<'a> {
    args: &'a Args,
    console: Console,
    signals: Rc<Signals>,
    device: Device,
    opened: Opened,
    set: TrainSet,
    /// Where its adapters start.
    adapter: Option<Adapter>,
    pattern: Pattern,
    allocating: Allocating,
    shape: StepShape,
    config: Config,
    /// Layers whose weights stay in the host's memory.
    offload: usize,
    graphs: Graphs,
    train: Vec<PathBuf>,
    windows: Windows,
    calibrate: Vec<PathBuf>,
    calibration: Option<Calibration>,
    eval: EvalText,
    eval_tokens: Option<TokenStream>,
    eval_windows: Option<usize>,
    /// Files of the validation text.
    validate: Vec<PathBuf>,
    validation: Option<Validation>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    args.check()?;
    let mut shared = Shared::default();
    let run = prepare::prepare(args, &mut shared)?;
    let command = run.pinned(&command::given());
    let mut keeper = run.keeper()?;
    if let Some(over) = keeper.as_ref().map_or(Ok(None), |keeper| run.over(keeper))? {
        return print(&over);
    }
    let (mut model, outcome) = run.watched(keeper.as_mut(), &mut shared, &command)?;
    if let Some(path) = &args.machine.report {
        report::write_run(path, &run.report(&mut *model, &outcome, command)?)?;
    }
    // The model comes last: where it is, nothing of the run is missing.
    if let Some(out) = &args.out {
        run.write(&mut *model, out, keeper.as_ref())?;
    }
    print(&run.summary(&outcome))
}

/// A run of several: measured and reported, and its pruned model left for the next.
pub fn one(args: &Args, shared: &mut Shared, command: String) -> Result<Report, Failure> {
    args.check()?;
    let run = prepare::prepare(args, shared)?;
    let command = run.pinned(&command);
    let (mut model, outcome) = run.watched(run.keeper()?.as_mut(), shared, &command)?;
    let report = run.report(&mut *model, &outcome, command)?;
    shared.give_back(model)?;
    Ok(report)
}

impl Args {
    fn check(&self) -> Result<(), Failure> {
        // What a finished run wrote is looked at when it is known which run this is.
        if let Some(out) = self.out.as_ref().filter(|_| !self.checkpoints.may_be_over()) {
            OutputFolder::check(out)?;
        }
        self.machine.report.as_deref().map_or(Ok(()), |report| report::check("--report", report))
    }
}

impl Run<'_> {
    /// What to type to have it again, whatever becomes of the hub's branches.
    fn pinned(&self, command: &str) -> String {
        let model = std::slice::from_ref(&self.opened.path);
        let taken: [command::Taken<'_>; 5] = [
            ("--model", model),
            ("--train", &self.train),
            ("--eval", &self.eval.files),
            ("--validation", &self.validate),
            ("--calibrate", &self.calibrate),
        ];
        command::pinned(command, &taken)
    }

    /// Who keeps its checkpoints, where any are asked for.
    fn keeper(&self) -> Result<Option<Keeper<'_>>, Failure> {
        Keeper::open(&self.args.checkpoints, self.console, self.device.name(), || self.identity())
    }

    /// The run, with who keeps it and who hears of it.
    fn watched(
        &self,
        keeper: Option<&mut Keeper<'_>>,
        shared: &mut Shared,
        command: &str,
    ) -> Result<(Box<dyn Model>, Outcome), Failure> {
        let resumed = keeper.as_ref().and_then(|keeper| keeper.resumed_at());
        let mut live = Live::open(&self.args.live, self.console, resumed, self.config.steps)?;
        let (device, config) = (session::title(&self.device), self.configuration());
        live.tell(resumed.unwrap_or_default(), &Event::Config { command, device: &device, config: &config });
        let result = self.execute(keeper, &mut live, shared);
        live.end(&result);
        result
    }
}
