//! `retrain`: prune, retrain a few parameters, measure what that wins back.

use std::path::PathBuf;
use std::time::Instant;

use engine::calibrate::Calibration;
use engine::checkpoint::{ModelFolder, OutputFolder, Tokenizer};
use engine::data::{TokenStream, TrainSampler};
use engine::model::{self, Counts, Model, Sparsity};
use engine::peft::{self, TrainSet};
use engine::plan::StepShape;
use engine::prune::{Criterion, Pattern, Pruning, imp_sparsity};
use engine::retrain::{self, Config, StepRecord};
use kernels::Device;
use kernels::device::MemoryReport;
use serde_json::{Value, json};

use crate::args::{EvalArgs, MachineArgs, MethodArgs, OptimizerArgs, PruneArgs, StepArgs};
use crate::calibration::{self, CalibrationArgs, load_pruned};
use crate::error::{Failure, print};
use crate::planned::{Planned, Target};
use crate::progress::Console;
use crate::report::{self, Cycle, PeakBytes, Perplexities, Report, Seconds, SparsityReport, Step, Trainable};
use crate::session::{self, Evaluation, Opened, demo};
use crate::tables;

/// Prune a model, retrain a few of its parameters, and measure what that wins back. Without --model this is the demo: a
/// small OPT trained on Jane Austen's novels.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json, model.safetensors (or shards with an index), tokenizer.json [default: the demo].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pruning: PruneArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Cycles of prune and retrain (iterative magnitude pruning); each removes the same share of what is left.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    cycles: u32,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    eval: EvalArgs,
    /// Write the retrained model (and its LoRA adapter, in the subfolder adapter) to this new folder.
    #[arg(long, value_name = "DIR", help_heading = "Machine and output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
}

/// What stands for flags that were not given.
struct Defaults {
    steps: usize,
    batch: usize,
    accumulate: usize,
    lr: f64,
    eval_windows: usize,
}

/// The paper's setting for models below 30B.
const PAPER: Defaults = Defaults { steps: 1000, batch: 2, accumulate: 4, lr: 5e-4, eval_windows: 0 };
/// Under a minute on two cores.
const DEMO: Defaults = Defaults { steps: 120, batch: 8, accumulate: 1, lr: 5e-4, eval_windows: 128 };

/// Everything a run knows before it touches a weight.
struct Run<'a> {
    args: &'a Args,
    console: Console,
    device: Device,
    opened: Opened,
    set: TrainSet,
    pattern: Pattern,
    shape: StepShape,
    config: Config,
    /// Layers whose weights stay in the host's memory.
    offload: usize,
    stream: TokenStream,
    calibrate: Vec<PathBuf>,
    calibration: Option<Calibration>,
    eval_tokens: Option<Vec<u32>>,
    eval_windows: Option<usize>,
}

/// What a run measured.
struct Outcome {
    perplexity: Perplexities,
    cycles: Vec<Cycle>,
    records: Vec<(usize, StepRecord)>,
    seconds: Seconds,
    peak: MemoryReport,
    counts: Counts,
    sparsity: Sparsity,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        OutputFolder::check(out)?;
    }
    if let Some(report) = &args.machine.report {
        report::check("--report", report)?;
    }
    let run = prepare(args)?;
    let (mut model, outcome) = run.execute()?;
    if let Some(out) = &args.out {
        run.write(&mut *model, out)?;
    }
    if let Some(path) = &args.machine.report {
        report::write(path, &run.report(&outcome))?;
    }
    print(&run.summary(&outcome))
}

fn prepare(args: &Args) -> Result<Run<'_>, Failure> {
    let console = Console::new(args.machine.quiet);
    let device = session::device(&console, &args.machine)?;
    let is_demo = args.model.is_none();
    let defaults = if is_demo { DEMO } else { PAPER };
    let model_path = args.model.clone().map_or_else(demo::model, Ok)?;
    let train = match (&args.optimizer.train, is_demo) {
        (files, true) if files.is_empty() => demo::train()?,
        _ => args.optimizer.require_train()?.to_vec(),
    };
    let eval = match (&args.eval.eval, is_demo) {
        (files, true) if files.is_empty() => demo::eval()?,
        (files, _) => files.clone(),
    };
    let calibrate = args.calibration.files(args.pruning.criterion, if is_demo { &train } else { &[] })?;
    let opened = session::open(&model_path)?;
    let set = args.method.train_set();
    let pattern = args.pruning.pattern();
    if args.cycles > 1 && matches!(pattern, Pattern::NM { .. }) {
        return Err(Failure::usage("--cycles above 1 goes with --sparsity: an n:m pattern has no steps between"));
    }
    session::check_pattern(&*opened.architecture, pattern)?;
    let shape = StepShape {
        batch: args.step.batch.unwrap_or(defaults.batch),
        accumulate: args.step.accumulate.unwrap_or(defaults.accumulate),
        seq_len: session::sequence_length(args.step.seq_len, &*opened.architecture)?,
        recompute: 0,
    };
    let planned = Planned {
        architecture: &*opened.architecture,
        dtype: session::weight_dtype(&opened.folder),
        criterion: args.pruning.criterion,
        pattern,
        set: &set,
        shape,
        offload: 0,
    };
    let target = Target::of(&device, args.step.memory_budget)?;
    let plan = planned.fit(args.step.saving, target)?;
    let info = opened.architecture.info();
    console.say(&format!(
        "{} ({}, {} layers of {}) on {}; a step of {}×{} tokens needs {}{}",
        model_path.display(),
        info.architecture,
        info.layers,
        info.hidden,
        session::title(&device),
        shape.batch,
        shape.seq_len,
        tables::bytes(plan.needed()),
        planned.measures(&plan),
    ));
    let tokenizer = Tokenizer::from_folder(&model_path)?;
    let stream = session::training_stream(&console, &tokenizer, &train)?;
    stream.window_count(shape.seq_len)?;
    let calibration = {
        let (batch, seed) = ((shape.batch, shape.seq_len), args.optimizer.seed);
        args.calibration.read(&console, &model_path, &calibrate, batch, seed, target)?
    };
    let eval_tokens = if eval.is_empty() {
        console.say("no --eval: perplexities are not measured");
        None
    } else {
        Some(session::evaluation_tokens(&console, &tokenizer, &eval, shape.seq_len)?)
    };
    let config = Config {
        steps: args.optimizer.steps.unwrap_or(defaults.steps),
        batch: shape.batch,
        accumulate: shape.accumulate,
        lr: args.optimizer.lr.unwrap_or(defaults.lr),
        warmup: args.optimizer.warmup,
        clip: args.optimizer.clip(),
        weight_decay: args.optimizer.weight_decay,
        recompute: plan.recompute,
    };
    let eval_windows = args.eval.max_windows(defaults.eval_windows);
    let offload = plan.offload;
    Ok(Run {
        args,
        console,
        device,
        opened,
        set,
        pattern,
        shape,
        config,
        offload,
        stream,
        calibrate,
        calibration,
        eval_tokens,
        eval_windows,
    })
}

impl Run<'_> {
    fn execute(&self) -> Result<(Box<dyn Model>, Outcome), Failure> {
        let mut seconds = Seconds::default();
        let dense = match &self.eval_tokens {
            Some(_) if self.dense_fits()? => {
                let model = session::load(&self.console, &self.device, &self.opened, None, 0)?;
                self.evaluate("dense", &*model, &mut seconds)?
            }
            _ => None,
        };
        self.device.trim();
        let cycles = self.args.cycles as usize;
        let start = Instant::now();
        let (pruning, calibration) = (self.pruning(1, cycles), self.calibration.as_ref());
        let (mut model, mut layer_errors) =
            load_pruned(&self.console, &self.device, &self.opened, &pruning, calibration, self.offload)?;
        seconds.prune += start.elapsed().as_secs_f64();
        let mut outcome = Outcome {
            perplexity: Perplexities { dense, ..Perplexities::default() },
            cycles: Vec::new(),
            records: Vec::new(),
            seconds,
            peak: self.device.memory().peak(),
            counts: Counts::default(),
            sparsity: Sparsity { weights: 0.0, with_adapters: 0.0 },
        };
        let mut sampler = TrainSampler::new(self.stream.window_count(self.shape.seq_len)?, self.args.optimizer.seed)?;
        for cycle in 1..=cycles {
            if cycle > 1 {
                let start = Instant::now();
                layer_errors =
                    calibration::prune(&self.console, &mut *model, &self.pruning(cycle, cycles), calibration)?;
                outcome.seconds.prune += start.elapsed().as_secs_f64();
            }
            self.cycle(cycle, &mut *model, &mut sampler, &mut outcome)?;
            outcome.cycles.last_mut().expect("just run").layer_errors = std::mem::take(&mut layer_errors);
        }
        outcome.counts = model::count(&mut *model);
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
            set: &self.set,
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

    /// Evaluates, trains and evaluates the model as this cycle pruned it.
    fn cycle(
        &self,
        cycle: usize,
        model: &mut dyn Model,
        sampler: &mut TrainSampler,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let pruned = self.evaluate("pruned", model, &mut outcome.seconds)?;
        let params = peft::apply(model, &self.set, self.args.optimizer.seed)?;
        self.device.trim();
        self.device.memory().reset_peak();
        let start = Instant::now();
        let mut task = self.console.task("retrain", self.config.steps as u64);
        let mut last = String::new();
        let mut on_step = |record: &StepRecord| {
            last = format!(
                "loss {:.3} lr {:.1e} {:.0} tok/s",
                record.loss,
                record.lr,
                record.tokens as f64 / record.seconds
            );
            task.update(record.step as u64, &last);
        };
        let (stream, seq_len) = (&self.stream, self.shape.seq_len);
        let records = retrain::train(model, params, stream, sampler, seq_len, &self.config, &mut on_step)?;
        task.finish(&format!("{} steps, {last}", self.config.steps));
        outcome.seconds.retrain += start.elapsed().as_secs_f64();
        outcome.peak = self.device.memory().peak();
        outcome.records.extend(records.into_iter().map(|record| (cycle, record)));
        self.device.trim();
        let retrained = self.evaluate("retrained", model, &mut outcome.seconds)?;
        outcome.cycles.push(Cycle {
            cycle,
            sparsity: self.sparsity_after(cycle),
            pruned,
            retrained,
            layer_errors: Vec::new(),
        });
        (outcome.perplexity.pruned, outcome.perplexity.retrained) = (pruned, retrained);
        Ok(())
    }

    fn sparsity_after(&self, cycle: usize) -> f64 {
        imp_sparsity(self.pattern.sparsity(), cycle, self.args.cycles as usize)
    }

    fn pruning(&self, cycle: usize, cycles: usize) -> Pruning {
        let pattern = match self.pattern {
            Pattern::Unstructured { sparsity } => {
                Pattern::Unstructured { sparsity: imp_sparsity(sparsity, cycle, cycles) }
            }
            pattern => pattern,
        };
        Pruning { pattern, ..self.args.pruning.pruning(self.args.optimizer.seed) }
    }

    fn evaluate(&self, name: &str, model: &dyn Model, seconds: &mut Seconds) -> Result<Option<f64>, Failure> {
        let Some(tokens) = &self.eval_tokens else { return Ok(None) };
        let evaluation = Evaluation {
            console: &self.console,
            tokens,
            seq_len: self.shape.seq_len,
            batch: self.shape.batch,
            max_windows: self.eval_windows,
        };
        evaluation.run(name, model, &mut seconds.eval).map(Some)
    }

    fn write(&self, model: &mut dyn Model, out: &std::path::Path) -> Result<(), Failure> {
        let folder = OutputFolder::create(out)?;
        let source: &ModelFolder = &self.opened.folder;
        model::save(model, &folder, source.config(), Some(source), None)?;
        let base = out.display().to_string();
        let has_adapter = peft::save_adapter(model, &folder, Some("adapter"), &base)?;
        folder.commit()?;
        let adapter = if has_adapter { " with its LoRA in adapter/" } else { "" };
        self.console.say(&format!("wrote {}{adapter}", out.display()));
        Ok(())
    }

    fn configuration(&self) -> Value {
        let Args { pruning, method, optimizer, .. } = self.args;
        json!({
            "model": self.opened.path,
            "train": if optimizer.train.is_empty() { demo::train().unwrap_or_default() } else { optimizer.train.clone() },
            "eval": if self.args.eval.eval.is_empty() && self.args.model.is_none() {
                demo::eval().unwrap_or_default()
            } else {
                self.args.eval.eval.clone()
            },
            "criterion": pruning.criterion.name(),
            "pattern": self.pattern.to_string(),
            "calibrate": self.calibrate,
            "calibration_samples": self.calibration.as_ref().map(|calibration| calibration.windows.len()),
            "cycles": self.args.cycles,
            "method": method.label(),
            "rank": method.rank,
            "alpha": method.alpha,
            "targets": method.targets,
            "steps": self.config.steps,
            "batch": self.shape.batch,
            "accumulate": self.shape.accumulate,
            "seq_len": self.shape.seq_len,
            "lr": self.config.lr,
            "warmup": self.config.warmup,
            "clip": self.config.clip,
            "weight_decay": self.config.weight_decay,
            "seed": optimizer.seed,
            "recomputed_layers": self.config.recompute,
            "offloaded_layers": self.offload,
            "threads": rayon::current_num_threads(),
        })
    }

    fn report(&self, outcome: &Outcome) -> Report {
        let records: Vec<StepRecord> = outcome.records.iter().map(|(_, record)| *record).collect();
        let windows = self.eval_tokens.as_ref().map(|tokens| tokens.len() / self.shape.seq_len);
        let Outcome { perplexity, seconds, counts, sparsity, .. } = outcome;
        Report {
            version: env!("CARGO_PKG_VERSION"),
            model: self.opened.path.display().to_string(),
            device: self.device.name().into(),
            gpu: session::gpu_name(&self.device),
            method: self.args.method.label(),
            criterion: Some(self.args.pruning.criterion.name().into()),
            pattern: Some(self.pattern.to_string()),
            seed: self.args.optimizer.seed,
            perplexity: Perplexities { ..*perplexity },
            eval_windows: windows.map(|windows| windows.min(self.eval_windows.unwrap_or(usize::MAX))),
            sparsity: SparsityReport { weights: sparsity.weights, with_adapters: sparsity.with_adapters },
            trainable: Trainable { count: counts.trainable, percent: counts.trainable_percent() },
            tokens_per_second: report::median_tokens_per_second(&records),
            seconds: Seconds { ..*seconds },
            peak_bytes: PeakBytes::of(&outcome.peak),
            cycles: outcome.cycles.clone(),
            steps: outcome.records.iter().map(|(cycle, record)| Step::of(record, *cycle)).collect(),
            config: self.configuration(),
        }
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let perplexity = |value: Option<f64>| value.map_or("–".to_string(), |value| format!("{value:.2}"));
        let records: Vec<StepRecord> = outcome.records.iter().map(|(_, record)| *record).collect();
        let row = |name: &str, value: String| vec![name.to_string(), value];
        let rows = [
            row("perplexity dense", perplexity(outcome.perplexity.dense)),
            row("perplexity pruned", perplexity(outcome.perplexity.pruned)),
            row("perplexity retrained", perplexity(outcome.perplexity.retrained)),
            row("sparsity of the weights", format!("{:.2} %", 100.0 * outcome.sparsity.weights)),
            row("sparsity with adapters", format!("{:.2} %", 100.0 * outcome.sparsity.with_adapters)),
            row(
                "trainable parameters",
                format!("{} ({:.2} %)", tables::count(outcome.counts.trainable), outcome.counts.trainable_percent()),
            ),
            row(
                "tokens a second",
                report::median_tokens_per_second(&records).map_or("–".into(), |r| format!("{r:.0}")),
            ),
            row("peak memory of training", tables::bytes(outcome.peak.total)),
        ];
        let title = format!("{} · {} · {}", self.opened.path.display(), self.pattern, self.args.method.label());
        format!("{title}\n{}", tables::columns(&rows))
    }
}
