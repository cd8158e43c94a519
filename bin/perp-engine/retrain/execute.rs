//! The run itself: prune, measure, train, measure, in cycles, with checkpoints.

use std::ops::ControlFlow;
use std::time::Instant;

use engine::checkpoint::{ModelFolder, OutputFolder};
use engine::data::TrainSampler;
use engine::model::{self, Counts, Model, Sparsity};
use engine::peft;
use engine::prune::{Criterion, Pattern, Pruning, imp_sparsity};
use engine::retrain::{FreezingPlan, StepRecord, Trainer};

use super::outcome::Outcome;
use super::{Prune, Run, Shared};
use crate::checkpoints::{Keeper, Measured, Resumed, Standing};
use crate::error::Failure;
use crate::live::{Event, Live, Place, Probe};
use crate::planned::{Planned, Target};
use crate::progress;
use crate::pruner::{Pruned, Pruner};
use crate::report::{Cycle, Seconds};
use crate::session::{self, Evaluation};
use crate::signals;
use crate::tables;
use crate::validation::Validated;

/// Who keeps a run and who hears of it.
struct Watch<'a, 'k> {
    keeper: Option<&'a mut Keeper<'k>>,
    live: &'a mut Live,
    probe: &'a mut Probe,
    shared: &'a mut Shared,
}

impl Run<'_> {
    pub(super) fn execute(
        &self,
        mut keeper: Option<&mut Keeper<'_>>,
        live: &mut Live,
        shared: &mut Shared,
    ) -> Result<(Box<dyn Model>, Outcome), Failure> {
        shared.release_unless(&self.pruning_key());
        let mut resumed = keeper.as_mut().map_or(Ok(None), |keeper| keeper.take_resumed())?;
        let (mut measured, records) = match &mut resumed {
            Some(resumed) => (resumed.measured.clone(), std::mem::take(&mut resumed.records)),
            None => (Measured::default(), Vec::new()),
        };
        if resumed.is_none() && self.args.prune == Prune::Yes && self.eval_tokens.is_some() && self.dense_fits()? {
            let measure = || {
                let model = session::load(&self.console, &self.device, &self.opened, None, 0)?;
                self.evaluate("dense", &*model, &mut measured.seconds, live, Place::default())
            };
            measured.dense = shared.perplexity(Some(self.evaluation_key()), measure)?;
        }
        self.device.trim();
        let cycles = self.args.cycles as usize;
        let start = Instant::now();
        let pruner = self.pruner();
        let Pruned { mut model, allocated, layer_errors } = self.pruned_model(shared)?;
        measured.seconds.prune += start.elapsed().as_secs_f64();
        let at = resumed.as_ref().map(|resumed| resumed.state.cycle);
        if at.is_none() {
            measured.layer_errors = layer_errors;
        }
        let mut outcome = Outcome {
            measured,
            records,
            peak: self.device.memory().peak(),
            counts: Counts::default(),
            merged: None,
            aggregated_percent: 0.0,
            sparsity: Sparsity::default(),
            allocated,
            probed: None,
        };
        let mut probe = Probe::new(&self.device, self.args.machine.report.is_some());
        let mut sampler = TrainSampler::new(self.windows.count(), self.args.optimizer.seed)?;
        for cycle in 1..=cycles {
            if cycle > 1 && self.prunes_again(cycle, at) {
                let start = Instant::now();
                let layer_errors = pruner.prune(&mut *model, &outcome.allocated, cycle)?;
                if at.is_none_or(|at| at < cycle) {
                    outcome.measured.layer_errors = layer_errors;
                }
                outcome.measured.seconds.prune += start.elapsed().as_secs_f64();
            }
            if let (Some(resumed), Some(keeper)) = (&resumed, keeper.as_deref_mut())
                && resumed.state.cycle > cycle
            {
                self.repeat(cycle, &mut *model, resumed, keeper)?;
            }
            if resumed.as_ref().is_none_or(|resumed| resumed.state.cycle == cycle) {
                let mut watch = Watch { keeper: keeper.as_deref_mut(), live, probe: &mut probe, shared };
                self.cycle(cycle, &mut *model, &mut sampler, &mut outcome, &mut watch, resumed.take())?;
            }
        }
        if let Some(Resumed { checkpoint, state, .. }) = resumed {
            let path = checkpoint.path().display();
            return Err(Failure::failed(format!("{path}: is of cycle {}, and this run has {cycles}", state.cycle)));
        }
        outcome.probed = probe.take();
        outcome.sparsity = model::sparsity(&mut *model)?;
        Ok((model, outcome))
    }

    /// Whether the model can be evaluated before it is pruned; says so where not. A processor's weights are the mapped file,
    /// whose pages can go.
    fn dense_fits(&self) -> Result<bool, Failure> {
        let Some(gpu) = self.device.gpu() else { return Ok(true) };
        let planned = Planned {
            architecture: &*self.opened.architecture,
            dtype: session::weight_dtype(&self.opened.folder),
            criterion: Criterion::Magnitude,
            pattern: Pattern::Unstructured { sparsity: 0.0 },
            allocation: None,
            set: &self.set,
            adapter: None,
            freezing: None,
            shape: self.shape,
            offload: 0,
        };
        let target = Target::of(&self.device, None)?;
        let needed = planned.evaluation(target)?;
        if needed > target.limit {
            self.console.say(&format!(
                "the dense model needs {}, {} has {} left: its perplexity is not measured; eval --device cpu measures it",
                tables::bytes(needed),
                gpu.name(),
                tables::bytes(target.limit)
            ));
        }
        Ok(needed <= target.limit)
    }

    /// Evaluates, trains and evaluates the model as this cycle pruned it; or goes on where a checkpoint left the cycle.
    fn cycle(
        &self,
        cycle: usize,
        model: &mut dyn Model,
        sampler: &mut TrainSampler,
        outcome: &mut Outcome,
        watch: &mut Watch<'_, '_>,
        resumed: Option<Resumed>,
    ) -> Result<(), Failure> {
        let Watch { keeper, live, probe, shared } = watch;
        if resumed.is_none() {
            let at = Place { cycle, step: 0 };
            let measure = || self.evaluate("pruned", model, &mut outcome.measured.seconds, live, at);
            // A later cycle prunes what the one before trained.
            let key = (cycle == 1).then(|| format!("{} {}", self.pruning_key(), self.evaluation_key()));
            outcome.measured.pruned = shared.perplexity(key, measure)?;
        }
        self.adapter.as_ref().map_or(Ok(()), |adapter| peft::attach(model, adapter))?;
        let validation = self.validation.as_ref().filter(|_| resumed.is_none());
        // Before anything trains, this is the pruned model under every method.
        let as_pruned = cycle == 1 && self.adapter.is_none();
        let key =
            validation.filter(|_| as_pruned).map(|all| format!("{} {}", self.pruning_key(), all.key(self.shape.batch)));
        let measure = || Ok(validation.map(|all| all.measure(model, self.shape.batch)).transpose()?);
        let start = Instant::now();
        if let Some(perplexity) = shared.perplexity(key, measure)? {
            self.console.say(&format!("{:>10} perplexity {perplexity:.2} at step 0", "validate"));
            live.tell(Place { cycle, step: 0 }, &Event::Eval { name: "validation", perplexity });
            outcome.measured.add(Validated { cycle, step: 0, perplexity, seconds: start.elapsed().as_secs_f64() });
        }
        let params = peft::apply(model, &self.set, self.args.optimizer.seed)?;
        outcome.counts = model::count(model);
        outcome.aggregated_percent = outcome.counts.trainable_percent();
        let freezing = match self.args.freezing.freezing() {
            None => None,
            Some(freezing) => {
                let plan = FreezingPlan::new(model, &params, freezing, self.config.steps)?;
                let all = self.config.steps as f64 * outcome.counts.trainable as f64;
                outcome.aggregated_percent *= plan.aggregated(&params) as f64 / all;
                Some(plan)
            }
        };
        let Outcome { measured, records, .. } = outcome;
        let trained_params = params.clone();
        self.device.trim();
        self.device.memory().reset_peak();
        let start = Instant::now();
        let mut trainer = Trainer::with_freezing(model, params, self.config.clone(), freezing)?;
        self.graphs.begin(&mut trainer);
        let mut task = self.console.task("retrain", self.config.steps as u64);
        match (resumed, keeper.as_mut()) {
            (Some(Resumed { checkpoint, state, .. }), _) => {
                task.begin_at(state.step as u64);
                trainer.restore(&checkpoint, &state)?;
                *sampler = TrainSampler::resume(self.windows.count(), self.args.optimizer.seed, state.sampler)?;
            }
            // A later cycle begins with the checkpoint that ended the one before.
            (None, Some(keeper)) if cycle == 1 => {
                keeper.begin(&trainer, &Standing { cycle, step: 0, sampler: sampler.position(), records, measured })?;
            }
            _ => {}
        }
        let mut last = String::new();
        let mut validated = measured.validation.last().map_or(String::new(), |last| format!(" {last}"));
        let before = measured.seconds.retrain;
        let mut validating = 0.0;
        let trained: &dyn Model = model;
        probe.begin();
        let mut on_step = |trainer: &Trainer, sampler: &TrainSampler, record: StepRecord| {
            let (step, memory_bytes) = (record.step, self.device.memory().peak().total);
            live.tell(Place { cycle, step }, &Event::Step { record: &record, memory_bytes });
            probe.after_step(&record);
            self.graphs.after_step(trainer);
            if let Some(validation) = self.validation.as_ref().filter(|all| all.is_due(step, self.config.steps)) {
                let start = Instant::now();
                let perplexity = validation.measure(trained, self.shape.batch)?;
                let new = Validated { cycle, step, perplexity, seconds: start.elapsed().as_secs_f64() };
                validated = format!(" {new}");
                validating += new.seconds;
                live.tell(Place { cycle, step }, &Event::Eval { name: "validation", perplexity });
                measured.add(new);
            }
            if step < self.config.steps {
                probe.begin();
            }
            last = progress::step(&record, memory_bytes) + &validated;
            task.update(step as u64, &last);
            records.push((cycle, record));
            measured.seconds.retrain = before + start.elapsed().as_secs_f64() - validating;
            let stop = self.signals.received().is_some();
            if let Some(keeper) = keeper.as_mut() {
                let standing = Standing { cycle, step, sampler: sampler.position(), records, measured };
                keeper.after_step(trainer, &standing, stop || step == self.config.steps)?;
            }
            Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let ended = self.signals.deferred(|| trainer.run(trained, &self.windows, sampler, &mut on_step));
        let last_good = keeper.as_ref().and_then(|keeper| keeper.last());
        ended.map_err(|error| {
            if !error.is_divergence() {
                return error.into();
            }
            // What is frozen does not change: a value that is not finite was in the file.
            let damaged = self.opened.folder.first_not_finite();
            let damaged =
                damaged.map(|info| format!("; {} of the model holds a value that is not finite", info.name()));
            let good = last_good.map(|path| format!("; the last good checkpoint is {}", path.display()));
            Failure::failed(format!("{error}{}{}", damaged.unwrap_or_default(), good.unwrap_or_default()))
        })?;
        if let Some(signal) = self.signals.received() {
            let step = records.last().map_or(0, |(_, record)| record.step);
            let how = match last_good {
                Some(path) => format!("the same command with --resume goes on from {}", path.display()),
                None => "nothing is kept; with --checkpoints DIR, --resume could go on".into(),
            };
            let message = format!(
                "{} ended the run after step {step} of {} in cycle {cycle} of {}; {how}",
                signals::name(signal),
                self.config.steps,
                self.args.cycles
            );
            return Err(Failure::Interrupted { signal, message });
        }
        task.finish(&format!("{} steps, {last}", self.config.steps));
        outcome.peak = self.device.memory().peak();
        drop(trainer);
        self.device.trim();
        outcome.merged = None;
        if let Some(keeper) = keeper.as_mut().filter(|_| cycle < self.args.cycles as usize) {
            self.remember(cycle, model, &trained_params, keeper)?;
        }
        drop(trained_params); // adapters that merge are to be gone then
        if self.merges_after(cycle) {
            outcome.merged = Some(self.merge(cycle, model)?);
        }
        let at = Place { cycle, step: self.config.steps };
        let retrained = self.evaluate("retrained", model, &mut measured.seconds, live, at)?;
        let (pruned, layer_errors) = (measured.pruned, std::mem::take(&mut measured.layer_errors));
        measured.cycles.push(Cycle { cycle, sparsity: self.sparsity_after(cycle), pruned, retrained, layer_errors });
        Ok(())
    }

    fn sparsity_after(&self, cycle: usize) -> f64 {
        imp_sparsity(self.pattern.sparsity(), cycle, self.args.cycles as usize)
    }

    pub(super) fn pruner(&self) -> Pruner<'_> {
        let seed = self.args.optimizer.seed;
        Pruner {
            console: &self.console,
            pruning: Pruning { pattern: self.pattern, ..self.args.pruning.pruning(seed) },
            allocating: &self.allocating,
            calibration: self.calibration.as_ref(),
            cycles: self.args.cycles as usize,
            // Training needs them all, and there is a plan for that.
            spill: None,
        }
    }

    fn evaluate(
        &self,
        name: &str,
        model: &dyn Model,
        seconds: &mut Seconds,
        live: &mut Live,
        at: Place,
    ) -> Result<Option<f64>, Failure> {
        let Some(stream) = &self.eval_tokens else { return Ok(None) };
        let evaluation = Evaluation {
            console: &self.console,
            tokens: stream.tokens(),
            seq_len: self.shape.seq_len,
            batch: self.shape.batch,
            max_windows: self.eval_windows,
        };
        let perplexity = evaluation.run(name, model, &mut seconds.eval)?;
        live.tell(at, &Event::Eval { name, perplexity });
        Ok(Some(perplexity))
    }

    pub(super) fn write(
        &self,
        model: &mut dyn Model,
        out: &std::path::Path,
        keeper: Option<&Keeper<'_>>,
    ) -> Result<(), Failure> {
        let folder = OutputFolder::create(out)?;
        let source: &ModelFolder = &self.opened.folder;
        let config = self.model_config(model);
        model::save(model, &folder, &config, Some(source), None, self.args.format.weights())?;
        let base = out.display().to_string();
        let has_adapter = peft::save_adapter(model, &folder, Some("adapter"), &base)?;
        if let Some(keeper) = keeper {
            self.promise(keeper, &folder, out);
        }
        folder.commit()?;
        let adapter = if has_adapter { " with its LoRA in adapter/" } else { "" };
        self.console.say(&format!("wrote {}{adapter}", out.display()));
        Ok(())
    }
}
