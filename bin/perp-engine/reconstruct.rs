//! `reconstruct`: prune, and train each decoder layer to give what it gave dense, one layer at a time.

use std::path::PathBuf;
use std::time::Instant;

use engine::calibrate::{self, Calibration, Reconstructed, Reconstructing, Reconstruction, plan_reconstruction};
use engine::checkpoint::{OutputFolder, Tokenizer};
use engine::hub::Use;
use engine::model::{self, Loader, Model, Source};
use engine::peft;
use engine::prune::Pruning;
use kernels::{Backend, Device};
use serde_json::{Value, json};

use crate::allocation::{Allocating, AllocationArgs};
use crate::args::{EvalArgs, MachineArgs, MethodArgs, PruneArgs, WindowArgs, at_least_zero, bytes, positive, share};
use crate::calibration::{self, CalibrationArgs};
use crate::error::{Failure, print};
use crate::format::FormatArgs;
use crate::planned::Target;
use crate::progress::Console;
use crate::report;
use crate::session::{self, Evaluation, Opened};
use crate::tables;
use crate::text::{TextArgs, Texts};

/// How each layer is trained.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct LayerArgs {
    /// Optimizer steps of each decoder layer, a batch of --batch windows each.
    #[arg(long, default_value_t = 100, value_parser = positive, value_name = "N")]
    steps: usize,
    /// Largest learning rate of AdamW.
    #[arg(long, default_value_t = 5e-4, value_parser = at_least_zero, allow_negative_numbers = true, value_name = "RATE")]
    lr: f64,
    /// Share of the steps over which the learning rate rises from 0; then it falls linearly to 0.
    #[arg(long, default_value_t = 0.1, value_parser = share, allow_negative_numbers = true, value_name = "SHARE")]
    warmup: f64,
    /// Largest L2 norm of a layer's gradients together; 0 for no clipping.
    #[arg(long, default_value_t = 1.0, value_parser = at_least_zero, allow_negative_numbers = true, value_name = "NORM")]
    clip: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0, value_parser = at_least_zero, allow_negative_numbers = true, value_name = "RATE")]
    weight_decay: f64,
    /// Seed of everything random: calibration windows, their order, LoRA's start, random pruning.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// The most memory that a run may plan for, such as 8GiB or 500MB [default: what the machine has left]. What training a layer takes
    /// must fit; calibration's activations that do not, and on the processor layers that are done, go to temporary files, in the
    /// folder that TMPDIR names.
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    memory_budget: Option<u64>,
}

/// Prune a model and reconstruct it layer by layer: each decoder layer's parameters (of --method, but for the head) are trained on
/// the text of --calibrate to give what the layer gave dense. No gradient goes through more than one layer.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json, model.safetensors (or shards with an index), tokenizer.json; or a model of the hub, such as
    /// facebook/opt-1.3b or facebook/opt-1.3b@REVISION.
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    #[command(flatten)]
    pruning: PruneArgs,
    #[command(flatten)]
    allocation: AllocationArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    layer: LayerArgs,
    #[command(flatten)]
    eval: EvalArgs,
    #[command(flatten)]
    windows: WindowArgs,
    #[command(flatten)]
    text: TextArgs,
    /// Write the reconstructed model (and its LoRA adapter, in the subfolder adapter) to this new folder.
    #[arg(long, value_name = "DIR", help_heading = "Machine and output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.out.is_none() && args.eval.eval.is_empty() {
        return Err(Failure::usage(
            "nothing to do: name --out to write the reconstructed model, --eval to measure it, or both",
        ));
    }
    if args.calibration.calibrate.is_empty() {
        return Err(Failure::usage(
            "reconstruct needs calibration text: name text with --calibrate, such as files of .txt, .jsonl or .parquet",
        ));
    }
    args.out.as_ref().map_or(Ok(()), OutputFolder::check)?;
    args.machine.report.as_deref().map_or(Ok(()), |path| report::check_data("--report", path))?;
    args.allocation.check(&args.pruning)?;
    let console = Console::new(args.machine.quiet);
    let device = session::device(&console, &args.machine)?;
    let opened = session::open(&console, &args.model)?;
    let allocating = args.allocation.plan(&args.pruning, &*opened.architecture)?;
    session::check_pattern(&*opened.architecture, allocating.pattern)?;
    let seq_len = session::sequence_length(args.windows.seq_len, &*opened.architecture)?;
    let how = args.reconstruction()?;
    let shape = (args.windows.batch, seq_len);
    let target = args.fit(&device, &opened, &allocating, &how, shape)?;
    let texts = Texts::new(&console, &args.text);
    let eval = texts.evaluation(&args.eval.eval)?;
    let files = texts.files(&args.calibration.calibrate, Use::Train)?;
    let tokenizer = Tokenizer::from_folder(&opened.path)?;
    let eval_tokens = match eval.files.as_slice() {
        [] => None,
        _ => Some(texts.evaluation_tokens(&tokenizer, &eval, seq_len)?),
    };
    let calibration = args.calibration.read(&texts, &tokenizer, &files, shape, args.layer.seed, target)?;
    let calibration = calibration.expect("files are named");
    let start = Instant::now();
    let mut model = session::load(&console, &device, &opened, None, 0)?;
    device.memory().reset_peak();
    let allocated = allocating.allocate(&console, &mut *model, Some(&calibration))?;
    let pruning = Pruning { pattern: allocating.pattern, ..args.pruning.pruning(args.layer.seed) };
    let layers = reconstruct(&console, &mut *model, &pruning, &allocated.allocation, &how, &calibration)?;
    let (seconds, peak) = (start.elapsed().as_secs_f64(), device.memory().peak());
    let (sparsity, counts) = (model::sparsity(&mut *model)?, model::count(&mut *model));
    let trainable: usize = layers.iter().map(|layer| layer.trainable).sum();
    let percent = 100.0 * trainable as f64 / (counts.base + counts.adapters) as f64;
    let mut eval_seconds = 0.0;
    let perplexity = match &eval_tokens {
        None => None,
        Some(stream) => {
            let max_windows = args.eval.max_windows(eval.windows(0));
            let tokens = stream.tokens();
            let evaluation = Evaluation { console: &console, tokens, seq_len, batch: args.windows.batch, max_windows };
            Some(evaluation.run("reconstructed", &*model, &mut eval_seconds)?)
        }
    };
    if let Some(path) = &args.machine.report {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": args.model,
            "device": device.name(),
            "gpu": session::gpu_name(&device),
            "method": args.method.label(),
            "criterion": args.pruning.criterion.name(),
            "pattern": allocating.pattern.to_string(),
            "allocation": allocating.told(&allocated),
            "seed": args.layer.seed,
            "calibrate": files,
            "calibration_samples": calibration.windows.len(),
            "layers": layers.iter().map(told).collect::<Vec<_>>(),
            "perplexity": {"reconstructed": perplexity},
            "sparsity": {
                "weights": sparsity.weights, "with_adapters": sparsity.with_adapters, "layers": sparsity.layers,
            },
            "trainable": {"count": trainable, "percent": percent},
            "peak_bytes": report::PeakBytes::of(&peak),
            "seconds": {"reconstruct": seconds, "eval": eval_seconds},
            "config": args.configuration(seq_len, &how),
        });
        report::write(path, &report)?;
    }
    if let Some(out) = &args.out {
        let folder = OutputFolder::create(out)?;
        let (config, format) = (opened.folder.config(), args.format.weights());
        model::save(&mut *model, &folder, config, Some(&opened.folder), None, format)?;
        let has_adapter = peft::save_adapter(&mut *model, &folder, Some("adapter"), &out.display().to_string())?;
        folder.commit()?;
        console.say(&format!("wrote {}{}", out.display(), if has_adapter { " with its LoRA in adapter/" } else { "" }));
    }
    let mean = |of: fn(&Reconstructed) -> f64| calibration::mean(&layers.iter().map(of).collect::<Vec<_>>());
    let rows = [
        ("mean error of the layers, pruned", tables::percent(mean(|layer| layer.before))),
        ("mean error of the layers, reconstructed", tables::percent(mean(|layer| layer.after))),
        ("perplexity reconstructed", perplexity.map_or("–".into(), |p| format!("{p:.2}"))),
        ("sparsity of the weights", format!("{:.2} %", 100.0 * sparsity.weights)),
        ("trained parameters", format!("{} ({percent:.2} %)", tables::count(trainable))),
        ("peak memory", tables::bytes(peak.total)),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.into(), value]).collect();
    let title = format!("{} · {} · {}", opened.name, allocating.pattern, args.method.label());
    print(&format!("{title}\n{}", tables::columns(&rows)))
}

fn reconstruct(
    console: &Console,
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &engine::prune::Allocation,
    how: &Reconstruction,
    calibration: &Calibration,
) -> Result<Vec<Reconstructed>, Failure> {
    let batches = calibration.windows.len().div_ceil(calibration.batch);
    let count = model.info().layers;
    let mut task = console.task("reconstruct", (count * (3 * batches + how.steps)) as u64);
    let layers = calibrate::reconstruct(model, pruning, allocation, how, calibration, &mut |event| match event {
        Reconstructing::Work { layer, done, .. } => task.update(done as u64, &format!("layer {layer}")),
        Reconstructing::Dampened { tensor, dampening } => {
            task.say(&calibration::dampened(tensor, dampening));
        }
        Reconstructing::Layer(report) => task.say(&format!(
            "layer {}: its error went from {} to {}{}",
            report.layer,
            tables::percent(report.before),
            tables::percent(report.after),
            if report.trained { "" } else { ": training made it no better, so it stays as pruned" }
        )),
    })?;
    task.finish(&format!("{count} layers at {} by {}", pruning.pattern, pruning.criterion));
    Ok(layers)
}

fn told(layer: &Reconstructed) -> Value {
    json!({
        "layer": layer.layer, "error_pruned": layer.before, "error_reconstructed": layer.after, "trained": layer.trained,
    })
}

impl Args {
    fn reconstruction(&self) -> Result<Reconstruction, Failure> {
        let LayerArgs { steps, lr, warmup, weight_decay, seed, .. } = self.layer;
        let clip = Some(self.layer.clip).filter(|clip| *clip > 0.0);
        // A decoder layer has no head.
        let set = peft::TrainSet { head: false, ..self.method.train_set()? };
        Ok(Reconstruction { set, steps, lr, warmup, clip, weight_decay, seed })
    }

    fn configuration(&self, seq_len: usize, how: &Reconstruction) -> Value {
        json!({
            "steps": self.layer.steps, "batch": self.windows.batch, "seq_len": seq_len, "lr": self.layer.lr,
            "warmup": self.layer.warmup, "clip": self.layer.clip, "weight_decay": self.layer.weight_decay,
            "rank": self.method.rank, "alpha": self.method.alpha, "targets": how.set.targets,
            "threads": rayon::current_num_threads(),
        })
    }

    /// What is left for activations when a layer trains. Fails before anything is loaded where that does not fit.
    fn fit(
        &self,
        device: &Device,
        opened: &Opened,
        allocating: &Allocating,
        how: &Reconstruction,
        (batch, seq_len): (usize, usize),
    ) -> Result<Target, Failure> {
        let target = Target::of(device, self.layer.memory_budget)?;
        let pruning = Pruning { pattern: allocating.pattern, ..self.pruning.pruning(self.layer.seed) };
        let allocation = allocating.of_file().cloned().unwrap_or_default();
        // The very model that will be loaded: dense, until its layers are pruned one by one.
        let meta = target.meta();
        let mut model = opened.architecture.build(&Loader::new(&meta, Source::Folder(&opened.folder)))?;
        let plan = plan_reconstruction(&mut *model, &pruning, &allocation, how, batch, seq_len)?;
        let (needed, what, also) = match target.backend {
            Backend::Cpu => (plan.training, "training a layer", ""),
            Backend::Cuda => {
                (plan.peak, "training a layer of the model, which is dense behind it,", ", or --device cpu")
            }
        };
        if needed > target.limit {
            return Err(Failure::failed(format!(
                "the plan does not fit: {what} needs {}, {} are available; take a smaller --batch or --seq-len{also}",
                tables::bytes(needed),
                tables::bytes(target.limit)
            )));
        }
        Ok(Target { limit: target.limit - plan.training, ..target })
    }
}
