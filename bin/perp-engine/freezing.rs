//! Layers that freeze or unfreeze while a cycle trains.

use clap::{Args, ValueEnum};
use engine::retrain::{End, Freezing};

/// An end of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// From the first decoder layer on.
    Input,
    /// From the last decoder layer back.
    Output,
}

/// Layers that freeze or unfreeze while a cycle trains.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "What trains")]
pub struct FreezeArgs {
    /// Freeze decoder layers gradually over the steps of each cycle, beginning at this end; a frozen layer has no gradient and no
    /// optimizer state. What comes after the last layer (its norm, the head) always trains.
    #[arg(long, value_enum, value_name = "END")]
    freeze: Option<From>,
    /// Begin each cycle with all layers frozen, and unfreeze them gradually from that end.
    #[arg(long, requires = "freeze")]
    unfreeze: bool,
}

impl FreezeArgs {
    /// What was asked for.
    pub fn freezing(&self) -> Option<Freezing> {
        let from = match self.freeze? {
            From::Input => End::Input,
            From::Output => End::Output,
        };
        Some(Freezing { from, unfreeze: self.unfreeze })
    }

    /// As a run's configuration names it.
    pub fn name(&self) -> Option<&'static str> {
        Some(match (self.freeze?, self.unfreeze) {
            (From::Input, false) => "from input",
            (From::Output, false) => "from output",
            (From::Input, true) => "unfreeze from input",
            (From::Output, true) => "unfreeze from output",
        })
    }
}
