//! Adapters to start from: LoRA that was trained before, here or by PEFT, trains on.

use std::path::PathBuf;

use engine::checkpoint::{Adapter, HEAD_MODULE};
use engine::peft::TrainSet;

use crate::args::MethodArgs;
use crate::error::Failure;

/// An adapter to start from.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "What trains")]
pub struct StartArgs {
    /// Start from this LoRA adapter: a folder in PEFT's form, also one that PEFT trained, or of retrain --merge none. Its matrices train
    /// on with their ranks and alphas; what it does not have starts fresh. --targets are then its own, if they are not named. The
    /// pruned model's perplexity is measured without it.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

impl StartArgs {
    /// The adapter, and `set` with its targets.
    ///
    /// # Errors
    /// An adapter that `set` does not train, or that is of another form than what `set` trains; several cycles.
    pub fn open(&self, method: &MethodArgs, set: &mut TrainSet, cycles: u32) -> Result<Option<Adapter>, Failure> {
        let Some(path) = &self.adapter else { return Ok(None) };
        let at = format!("--adapter {}", path.display());
        if cycles > 1 {
            return Err(Failure::usage(format!(
                "{at} goes with one cycle: a second one would start from what the first trained"
            )));
        }
        let adapter = Adapter::open(path)?;
        let own = adapter.config.form;
        let layers: Vec<&String> = adapter.modules.keys().filter(|module| *module != HEAD_MODULE).collect();
        let label = method.label();
        if !layers.is_empty() && set.targets.is_empty() {
            return Err(Failure::usage(format!(
                "{at} has LoRA on {}, which {label} does not train: choose --method perp",
                layers[0]
            )));
        }
        if !layers.is_empty() && own != set.kind.form() {
            return Err(Failure::usage(format!(
                "{at} is {}, and {label} trains {}: an adapter trains on in the form in which it was trained",
                own.peft_type(),
                set.kind.form().peft_type()
            )));
        }
        if adapter.modules.contains_key(HEAD_MODULE) && !set.head {
            return Err(Failure::usage(format!(
                "{at} has LoRA on the head, which {label} does not train: choose --method probe or perp, or add head to --parts"
            )));
        }
        if !method.names_targets() && !layers.is_empty() {
            set.targets = Vec::new();
            for role in layers.iter().filter_map(|module| module.rsplit('.').next()) {
                if !set.targets.iter().any(|target| target == role) {
                    set.targets.push(role.into());
                }
            }
        }
        if let Some(module) = layers.iter().find(|module| !set.trains_on(module)) {
            return Err(Failure::usage(format!(
                "{at} has LoRA on {module}, which --targets leaves out: name it there"
            )));
        }
        Ok(Some(adapter))
    }
}
