//! `merge`: an adapter into its model, with or without the model's zeros.

use std::path::PathBuf;

use clap::ValueEnum;
use engine::checkpoint::{Adapter, ModelFolder, OutputFolder};
use engine::peft::{self, MergeForm, MergeReport};
use kernels::DType;
use serde_json::json;

use crate::error::{Failure, print};
use crate::fetch;
use crate::progress::Console;
use crate::report::{self, Merged};
use crate::tables;

/// Merge a LoRA adapter into its model; what was trained with mask-lora or scale-lora leaves every zero. One matrix at a time is in memory, and what has no
/// adapter is copied bit for bit.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json, model.safetensors (or shards with an index); or a model of the hub, such as facebook/opt-1.3b or
    /// facebook/opt-1.3b@REVISION.
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    /// LoRA adapter folder in PEFT's form, or of retrain --merge none.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Write the merged model to this new folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How an adapter's product goes into its matrix. add: W + s·BA, as PEFT merges, which fills a pruned matrix' zeros. mask:
    /// W + s·BA where W is not zero; what an adapter trained as plain LoRA would put elsewhere is lost. scale: W times BA, entry by
    /// entry. auto: as it was trained; plain LoRA is refused where a matrix is pruned (1 % zeros or more), for there it must be
    /// chosen. The head's is always added.
    #[arg(long, value_enum, default_value = "auto", value_name = "FORM")]
    form: Form,
    /// Element type of the merged matrices, to which they are rounded [default: each its own].
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<ElementType>,
    /// Say nothing but the result and warnings.
    #[arg(long)]
    quiet: bool,
    /// Write what merging did to this JSON file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How an adapter's product goes into its matrix.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Auto,
    Add,
    Mask,
    Scale,
}

/// An element type of weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ElementType {
    F32,
    F16,
    Bf16,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    OutputFolder::check(&args.out)?;
    args.report.as_deref().map_or(Ok(()), |path| report::check_data("--report", path))?;
    let console = Console::new(args.quiet);
    let folder = ModelFolder::open(&fetch::model(&console, &args.model, true)?)?;
    let adapter = Adapter::open(&args.adapter)?;
    let form = match args.form {
        Form::Auto => MergeForm::Auto,
        Form::Add => MergeForm::Add,
        Form::Mask => MergeForm::Mask,
        Form::Scale => MergeForm::Scale,
    };
    let dtype = args.dtype.map(|dtype| match dtype {
        ElementType::F32 => DType::F32,
        ElementType::F16 => DType::F16,
        ElementType::Bf16 => DType::BF16,
    });
    let out = OutputFolder::create(&args.out)?;
    let mut task = console.task("merge", adapter.modules.len() as u64);
    let progress = move |done| task.update(done as u64, "matrices");
    let merged = peft::merge_folder(&folder, &adapter, form, dtype, &out, progress)?;
    out.commit()?;
    let (kept, added) = (merged.kept, merged.added);
    if added.zeros_after < added.zeros_before && matches!(args.form, Form::Add) {
        console.warn(&format!(
            "--form add filled {} zeros; --form mask would have kept them",
            tables::count(added.zeros_before - added.zeros_after)
        ));
    }
    if let Some(path) = &args.report {
        let told = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": args.model,
            "adapter": args.adapter,
            "zeros_kept": Merged::of(&kept),
            "added": Merged::of(&added),
        });
        report::write(path, &told)?;
    }
    let row = |name: &str, report: &MergeReport| {
        let zeros = format!("{} zeros", tables::count(report.zeros_after));
        let rounding = format!("rounding {}", tables::percent(report.rounding()));
        vec![name.into(), format!("{} matrices", report.matrices), zeros, rounding]
    };
    let rows = [("zeros kept", &kept), ("added everywhere", &added)];
    let rows: Vec<_> =
        rows.iter().filter(|(_, report)| report.matrices > 0).map(|(name, report)| row(name, report)).collect();
    print(&format!("{}\n{}", args.out.display(), tables::columns(&rows)))
}
