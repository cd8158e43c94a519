//! `prune`: prune and write, nothing more.

use std::path::PathBuf;
use std::time::Instant;

use engine::checkpoint::{OutputFolder, Tokenizer};
use engine::hub::Use;
use engine::model::{self, Spill};
use engine::prune::Pruning;
use serde_json::json;

use crate::allocation::AllocationArgs;
use crate::args::{EvalArgs, MachineArgs, PruneArgs, WindowArgs, bytes};
use crate::calibration::{self, CalibrationArgs};
use crate::error::{Failure, print};
use crate::format::FormatArgs;
use crate::planned::Target;
use crate::progress::Console;
use crate::pruner::{Pruned, Pruner};
use crate::report;
use crate::session::{self, Evaluation};
use crate::tables;
use crate::text::{TextArgs, Texts};

/// Prune a model and write it, without retraining.
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
    /// Seed of random pruning and of the calibration windows.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Pruning")]
    seed: u64,
    #[command(flatten)]
    eval: EvalArgs,
    #[command(flatten)]
    windows: WindowArgs,
    #[command(flatten)]
    text: TextArgs,
    /// The most memory that pruning may take, such as 8GiB or 500MB [default: what the machine has left]. One layer and what is needed
    /// to prune it are in memory always. Activations of calibration that do not fit, and on the processor layers that are pruned,
    /// go to temporary files, in the folder that TMPDIR names.
    #[arg(long, value_parser = bytes, value_name = "SIZE", help_heading = "Pruning")]
    memory_budget: Option<u64>,
    /// Write the pruned model to this new folder.
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
            "nothing to do: name --out to write the pruned model, --eval to measure it, or both",
        ));
    }
    args.out.as_ref().map_or(Ok(()), OutputFolder::check)?;
    args.machine.report.as_deref().map_or(Ok(()), |path| report::check_data("--report", path))?;
    args.allocation.check(&args.pruning)?;
    let files = args.calibration.files(args.pruning.criterion, &args.allocation, &[])?;
    let console = Console::new(args.machine.quiet);
    let device = session::device(&console, &args.machine)?;
    let opened = session::open(&console, &args.model)?;
    let allocating = args.allocation.plan(&args.pruning, &*opened.architecture)?;
    let pattern = allocating.pattern;
    session::check_pattern(&*opened.architecture, pattern)?;
    let seq_len = session::sequence_length(args.windows.seq_len, &*opened.architecture)?;
    let texts = Texts::new(&console, &args.text);
    let eval = texts.evaluation(&args.eval.eval)?;
    let files = texts.files(&files, Use::Train)?;
    let tokenizer = || Tokenizer::from_folder(&opened.path);
    let eval_tokens = match eval.files.as_slice() {
        [] => None,
        _ => Some(texts.evaluation_tokens(&tokenizer()?, &eval, seq_len)?),
    };
    let shape = (args.windows.batch, seq_len);
    let target = Target::of(&device, args.memory_budget)?;
    let calibration = match files.as_slice() {
        [] => None,
        files => args.calibration.read(&texts, &tokenizer()?, files, shape, args.seed, target)?,
    };
    let start = Instant::now();
    let pruner = Pruner {
        console: &console,
        pruning: Pruning { pattern, ..args.pruning.pruning(args.seed) },
        allocating: &allocating,
        calibration: calibration.as_ref(),
        cycles: 1,
        spill: Some(Spill::past(target.limit.saturating_sub(session::pruning_bytes(&*opened.architecture)?))),
    };
    let Pruned { mut model, allocated, layer_errors } = pruner.load(&device, &opened, 0)?;
    let prune_seconds = start.elapsed().as_secs_f64();
    let sparsity = model::sparsity(&mut *model)?;
    let mut eval_seconds = 0.0;
    let perplexity = match &eval_tokens {
        None => None,
        Some(stream) => {
            let max_windows = args.eval.max_windows(eval.windows(0));
            let tokens = stream.tokens();
            let evaluation = Evaluation { console: &console, tokens, seq_len, batch: args.windows.batch, max_windows };
            Some(evaluation.run("pruned", &*model, &mut eval_seconds)?)
        }
    };
    if let Some(out) = &args.out {
        let folder = OutputFolder::create(out)?;
        let (config, format) = (opened.folder.config(), args.format.weights());
        model::save(&mut *model, &folder, config, Some(&opened.folder), None, format)?;
        folder.commit()?;
        console.say(&format!("wrote {}", out.display()));
    }
    if let Some(path) = &args.machine.report {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": args.model,
            "device": device.name(),
            "gpu": session::gpu_name(&device),
            "criterion": args.pruning.criterion.name(),
            "pattern": pattern.to_string(),
            "allocation": allocating.told(&allocated),
            "seed": args.seed,
            "calibrate": files,
            "calibration_samples": calibration.as_ref().map(|calibration| calibration.windows.len()),
            "layer_errors": layer_errors,
            "perplexity": {"pruned": perplexity},
            "sparsity": {"weights": sparsity.weights, "layers": sparsity.layers},
            "seconds": {"prune": prune_seconds, "eval": eval_seconds},
        });
        report::write(path, &report)?;
    }
    let mut rows = vec![
        vec!["sparsity of the weights".into(), format!("{:.2} %", 100.0 * sparsity.weights)],
        vec!["perplexity pruned".into(), perplexity.map_or("–".into(), |p| format!("{p:.2}"))],
    ];
    if !layer_errors.is_empty() {
        rows.push(vec!["mean error of the layers".into(), tables::percent(calibration::mean(&layer_errors))]);
    }
    print(&format!("{} · {pattern}\n{}", args.model.display(), tables::columns(&rows)))
}
