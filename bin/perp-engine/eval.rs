//! `eval`: a model's perplexity, with or without an adapter.

use std::path::PathBuf;

use engine::checkpoint::{Adapter, ModelFolder, Tokenizer};
use engine::evaluate::Protocol;
use engine::{model, peft};
use serde_json::json;

use crate::args::{EvalArgs, MachineArgs, WindowArgs};
use crate::error::{Failure, print};
use crate::progress::Console;
use crate::report;
use crate::session::{self, Evaluation};
use crate::tables;
use crate::text::{TextArgs, Texts};

/// Measure a model's perplexity: exp of the mean over windows of each window's mean next-token loss.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json, model.safetensors (or shards with an index), tokenizer.json; or a model of the hub, such as
    /// facebook/opt-1.3b or facebook/opt-1.3b@REVISION.
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    /// LoRA adapter folder in PEFT's form, applied to the model.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    eval: EvalArgs,
    #[command(flatten)]
    windows: WindowArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Why a perplexity is no number.
fn not_a_number(folder: &ModelFolder, adapter: Option<&Adapter>) -> String {
    let why = match folder.first_not_finite().or_else(|| adapter.and_then(Adapter::first_not_finite)) {
        Some(info) => format!("{} in {} holds a value that is not finite", info.name(), info.file().display()),
        None => "all weights are finite, and activations overflow".into(),
    };
    format!("the perplexity is not a number: {why}")
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.eval.eval.is_empty() {
        return Err(Failure::usage(
            "--eval is missing: name text to evaluate on, such as files of .txt, .jsonl or .parquet, or wikitext2",
        ));
    }
    args.machine.report.as_deref().map_or(Ok(()), |path| report::check_data("--report", path))?;
    let console = Console::new(args.machine.quiet);
    let device = session::device(&console, &args.machine)?;
    let opened = session::open(&console, &args.model)?;
    let seq_len = session::sequence_length(args.windows.seq_len, &*opened.architecture)?;
    let adapter = args.adapter.as_ref().map(Adapter::open).transpose()?;
    let texts = Texts::new(&console, &args.text);
    let eval = texts.evaluation(&args.eval.eval)?;
    let stream = texts.evaluation_tokens(&Tokenizer::from_folder(&opened.path)?, &eval, seq_len)?;
    let tokens = stream.tokens();
    let mut model = session::load(&console, &device, &opened, None, 0)?;
    if let Some(adapter) = &adapter {
        peft::attach(&mut *model, adapter)?;
    }
    let max_windows = args.eval.max_windows(eval.windows(0));
    let evaluation = Evaluation { console: &console, tokens, seq_len, batch: args.windows.batch, max_windows };
    let mut seconds = 0.0;
    let perplexity = evaluation.run("model", &*model, &mut seconds)?;
    if perplexity.is_nan() {
        return Err(Failure::failed(not_a_number(&opened.folder, adapter.as_ref())));
    }
    let sparsity = model::sparsity(&mut *model)?;
    let windows = (tokens.len() / seq_len).min(max_windows.unwrap_or(usize::MAX));
    if let Some(path) = &args.machine.report {
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": args.model,
            "adapter": args.adapter,
            "device": device.name(),
            "gpu": session::gpu_name(&device),
            "perplexity": perplexity,
            "protocol": eval.protocol.map(Protocol::name),
            "windows": windows,
            "seq_len": seq_len,
            "sparsity": {"weights": sparsity.weights, "with_adapters": sparsity.with_adapters},
            "peak_bytes": report::PeakBytes::of(&device.memory().peak()),
            "seconds": {"eval": seconds},
        });
        report::write(path, &report)?;
    }
    let rows = [
        vec!["perplexity".into(), format!("{perplexity:.4}")],
        vec!["windows".into(), format!("{windows} of {seq_len} tokens")],
        vec!["sparsity of the weights".into(), format!("{:.2} %", 100.0 * sparsity.weights)],
        vec!["tokens a second".into(), format!("{:.0}", (windows * seq_len) as f64 / seconds)],
    ];
    print(&format!("{}\n{}", args.model.display(), tables::columns(&rows)))
}
