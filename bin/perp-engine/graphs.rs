//! `--cuda-graphs`: training steps that a GPU's driver is given as one.

use std::cell::Cell;

use clap::{Args, ValueEnum};
use engine::retrain::{CudaGraphs, Trainer};
use kernels::Backend;

use crate::error::Failure;
use crate::planned::{Plan, Planned, Target};
use crate::progress::Console;
use crate::tables;

/// When steps are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Where they can be.
    Auto,
    /// Always; it is an error where they cannot be.
    On,
    /// Never.
    Off,
}

/// Steps as CUDA graphs.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "GPU")]
pub struct GraphArgs {
    /// On a GPU, capture the second training step of each shape as a CUDA graph and give the driver later ones as one launch: on,
    /// off, or auto (where it can be and has room; else steps go on launch by launch). The numbers are the same bits either way.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub cuda_graphs: Choice,
}

impl GraphArgs {
    /// Plans for graphs where they have room: what the step needs is then what it needs as a graph.
    ///
    /// # Errors
    /// No room, or no GPU, where graphs must be.
    pub fn plan(
        self,
        console: &Console,
        planned: &Planned<'_>,
        plan: &mut Plan,
        target: Target,
    ) -> Result<Graphs, Failure> {
        match (self.cuda_graphs, target.backend) {
            (Choice::Off, _) | (Choice::Auto, Backend::Cpu) => return Ok(Graphs::new(*console, CudaGraphs::Off)),
            (Choice::On, Backend::Cpu) => {
                return Err(Failure::usage(
                    "--cuda-graphs on is for steps on a GPU, and this is for the processor; use --cuda-graphs auto",
                ));
            }
            (Choice::Auto | Choice::On, Backend::Cuda) => {}
        }
        let peak = planned.as_graph(plan, target)?;
        if peak.total <= target.limit {
            plan.step.peak = peak;
            let wanted = if self.cuda_graphs == Choice::On { CudaGraphs::On } else { CudaGraphs::Auto };
            return Ok(Graphs::new(*console, wanted));
        }
        let (needed, limit) = (tables::bytes(peak.total), tables::bytes(target.limit));
        if self.cuda_graphs == Choice::On {
            return Err(Failure::failed(format!(
                "--cuda-graphs on: a step as one graph needs {needed}, {limit} are available; use --cuda-graphs auto, which goes on \
                 without"
            )));
        }
        console.say(&format!("no CUDA graphs: a step as one needs {needed}, {limit} are available"));
        Ok(Graphs::new(*console, CudaGraphs::Off))
    }
}

/// A run's graphs: where a step could not be captured, this is told once, and later cycles do not try.
pub struct Graphs {
    console: Console,
    wanted: Cell<CudaGraphs>,
}

impl Graphs {
    fn new(console: Console, wanted: CudaGraphs) -> Graphs {
        Graphs { console, wanted: Cell::new(wanted) }
    }

    /// What a run says of its steps.
    pub fn title(&self) -> &'static str {
        if self.wanted.get() == CudaGraphs::Off { "" } else { " as one CUDA graph" }
    }

    /// Tells a trainer.
    pub fn begin(&self, trainer: &mut Trainer) {
        trainer.use_cuda_graphs(self.wanted.get());
    }

    /// Hears of a step that a trainer took.
    pub fn after_step(&self, trainer: &Trainer) {
        if let Some(why) = trainer.why_no_graphs()
            && self.wanted.replace(CudaGraphs::Off) != CudaGraphs::Off
        {
            self.console.say(&format!("no CUDA graphs: {why}"));
        }
    }
}
