//! Adapters that merge: into the weights when a cycle is over, so that the next one prunes what the model is then.

use clap::ValueEnum;
use engine::model::Model;
use engine::peft::{self, MergeReport};
use serde_json::Value;

use super::Run;
use crate::error::Failure;
use crate::tables;

/// Which adapters are merged when training is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Merge {
    /// Also the head's.
    All,
    /// Those of the decoder layers; the head's stays an adapter.
    Layers,
    /// All stay adapters.
    None,
}

/// Adapters that merge.
#[derive(clap::Args, Clone, Copy, Debug)]
#[command(next_help_heading = "What trains")]
pub struct MergingArgs {
    /// Which adapters of mask-lora, scale-lora and lora-prune go into the weights when training is over. all: the head's, too, into
    /// lm_head.weight, which a model that shares it with its embedding then gets for itself. layers: those of the decoder layers.
    /// none: the command merge can do it later. What is not merged stays in the subfolder adapter [default: all].
    #[arg(long, value_enum, value_name = "WHICH")]
    merge: Option<Merge>,
}

impl MergingArgs {
    /// Fails where a choice was made and nothing merges.
    pub fn check(self, merges: bool) -> Result<(), Failure> {
        if self.merge.is_some() && !merges {
            return Err(Failure::usage(
                "--merge goes with the methods mask-lora, scale-lora and lora-prune; the command merge merges other adapters",
            ));
        }
        Ok(())
    }

    /// As a run's configuration names it.
    pub fn name(self) -> &'static str {
        match self.which() {
            Merge::All => "all",
            Merge::Layers => "layers",
            Merge::None => "none",
        }
    }

    fn which(self) -> Merge {
        self.merge.unwrap_or(Merge::All)
    }
}

impl Run<'_> {
    /// Whether adapters are merged when `cycle` is over: before another one always, for it prunes what they made of the weights.
    pub(super) fn merges_after(&self, cycle: usize) -> bool {
        self.set.kind.merges() && (cycle < self.args.cycles as usize || self.args.merging.which() != Merge::None)
    }

    /// Merges the adapters of linear layers, and after the last cycle the head's.
    pub(super) fn merge(&self, cycle: usize, model: &mut dyn Model) -> Result<MergeReport, Failure> {
        let adapters = peft::merging(model).len() / 2;
        let mut task = self.console.task("merge", adapters as u64);
        let mut report = peft::merge(model, &mut |done| task.update(done as u64, "adapters"))?;
        if cycle == self.args.cycles as usize && self.args.merging.which() == Merge::All {
            report += peft::merge_head(model)?;
        }
        task.finish(&format!(
            "{} adapters merged; rounding changed {} of their updates",
            report.matrices,
            tables::percent(report.rounding())
        ));
        Ok(report)
    }

    /// The configuration that the written model needs: a head of its own, where one was made.
    pub(super) fn model_config(&self, model: &dyn Model) -> Value {
        let mut config = self.opened.folder.config().clone();
        let untied = self.set.kind.merges() && self.set.head && !model.head().tied;
        if untied && let Some(config) = config.as_object_mut() {
            config.insert("tie_word_embeddings".into(), false.into());
        }
        config
    }
}
