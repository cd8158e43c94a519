//! A training step planned on Meta: does it fit, with how many layers recomputed, and what would make it fit.

use engine::model::{Loader, Model, Source};
use engine::peft::{self, TrainSet};
use engine::plan::{self, StepPlan, StepShape};
use engine::prune::{Criterion, Pattern, Pruning, prune_linear};
use kernels::{Backend, DType, Device};
use models::Architecture;

use crate::args::Checkpointing;
use crate::error::Failure;
use crate::tables;

/// A training step to be planned.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    pub architecture: &'a dyn Architecture,
    pub dtype: DType,
    pub pattern: Pattern,
    pub set: &'a TrainSet,
    pub shape: StepShape,
}

/// Where a step is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub backend: Backend,
    pub threads: usize,
    /// Bytes that it may take.
    pub limit: u64,
}

impl Target {
    /// A device: what it has left, or `budget` where that is less.
    pub fn of(device: &Device, budget: Option<u64>) -> Result<Target, Failure> {
        let left = match device.gpu() {
            Some(gpu) => Some(gpu.free_memory().map_err(kernels::Error::from)? as u64),
            None => plan::available_memory(),
        };
        let limit = budget.unwrap_or(u64::MAX).min(left.unwrap_or(u64::MAX));
        Ok(Target { backend: device.backend(), threads: device.threads(), limit })
    }
}

impl Planned<'_> {
    /// Runs the step on Meta.
    fn measure(&self, target: Target) -> Result<StepPlan, Failure> {
        let device = Device::meta(target.backend, target.threads);
        let mut model = self.build(&device)?;
        let params = peft::apply(&mut *model, self.set, 0)?;
        Ok(plan::measure(&mut *model, params, self.shape)?)
    }

    /// Bytes of evaluating the model.
    pub fn evaluation(&self, target: Target) -> Result<u64, Failure> {
        let model = self.build(&Device::meta(target.backend, target.threads))?;
        Ok(plan::evaluation(&*model, self.shape.batch, self.shape.seq_len)?.total)
    }

    /// The model on Meta, pruned.
    pub fn build(&self, device: &Device) -> Result<Box<dyn Model>, Failure> {
        let pruning = Pruning { criterion: Criterion::Magnitude, pattern: self.pattern, seed: 0 };
        let loader =
            Loader::new(device, Source::Absent(self.dtype)).on_linear(move |linear| prune_linear(linear, &pruning));
        Ok(self.architecture.build(&loader)?)
    }

    fn recomputing_layers(&self, recompute: usize) -> Self {
        Planned { shape: StepShape { recompute, ..self.shape }, ..*self }
    }

    /// Chooses how many layers to recompute: as few as fit. Returns all of them, and the plan, where not even that fits.
    pub fn choose(&self, choice: Checkpointing, target: Target) -> Result<(usize, StepPlan), Failure> {
        let with = |recompute| self.recomputing_layers(recompute).measure(target);
        let layers = self.architecture.info().layers;
        if choice == Checkpointing::On {
            return Ok((layers, with(layers)?));
        }
        let plain = with(0)?;
        if choice == Checkpointing::Off || plain.peak.total <= target.limit {
            return Ok((0, plain));
        }
        let (mut least, mut enough) = (1, layers);
        let mut plan = with(layers)?;
        while least < enough {
            let middle = (least + enough) / 2;
            let tried = with(middle)?;
            if tried.peak.total <= target.limit {
                (enough, plan) = (middle, tried);
            } else {
                least = middle + 1;
            }
        }
        Ok((enough, plan))
    }

    /// What a run says of the layers it recomputes.
    pub fn recomputing(&self, recompute: usize) -> String {
        match self.architecture.info().layers {
            _ if recompute == 0 => String::new(),
            layers if recompute >= layers => " with checkpointing".into(),
            layers => format!(" with checkpointing of {recompute} of {layers} layers"),
        }
    }

    /// [`choose`](Self::choose) before anything is loaded.
    ///
    /// # Errors
    /// A step that does not fit either way; says by how much, and what would fit.
    pub fn fit(&self, choice: Checkpointing, target: Target) -> Result<(usize, StepPlan), Failure> {
        let (recompute, plan) = self.choose(choice, target)?;
        if plan.peak.total <= target.limit {
            return Ok((recompute, plan));
        }
        Err(Failure::failed(format!(
            "the plan does not fit: a step needs {}, {} are available ({} short); {}",
            tables::bytes(plan.peak.total),
            tables::bytes(target.limit),
            tables::bytes(plan.peak.total - target.limit),
            self.remedies(choice, target)?
        )))
    }

    /// The smallest change of each flag that makes the step fit, with what it would need.
    pub fn remedies(&self, choice: Checkpointing, target: Target) -> Result<String, Failure> {
        let layers = self.architecture.info().layers;
        let mut tried: Vec<Vec<(String, Planned<'_>)>> = Vec::new();
        // Where checkpointing is off, it alone; then everything else on top of it.
        let all = self.recomputing_layers(layers);
        let checkpointing = if choice == Checkpointing::Off { "--checkpointing on " } else { "" };
        if choice == Checkpointing::Off {
            tried.push(vec![("--checkpointing on".into(), all)]);
        }
        let halves = |from: usize, least: usize| {
            std::iter::successors(Some(from / 2), |n| Some(n / 2)).take_while(move |n| *n >= least)
        };
        let StepShape { batch, seq_len, .. } = all.shape;
        let with_shape = |flag: String, shape| (format!("{checkpointing}{flag}"), Planned { shape, ..all });
        tried.push(
            halves(batch, 1)
                .map(|batch| with_shape(format!("--batch {batch}"), StepShape { batch, ..all.shape }))
                .collect(),
        );
        tried.push(
            halves(seq_len, 128)
                .map(|seq_len| with_shape(format!("--seq-len {seq_len}"), StepShape { seq_len, ..all.shape }))
                .collect(),
        );
        let sparser =
            (1..=9).map(|tenths| f64::from(tenths) / 10.0).filter(|sparsity| *sparsity > self.pattern.sparsity());
        tried.push(
            sparser
                .map(|sparsity| {
                    let pattern = Pattern::Unstructured { sparsity };
                    (format!("{checkpointing}--sparsity {sparsity}"), Planned { pattern, ..all })
                })
                .collect(),
        );
        let mut fit = Vec::new();
        for changes in tried {
            for (flags, planned) in changes {
                let needed = planned.measure(target)?.peak.total;
                if needed <= target.limit {
                    fit.push(format!("{flags} ({})", tables::bytes(needed)));
                    break;
                }
            }
        }
        Ok(match fit.len() {
            0 => "no smaller batch, shorter sequence or higher sparsity alone makes it fit".into(),
            _ => format!("it fits with {}", fit.join(", or ")),
        })
    }
}
