//! What several runs of one process share: the device, the dense model's perplexity, and a pruned model with its perplexity.
//! (Tokens are shared with every process: they lie in mapped files.)

use std::collections::HashMap;
use std::rc::Rc;

use engine::data::{self, TokenStream};
use engine::model::{Model, Snapshot};
use engine::prune::{Criterion, Pruning};
use kernels::Device;

use super::Run;
use crate::allocation::Allocated;
use crate::args::MachineArgs;
use crate::error::Failure;
use crate::progress::Console;
use crate::pruner::Pruned;
use crate::session;
use crate::signals::Signals;

/// What runs leave for the next. One run alone is the first of none others.
#[derive(Default)]
pub struct Shared {
    /// Whether there is a next run.
    keeps: bool,
    device: Option<Device>,
    signals: Option<Rc<Signals>>,
    perplexities: HashMap<String, f64>,
    pruned: Option<Kept>,
    /// Of the run that goes on.
    lent: Option<Lent>,
}

/// A model as pruning left it.
struct Kept {
    model: Box<dyn Model>,
    lent: Lent,
}

/// What makes a model again what pruning left.
struct Lent {
    key: String,
    snapshot: Snapshot,
    allocated: Allocated,
    layer_errors: Vec<f64>,
}

impl Shared {
    /// For several runs.
    pub fn keeping() -> Shared {
        Shared { keeps: true, ..Shared::default() }
    }

    /// The device of all runs.
    pub fn device(&mut self, console: &Console, machine: &MachineArgs) -> Result<Device, Failure> {
        if let Some(device) = &self.device {
            return Ok(device.clone());
        }
        let device = session::device(console, machine)?;
        self.device = Some(device.clone());
        Ok(device)
    }

    /// The signals of the process.
    pub fn signals(&mut self) -> Result<Rc<Signals>, Failure> {
        if let Some(signals) = &self.signals {
            return Ok(signals.clone());
        }
        let signals = Rc::new(Signals::install()?);
        self.signals = Some(signals.clone());
        Ok(signals)
    }

    /// A perplexity that does not depend on what trains, measured once for each key; without one, whenever it is asked for.
    pub(super) fn perplexity(
        &mut self,
        key: Option<String>,
        measure: impl FnOnce() -> Result<Option<f64>, Failure>,
    ) -> Result<Option<f64>, Failure> {
        let key = key.filter(|_| self.keeps);
        if let Some(known) = key.as_ref().and_then(|key| self.perplexities.get(key)) {
            return Ok(Some(*known));
        }
        let measured = measure()?;
        if let (Some(key), Some(value)) = (key, measured) {
            self.perplexities.insert(key, value);
        }
        Ok(measured)
    }

    /// Takes a run's model back, for the next that is pruned alike.
    pub fn give_back(&mut self, mut model: Box<dyn Model>) -> Result<(), Failure> {
        if let Some(lent) = self.lent.take()
            && lent.snapshot.restore(&mut *model)?
        {
            self.pruned = Some(Kept { model, lent });
        }
        Ok(())
    }

    /// Lets go of a kept model that was pruned in another way, before another is loaded.
    pub(super) fn release_unless(&mut self, key: &str) {
        self.pruned = self.pruned.take().filter(|pruned| pruned.lent.key == key);
    }

    /// Bytes of the device that a model kept for the next run takes: what a plan finds free, it may have besides.
    pub(super) fn held_bytes(&self) -> u64 {
        match (&self.pruned, &self.device) {
            (Some(_), Some(device)) => device.memory().in_use(),
            _ => 0,
        }
    }
}

impl Run<'_> {
    /// The pruned model: what an earlier run left of the same pruning, or pruned now.
    pub(super) fn pruned_model(&self, shared: &mut Shared) -> Result<Pruned, Failure> {
        let key = self.pruning_key();
        if let Some(Kept { model, lent }) = shared.pruned.take() {
            let (allocated, layer_errors) = (lent.allocated.clone(), lent.layer_errors.clone());
            shared.lent = Some(lent).filter(|_| !self.merges_after(1));
            self.console.say("prune: as the run before");
            return Ok(Pruned { model, allocated, layer_errors });
        }
        // Of a run that failed.
        shared.lent = None;
        let mut pruned = self.pruner().load(&self.device, &self.opened, self.offload)?;
        // A later cycle prunes further, and adapters that merge change weights: such a model is no use to the next run.
        if shared.keeps && self.args.cycles == 1 && !self.merges_after(1) {
            let (allocated, layer_errors) = (pruned.allocated.clone(), pruned.layer_errors.clone());
            shared.lent =
                Snapshot::of(&mut *pruned.model)?.map(|snapshot| Lent { key, snapshot, allocated, layer_errors });
        }
        Ok(pruned)
    }

    /// All that decides about the model after the first cycle's pruning.
    pub(super) fn pruning_key(&self) -> String {
        let Pruning { criterion, pattern, seed, .. } = self.pruner().pruning;
        let windows = self.calibration.as_ref().map(|calibration| data::hash(&calibration.windows.concat()));
        let seed = (criterion == Criterion::Random).then_some(seed);
        let (cycles, allocation) = (self.args.cycles, self.allocating.configuration());
        let (path, offload) = (&self.opened.path, self.offload);
        format!("{path:?} {criterion} {pattern} {seed:?} {cycles} {allocation} {windows:?} {offload}")
    }

    /// All that decides about a perplexity, beside the model.
    pub(super) fn evaluation_key(&self) -> String {
        let text = self.eval_tokens.as_ref().map(TokenStream::hash);
        format!("{:?} {text:?} {} {:?}", self.opened.path, self.shape.seq_len, self.eval_windows)
    }
}
