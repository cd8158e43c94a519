//! A training step planned on Meta: does it fit, with how many layers recomputed, and what would make it fit.

use std::sync::Arc;

use engine::checkpoint::Adapter;
use engine::model::{self, Loader, Model, Offload, Source};
use engine::peft::{self, TrainSet};
use engine::plan::{self, Peaks, StepPlan, StepShape};
use engine::prune::{Allocation, Criterion, Pattern, Pruning, prune_linear};
use engine::retrain::{Freezing, FreezingPlan};
use engine::tensor::Param;
use kernels::device::{Gemm, KernelStats, MemoryReport};
use kernels::{Backend, DType, Device};
use models::Architecture;

use crate::args::{self, Checkpointing, SavingArgs};
use crate::error::Failure;
use crate::tables;

/// A training step to be planned.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    pub architecture: &'a dyn Architecture,
    pub dtype: DType,
    pub criterion: Criterion,
    pub pattern: Pattern,
    /// Sparsities of single matrices, where a file gives them.
    pub allocation: Option<&'a Allocation>,
    pub set: &'a TrainSet,
    /// Where training starts.
    pub adapter: Option<&'a Adapter>,
    /// How layers freeze over a cycle of so many steps.
    pub freezing: Option<(Freezing, usize)>,
    pub shape: StepShape,
    /// Decoder layers whose weights stay in the host's memory.
    pub offload: usize,
}

/// A step as it was planned.
pub struct Plan {
    /// Layers that are recomputed.
    pub recompute: usize,
    /// Layers that are offloaded.
    pub offload: usize,
    /// All decoder layers.
    layers: usize,
    /// What the step needs.
    pub step: StepPlan,
    /// Bytes of pinned memory.
    pub host_bytes: u64,
    /// Seconds that a step is estimated to take longer than with all weights on the GPU, where the GPU's peaks are known.
    pub slower: Option<f64>,
}

impl Plan {
    /// Bytes of the device.
    pub fn needed(&self) -> u64 {
        self.step.peak.total
    }

    /// True where device and host have room for it.
    pub fn fits(&self, target: Target) -> bool {
        self.needed() <= target.limit && self.host_bytes <= target.host
    }

    /// The seconds that the step is estimated to take.
    pub fn estimated_seconds(&self, peaks: Peaks) -> f64 {
        self.seconds(peaks, |stats| peaks.estimated_seconds(stats))
    }

    /// The seconds of the step where its kernels take what `of` says.
    pub fn seconds(&self, peaks: Peaks, of: impl Fn(&KernelStats) -> f64) -> f64 {
        peaks.step_seconds(&self.step.kernels, self.offload as f64 / self.layers as f64, of)
    }

    /// What offloading costs, in words.
    fn price(&self) -> String {
        let slower = self.slower.map_or(String::new(), |s| format!(", an estimated +{:.1} ms a step", 1e3 * s));
        format!("{} of host memory{slower}", tables::bytes(self.host_bytes))
    }
}

/// Where a step is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub backend: Backend,
    pub threads: usize,
    /// Who multiplies dense matrices there.
    pub gemm: Gemm,
    /// Bytes that it may take.
    pub limit: u64,
    /// Bytes of the host that offloaded weights may take.
    pub host: u64,
    /// What bounds its kernels, where it is a GPU that tells.
    pub peaks: Option<Peaks>,
}

impl Target {
    /// The device to plan on.
    pub fn meta(&self) -> Device {
        Device::meta_with(self.backend, self.threads, self.gemm)
    }

    /// A device: what it has left, or `budget` where that is less.
    pub fn of(device: &Device, budget: Option<u64>) -> Result<Target, Failure> {
        let host = plan::available_memory().unwrap_or(u64::MAX);
        let (limit, peaks) = match device.gpu() {
            None => (host, None),
            Some(gpu) => {
                let free = gpu.free_memory().map_err(kernels::Error::from)?;
                // Less a hundredth or so for what the driver takes as it goes: the kernels' code, and its pool's odd pieces.
                ((free - free / 128) as u64, Peaks::of(gpu).map_err(kernels::Error::from)?)
            }
        };
        let (backend, threads, gemm) = (device.backend(), device.threads(), device.gemm());
        let target = Target { backend, threads, gemm, limit, host, peaks };
        Ok(target.within(budget))
    }

    /// The same with `bytes` that are taken now and will be given back, or are part of what is planned.
    pub fn besides(self, bytes: u64) -> Target {
        Target { limit: self.limit.saturating_add(bytes), ..self }
    }

    /// The same, or `budget` where that is less.
    pub fn within(self, budget: Option<u64>) -> Target {
        Target { limit: self.limit.min(budget.unwrap_or(u64::MAX)), ..self }
    }
}

/// A model on Meta, and what trains in it.
type Trained = (Box<dyn Model>, Vec<Arc<Param>>);

impl Planned<'_> {
    /// Runs the step on Meta.
    fn measure(&self, target: Target) -> Result<Plan, Failure> {
        let (mut model, params) = self.trained(target)?;
        let step = plan::measure(&mut *model, params, self.shape)?;
        let host_bytes = model::host_bytes(&mut *model) as u64;
        let (recompute, offload, layers) = (self.shape.recompute, self.offload, self.layers());
        Ok(Plan { recompute, offload, layers, step, host_bytes, slower: None })
    }

    /// What the planned step needs as one CUDA graph.
    pub fn as_graph(&self, plan: &Plan, target: Target) -> Result<MemoryReport, Failure> {
        let planned = self.with(plan.recompute, plan.offload);
        let (mut model, params) = planned.trained(target)?;
        Ok(plan::measure_graph(&mut *model, params, planned.shape)?)
    }

    /// The model on Meta, and what trains in it.
    fn trained(&self, target: Target) -> Result<Trained, Failure> {
        let device = target.meta();
        let mut model = self.build(&device)?;
        self.adapter.map_or(Ok(()), |adapter| peft::attach(&mut *model, adapter))?;
        let mut params = peft::apply(&mut *model, self.set, 0)?;
        if let Some((freezing, steps)) = self.freezing {
            // There must be room for the step in which most trains.
            let plan = FreezingPlan::new(&mut *model, &params, freezing, steps)?;
            params = plan.freeze(&params, plan.fullest());
        }
        Ok((model, params))
    }

    /// Bytes of evaluating the model.
    pub fn evaluation(&self, target: Target) -> Result<u64, Failure> {
        let model = self.build(&target.meta())?;
        Ok(plan::evaluation(&*model, self.shape.batch, self.shape.seq_len)?.total)
    }

    /// The model on Meta, pruned.
    pub fn build(&self, device: &Device) -> Result<Box<dyn Model>, Failure> {
        let pruning = Pruning { criterion: self.criterion, pattern: self.pattern, seed: 0 };
        let allocation = self.allocation.cloned().unwrap_or_default();
        let offload = Offload::new(device, self.offload);
        let loader = Loader::new(device, Source::Absent(self.dtype)).on_linear(move |linear| {
            prune_linear(linear, &allocation.pruning(&pruning, &linear.name))?;
            offload.take(linear)
        });
        Ok(self.architecture.build(&loader)?)
    }

    fn layers(&self) -> usize {
        self.architecture.info().layers
    }

    fn with(&self, recompute: usize, offload: usize) -> Self {
        Planned { shape: StepShape { recompute, ..self.shape }, offload, ..*self }
    }

    /// Chooses how many layers to recompute, and then to offload: as few as fit. Where nothing fits, all that `saving` allows.
    ///
    /// # Errors
    /// Layers to be offloaded from a processor, or where every weight trains.
    pub fn choose(&self, saving: SavingArgs, target: Target) -> Result<Plan, Failure> {
        let mut plan = self.chosen(saving, target)?;
        if let Some(peaks) = target.peaks.filter(|_| plan.offload > 0) {
            let resident = self.with(plan.recompute, 0).measure(target)?;
            plan.slower = Some((plan.estimated_seconds(peaks) - resident.estimated_seconds(peaks)).max(0.0));
        }
        Ok(plan)
    }

    fn chosen(&self, saving: SavingArgs, target: Target) -> Result<Plan, Failure> {
        self.check_tokens(target)?;
        let asked = match saving.offload {
            args::Offload::Layers(layers) => layers.min(self.layers()),
            args::Offload::Off | args::Offload::Auto => 0,
        };
        if asked > 0 && target.backend == Backend::Cpu {
            return Err(Failure::usage(
                "--offload keeps weights in the host's memory for a GPU; on the CPU they are there",
            ));
        }
        if saving.offload != args::Offload::Off && self.set.full {
            return Err(Failure::usage("--offload is for frozen weights; where all train, there are none"));
        }
        let most = if saving.checkpointing == Checkpointing::Off { 0 } else { self.layers() };
        let least = if saving.checkpointing == Checkpointing::On { self.layers() } else { 0 };
        let plan = fewest(least, most, target, |recompute| self.with(recompute, asked).measure(target))?;
        if plan.needed() <= target.limit || saving.offload != args::Offload::Auto || target.backend == Backend::Cpu {
            return Ok(plan);
        }
        fewest(1, self.layers(), target, |offload| self.with(most, offload).measure(target))
    }

    /// Fails where not even a step's tokens, or one hidden state of each token of a micro-batch, have room: planning such a
    /// step would take as much.
    fn check_tokens(&self, target: Target) -> Result<(), Failure> {
        let StepShape { batch, accumulate, seq_len, .. } = self.shape;
        let tokens = batch as u128 * seq_len as u128;
        let ids = tokens * accumulate as u128 * size_of::<u32>() as u128;
        let states = tokens * self.architecture.info().hidden as u128 * target.backend.compute_dtype().size() as u128;
        for (what, flag, bytes) in [("hidden states", "--batch", states), ("token ids", "--batch or --accumulate", ids)]
        {
            if bytes > u128::from(target.limit) {
                return Err(Failure::failed(format!(
                    "the plan does not fit: the {what} alone of {accumulate}×{batch}×{seq_len} tokens take {}, {} are \
                     available: a smaller {flag} takes less",
                    tables::bytes(bytes.try_into().unwrap_or(u64::MAX)),
                    tables::bytes(target.limit)
                )));
            }
        }
        Ok(())
    }

    /// What a run says of the layers it recomputes and offloads, and of what the latter costs.
    pub fn measures(&self, plan: &Plan) -> String {
        let layers = self.layers();
        let of = |what: &str, count: usize| match count {
            count if count >= layers => format!("{what} of all layers"),
            count => format!("{what} of {count} of {layers} layers"),
        };
        let mut all = Vec::new();
        if plan.recompute > 0 {
            all.push(of("checkpointing", plan.recompute));
        }
        if plan.offload > 0 {
            all.push(format!("{} ({})", of("offload", plan.offload), plan.price()));
        }
        if all.is_empty() { String::new() } else { format!(" with {}", all.join(" and ")) }
    }

    /// [`choose`](Self::choose) before anything is loaded.
    ///
    /// # Errors
    /// A step that does not fit either way; says by how much, and what would fit.
    pub fn fit(&self, saving: SavingArgs, target: Target) -> Result<Plan, Failure> {
        let plan = self.choose(saving, target)?;
        if plan.needed() > target.limit {
            return Err(Failure::failed(format!(
                "the plan does not fit: a step needs {}, {} are available ({} short); {}",
                tables::bytes(plan.needed()),
                tables::bytes(target.limit),
                tables::bytes(plan.needed() - target.limit),
                self.remedies(saving, target)?
            )));
        }
        if plan.host_bytes > target.host {
            return Err(Failure::failed(format!(
                "{} offloaded layers need {} of the host's memory, {} are available: offload fewer",
                plan.offload,
                tables::bytes(plan.host_bytes),
                tables::bytes(target.host)
            )));
        }
        Ok(plan)
    }

    /// The smallest change of each flag that makes the step fit, with what it would need: each is planned as the run that takes it
    /// would be.
    pub fn remedies(&self, saving: SavingArgs, target: Target) -> Result<String, Failure> {
        let mut fit = Vec::new();
        let off = saving.checkpointing == Checkpointing::Off;
        let on = SavingArgs { checkpointing: Checkpointing::On, ..saving };
        if off {
            fit.extend(self.offer("--checkpointing on", on, target)?);
        }
        // Where that alone is not enough, everything else is tried on top of it.
        let on_top = off && fit.is_empty();
        let (first, saving) = if on_top { ("--checkpointing on ", on) } else { ("", saving) };
        if target.backend == Backend::Cuda && saving.offload != args::Offload::Auto && !self.set.full {
            let offloading = SavingArgs { offload: args::Offload::Auto, ..saving };
            fit.extend(self.offer(&format!("{first}--offload auto"), offloading, target)?);
        }
        let shape = self.shape;
        let halves = |from: usize, least: usize| {
            std::iter::successors(Some(from / 2), |n| Some(n / 2)).take_while(move |n| *n >= least)
        };
        let batches = halves(shape.batch, 1)
            .map(|batch| (format!("--batch {batch}"), Planned { shape: StepShape { batch, ..shape }, ..*self }));
        let lengths = halves(shape.seq_len, 128).map(|seq_len| {
            (format!("--seq-len {seq_len}"), Planned { shape: StepShape { seq_len, ..shape }, ..*self })
        });
        // A file's sparsities are the user's to change, and weights that train are stored whole.
        let uniform = self.allocation.is_none() && !self.set.full;
        let instead = if matches!(self.pattern, Pattern::NM { .. }) { " instead of --pattern" } else { "" };
        let sparser = (1..=9)
            .map(|tenths| f64::from(tenths) / 10.0)
            .filter(|sparsity| uniform && *sparsity > self.pattern.sparsity())
            .map(|sparsity| {
                let pattern = Pattern::Unstructured { sparsity };
                (format!("--sparsity {sparsity}{instead}"), Planned { pattern, ..*self })
            });
        let changes: [Vec<(String, Planned<'_>)>; 3] = [batches.collect(), lengths.collect(), sparser.collect()];
        for changes in changes {
            for (flags, planned) in changes {
                if let Some(offer) = planned.offer(&format!("{first}{flags}"), saving, target)? {
                    fit.push(offer);
                    break;
                }
            }
        }
        Ok(match fit.len() {
            0 => "no smaller batch, shorter sequence or higher sparsity alone makes it fit".into(),
            _ => format!("it fits with {}", fit.join(", or ")),
        })
    }

    /// The flags with what a run that takes them needs, where it fits.
    fn offer(&self, flags: &str, saving: SavingArgs, target: Target) -> Result<Option<String>, Failure> {
        let plan = self.choose(saving, target)?;
        Ok(plan.fits(target).then(|| match plan.offload {
            0 => format!("{flags} ({})", tables::bytes(plan.needed())),
            1 => format!("{flags} (1 layer, {})", plan.price()),
            layers => format!("{flags} ({layers} layers, {})", plan.price()),
        }))
    }
}

/// The plan of the smallest number in `least..=most` that fits; of `most` where none does.
fn fewest(
    mut least: usize,
    most: usize,
    target: Target,
    plan: impl Fn(usize) -> Result<Plan, Failure>,
) -> Result<Plan, Failure> {
    let first = plan(least)?;
    if first.needed() <= target.limit || least >= most {
        return Ok(first);
    }
    let (mut enough, mut best) = (most, plan(most)?);
    least += 1;
    while least < enough {
        let middle = (least + enough) / 2;
        let tried = plan(middle)?;
        if tried.needed() <= target.limit {
            (enough, best) = (middle, tried);
        } else {
            least = middle + 1;
        }
    }
    Ok(best)
}
