//! Checkpoints of `retrain`: when they are written, and which of them a run goes on from.

use std::path::PathBuf;

use engine::checkpoint::{self, Newest, RunCheckpoint, RunFolder};
use engine::data::SamplerPosition;
use engine::error::Error;
use engine::retrain::{self, PastParam, RunState, StepRecord, Trainer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::args::positive;
use crate::error::Failure;
use crate::live::Place;
use crate::progress::Console;
use crate::report::{Cycle, Perplexities, Seconds};
use crate::validation::Validated;

/// Checkpoints of the run.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Checkpoints")]
pub struct CheckpointArgs {
    /// Keep checkpoints of the run in this folder: after a crash, a kill or Ctrl-C, --resume goes on from the newest.
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Steps from one checkpoint to the next; there is one at the start and at the end of each cycle, too.
    #[arg(long, default_value_t = 100, value_parser = positive, requires = "checkpoints", value_name = "N")]
    save_every: usize,
    /// Checkpoints that stay; older ones are removed when a newer one is safely written.
    #[arg(long, default_value_t = 2, value_parser = positive, requires = "checkpoints", value_name = "K")]
    keep: usize,
    /// Go on from the newest intact checkpoint, under the same flags, and end as if nothing had happened: in the same bits on
    /// the CPU. Where there is none yet, start.
    #[arg(long, requires = "checkpoints")]
    resume: bool,
}

impl CheckpointArgs {
    /// Whether the run that is to go on may be over already.
    pub fn may_be_over(&self) -> bool {
        self.resume && self.checkpoints.as_ref().is_some_and(RunFolder::has_result)
    }
}

/// What a run has measured so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    pub dense: Option<f64>,
    /// Of the current cycle.
    pub pruned: Option<f64>,
    /// Likewise: of each decoder layer, where its pruning was calibrated.
    #[serde(default)]
    pub layer_errors: Vec<f64>,
    /// Those that are over.
    pub cycles: Vec<Cycle>,
    /// While it trained, so far.
    #[serde(default)]
    pub validation: Vec<Validated>,
    pub seconds: Seconds,
}

impl Measured {
    /// Takes in a validation perplexity.
    pub fn add(&mut self, validated: Validated) {
        self.seconds.eval += validated.seconds;
        self.validation.push(validated);
    }

    /// Of the dense model, and of the last cycle that is over.
    pub fn perplexities(&self) -> Perplexities {
        let last = self.cycles.last();
        Perplexities {
            dense: self.dense,
            pruned: last.and_then(|cycle| cycle.pruned),
            retrained: last.and_then(|cycle| cycle.retrained),
        }
    }
}

/// A run as a checkpoint holds it.
pub struct Resumed {
    pub checkpoint: RunCheckpoint,
    pub state: RunState,
    pub measured: Measured,
    pub records: Vec<(usize, StepRecord)>,
}

impl Resumed {
    fn read(path: PathBuf) -> Result<Resumed, Error> {
        let checkpoint = RunCheckpoint::open(path)?;
        let state = RunState::read(&checkpoint)?;
        let records = retrain::records(&checkpoint)?;
        let measured = Measured::deserialize(&state.measured).map_err(|error| checkpoint::Error::Run {
            path: checkpoint.path().into(),
            reason: format!("does not say what was measured: {error}"),
        })?;
        Ok(Resumed { checkpoint, state, measured, records })
    }
}

/// Where a run stands between two steps.
pub struct Standing<'a> {
    pub cycle: usize,
    pub step: usize,
    pub sampler: SamplerPosition,
    pub records: &'a [(usize, StepRecord)],
    pub measured: &'a Measured,
}

/// Keeps a run's checkpoints.
pub struct Keeper<'a> {
    args: &'a CheckpointArgs,
    console: Console,
    folder: RunFolder,
    device: String,
    configuration: Map<String, Value>,
    resumed: Option<Resumed>,
    /// Newer than that one, and of no use.
    damaged: Vec<(PathBuf, checkpoint::Error)>,
    /// The last good one.
    last: Option<PathBuf>,
    /// What cycles that are over left, and later pruning depends on.
    pub past: Vec<PastParam>,
}

impl<'a> Keeper<'a> {
    /// Takes the folder, and with --resume finds where to go on; nothing where no checkpoints are asked for. `configuration`
    /// is all that decides about the run's numbers.
    pub fn open(
        args: &'a CheckpointArgs,
        console: Console,
        device: &str,
        configuration: impl FnOnce() -> Map<String, Value>,
    ) -> Result<Option<Keeper<'a>>, Failure> {
        let Some(path) = &args.checkpoints else { return Ok(None) };
        let folder = RunFolder::open(path)?;
        if !args.resume && !folder.checkpoints()?.is_empty() {
            return Err(Failure::usage(format!(
                "--checkpoints {}: holds checkpoints of a run already; --resume goes on with it, or name a new folder",
                path.display()
            )));
        }
        let device = device.to_string();
        let configuration = configuration();
        let mut keeper = Keeper {
            args,
            console,
            folder,
            device,
            configuration,
            resumed: None,
            damaged: Vec::new(),
            last: None,
            past: Vec::new(),
        };
        if args.resume {
            keeper.find()?;
        }
        Ok(Some(keeper))
    }

    /// The newest checkpoint that is intact. It must be of this run.
    fn find(&mut self) -> Result<(), Failure> {
        let folder = self.folder.path().display().to_string();
        let Newest { intact, damaged } = self.folder.newest(Resumed::read)?;
        let Some(resumed) = intact else {
            if let Some((_, error)) = damaged.first() {
                return Err(Failure::failed(format!(
                    "{error}; no checkpoint in {folder} is intact: name a new folder to start anew"
                )));
            }
            self.console.say(&format!("no checkpoint in {folder} yet: the run starts"));
            return Ok(());
        };
        self.accept(&resumed)?;
        self.last = Some(resumed.checkpoint.path().into());
        self.damaged = damaged;
        self.resumed = Some(resumed);
        Ok(())
    }

    fn accept(&self, resumed: &Resumed) -> Result<(), Failure> {
        let (state, path) = (&resumed.state, resumed.checkpoint.path().display());
        let shown = |value: &Value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            if text.len() > 20 { format!("{}…", text.chars().take(16).collect::<String>()) } else { text }
        };
        let differences = state.differences(&self.configuration);
        if !differences.is_empty() {
            let all: Vec<String> = differences
                .iter()
                .map(|(what, here, there)| format!("{what} is {} here and {} there", shown(here), shown(there)))
                .collect();
            return Err(Failure::usage(format!(
                "--resume: {path} is of another run: {}; go on with that run's flags, or name a new --checkpoints folder",
                all.join(", ")
            )));
        }
        let version = ("version", state.version.as_str(), env!("CARGO_PKG_VERSION"));
        let ours = [version, ("device", state.device.as_str(), self.device.as_str())];
        for (what, there, here) in ours {
            if there != here {
                self.console.warn(&format!(
                    "{path} was written with {what} {there}, and this is {here}: the numbers may differ from those of an \
                     uninterrupted run"
                ));
            }
        }
        Ok(())
    }

    /// Where the run goes on, before it is taken.
    pub fn resumed_at(&self) -> Option<Place> {
        self.resumed.as_ref().map(|Resumed { state, .. }| Place { cycle: state.cycle, step: state.step })
    }

    /// The run to go on with, once; nothing where it starts.
    pub fn take_resumed(&mut self) -> Result<Option<Resumed>, Failure> {
        // What an earlier run in this folder ended in, if it left anything, is not what this one will.
        if self.resumed.is_none() {
            self.folder.forget_result()?;
        }
        for (path, error) in std::mem::take(&mut self.damaged) {
            self.console.warn(&format!("{error}; the one before is used"));
            self.folder.set_aside(&path)?;
        }
        if let Some(Resumed { checkpoint, state, .. }) = &self.resumed {
            let (RunState { cycle, step, .. }, path) = (state, checkpoint.path().display());
            self.console.say(&format!("goes on after step {step} of cycle {cycle}: {path}"));
        }
        Ok(self.resumed.take())
    }

    /// Writes down what the run ends in, before that is there.
    pub fn will_end_in(&self, result: &Value) -> Result<(), Failure> {
        Ok(self.folder.set_result(result)?)
    }

    /// Where it is written down.
    pub fn result_file(&self) -> PathBuf {
        self.folder.result_file()
    }

    /// What the run that would go on ended in, if it was about to end.
    pub fn ended_in(&self) -> Result<Option<Value>, Failure> {
        if self.resumed.is_some() { Ok(self.folder.result()?) } else { Ok(None) }
    }

    /// The last good checkpoint.
    pub fn last(&self) -> Option<&PathBuf> {
        self.last.as_ref()
    }

    /// The first checkpoint, before anything is trained: a folder that cannot take it ends the run here, not in hours.
    pub fn begin(&mut self, trainer: &Trainer, standing: &Standing<'_>) -> Result<(), Failure> {
        self.save(trainer, standing).map_err(|error| {
            if error.is_divergence() {
                return error.into();
            }
            Failure::failed(format!(
                "no checkpoint can be kept: {error}; name another --checkpoints folder, or free space"
            ))
        })
    }

    /// Writes a checkpoint where one is due, or `now`. One that cannot be written is a warning: what is trained since the
    /// last one is in memory, and stopping would lose it.
    pub fn after_step(&mut self, trainer: &Trainer, standing: &Standing<'_>, now: bool) -> Result<(), Error> {
        if !now && !standing.step.is_multiple_of(self.args.save_every) {
            return Ok(());
        }
        match self.save(trainer, standing) {
            Err(error) if !error.is_divergence() => {
                let last = self
                    .last
                    .as_ref()
                    .map_or(String::new(), |last| format!("; the last good one is {}", last.display()));
                self.console.warn(&format!("no checkpoint of step {}: {error}{last}", standing.step));
                Ok(())
            }
            other => other,
        }
    }

    fn save(&mut self, trainer: &Trainer, standing: &Standing<'_>) -> Result<(), Error> {
        let measured = serde_json::to_value(standing.measured).map_err(|error| Error::config(error.to_string()))?;
        let state = RunState {
            version: env!("CARGO_PKG_VERSION").into(),
            device: self.device.clone(),
            cycle: standing.cycle,
            step: standing.step,
            sampler: standing.sampler,
            configuration: self.configuration.clone(),
            measured,
        };
        self.last = Some(trainer.save(&self.folder, &state, standing.records, &self.past)?);
        if let Err(error) = self.folder.keep_newest(self.args.keep) {
            self.console.warn(&format!("older checkpoints stay: {error}"));
        }
        Ok(())
    }
}
