//! What hears of a run while it goes on: the log, TensorBoard. The training loop tells [`Live`] of events and knows nothing of
//! who listens.

mod log;
mod probe;
mod tensorboard;

use std::io;
use std::path::PathBuf;

use engine::retrain::StepRecord;
use serde_json::Value;

use crate::error::Failure;
use crate::progress::Console;
use crate::report;

pub use probe::{Probe, Probed};

/// What is told while a run goes on.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Live")]
pub struct LiveArgs {
    /// Write a line of JSON for each event to this file as it happens: config, eval, step, end. With --resume it goes on
    /// where the run does, and no step is in it twice.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Write the curves to this folder, which is this run's alone, as TensorBoard reads them: tensorboard --logdir DIR.
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
}

/// Where in a run something happened: cycles count from 1, steps from 1 within each. What comes before the first cycle has
/// cycle 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub cycle: usize,
    pub step: usize,
}

/// Something that happened.
pub enum Event<'a> {
    /// The run begins, or goes on.
    Config { command: &'a str, device: &'a str, config: &'a Value },
    /// An optimizer step is done; the memory is the high-water mark so far.
    Step { record: &'a StepRecord, memory_bytes: u64 },
    /// A perplexity was measured: of the model dense, pruned, retrained, or in training.
    Eval { name: &'a str, perplexity: f64 },
    /// The run is over: "done", "interrupted" or "failed", and why.
    End { status: &'a str, message: &'a str },
}

/// Who hears of events.
trait Listener {
    fn hear(&mut self, at: Place, event: &Event<'_>) -> io::Result<()>;
}

/// All who hear of a run. One that cannot write any more is told of once and heard no more: the run is worth more than its log.
pub struct Live {
    console: Console,
    /// Where the last event was.
    at: Place,
    listeners: Vec<(String, Box<dyn Listener>)>,
}

impl Live {
    /// Opens what `args` ask for. `resumed` is where the run goes on, and `steps` how many a cycle has.
    ///
    /// # Errors
    /// A file or folder that cannot be written.
    pub fn open(args: &LiveArgs, console: Console, resumed: Option<Place>, steps: usize) -> Result<Live, Failure> {
        let mut live = Live { console, at: resumed.unwrap_or_default(), listeners: Vec::new() };
        let cannot = |flag: &str, error: io::Error| Failure::failed(format!("{flag}: cannot be written: {error}"));
        if let Some(path) = &args.log {
            report::check("--log", path)?;
            let flag = format!("--log {}", path.display());
            let log = log::Log::open(path, resumed).map_err(|e| cannot(&flag, e))?;
            live.listeners.push((flag, Box::new(log)));
        }
        if let Some(path) = &args.tensorboard {
            let flag = format!("--tensorboard {}", path.display());
            let board = tensorboard::Board::open(path, resumed, steps).map_err(|e| cannot(&flag, e))?;
            live.listeners.push((flag, Box::new(board)));
        }
        Ok(live)
    }

    /// Tells everyone.
    pub fn tell(&mut self, at: Place, event: &Event<'_>) {
        self.at = at;
        let console = self.console;
        self.listeners.retain_mut(|(flag, listener)| match listener.hear(at, event) {
            Ok(()) => true,
            Err(error) => {
                console.warn(&format!("{flag}: cannot be written any more: {error}; the run goes on without"));
                false
            }
        });
    }

    /// Tells how a run ended.
    pub fn end<T>(&mut self, result: &Result<T, Failure>) {
        let message = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let status = match result {
            Ok(_) => "done",
            Err(Failure::Interrupted { .. }) => "interrupted",
            Err(_) => "failed",
        };
        self.tell(self.at, &Event::End { status, message: &message });
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
