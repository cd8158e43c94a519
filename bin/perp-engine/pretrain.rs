//! `pretrain`: the same loop from a fresh model, with every parameter training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use engine::checkpoint::{BpeSettings, ModelFolder, OutputFolder, Tokenizer, WeightFormat, train_bpe};
use engine::data::{self, TrainSampler, Windows};
use engine::hub::Use;
use engine::model::{self, Loader, Model, Source};
use engine::peft::{self, Method, TrainSet};
use engine::plan::StepShape;
use engine::prune::{Criterion, Pattern};
use engine::retrain::{Config, StepRecord, Trainer};
use kernels::DType;
use serde_json::{Value, json};

use crate::args::{EvalArgs, MachineArgs, OptimizerArgs, StepArgs, vocabulary};
use crate::command;
use crate::error::{Failure, print};
use crate::fetch;
use crate::gemm;
use crate::live::{Event, Live, LiveArgs, Place, Probe};
use crate::planned::{Planned, Target};
use crate::progress::{self, Console};
use crate::report::{self, PeakBytes, Perplexities, Report, Seconds, SparsityReport, Step, StepDetail, Trainable};
use crate::session::{self, Evaluation};
use crate::tables;
use crate::text::{TextArgs, Texts};

/// The element type of the weights that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Written {
    F32,
    F16,
    Bf16,
}

/// Train a model from scratch from its configuration: the same loop as retrain, every parameter trainable.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder with config.json (and tokenizer.json, if there is one), a configuration file, or a model of the hub.
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    /// Tokens of the BPE tokenizer that is trained on the text where the folder has none [default: the
    /// configuration's vocab_size].
    #[arg(long, value_parser = vocabulary, value_name = "N")]
    vocab_size: Option<usize>,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    eval: EvalArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    live: LiveArgs,
    /// Write the model to this new folder.
    #[arg(long, value_name = "DIR", help_heading = "Machine and output")]
    out: PathBuf,
    /// Element type of the weights that are written.
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE", help_heading = "Machine and output")]
    dtype: Written,
    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    OutputFolder::check(&args.out)?;
    args.machine.report.as_deref().map_or(Ok(()), |path| report::check("--report", path))?;
    let train = args.optimizer.require_train()?;
    let console = Console::new(args.machine.quiet);
    let texts = Texts::new(&console, &args.text);
    let (train, eval) = (texts.files(train, Use::Train)?, texts.evaluation(&args.eval.eval)?);
    let device = session::device(&console, &args.machine)?;
    let folder = fetch::model(&console, &args.model, false)?;
    let mut config = ModelFolder::read_config(&folder)?;
    let tokenizer = tokenizer(args, &folder, &train, &mut config, &console)?;
    let architecture =
        models::from_config(&config).map_err(|e| Failure::failed(format!("{}: {e}", args.model.display())))?;
    let shape = StepShape {
        batch: args.step.batch.unwrap_or(8),
        accumulate: args.step.accumulate.unwrap_or(1),
        seq_len: session::sequence_length(args.step.seq_len, &*architecture)?,
        recompute: 0,
    };
    let set = TrainSet::of(Method::Full, 1, 1.0, &[]);
    let dense = Pattern::Unstructured { sparsity: 0.0 };
    let planned = Planned {
        architecture: &*architecture,
        dtype: DType::F32,
        criterion: Criterion::Magnitude,
        pattern: dense,
        allocation: None,
        set: &set,
        adapter: None,
        freezing: None,
        shape,
        offload: 0,
    };
    let target = Target::of(&device, args.step.memory_budget)?;
    let mut plan = planned.fit(args.step.saving, target)?;
    let graphs = args.step.graphs.plan(&console, &planned, &mut plan, target)?;
    let stream = texts.stream(&tokenizer, &train, "training")?;
    let windows = Windows::new(stream, args.optimizer.packing, shape.seq_len)?;
    let eval_tokens = match eval.files.as_slice() {
        [] => None,
        _ => Some(texts.evaluation_tokens(&tokenizer, &eval, shape.seq_len)?),
    };

    let seed = args.optimizer.seed;
    let loader = Loader::new(&device, Source::Random { seed, std: architecture.init_std(), dtype: DType::F32 });
    let mut model = architecture.build(&loader)?;
    let params = peft::apply(&mut *model, &set, seed)?;
    let counts = model::count(&mut *model);
    console.say(&format!(
        "{} parameters; a step of {}×{} tokens{} needs {}{}",
        tables::count(counts.base),
        shape.batch,
        shape.seq_len,
        graphs.title(),
        tables::bytes(plan.needed()),
        planned.measures(&plan),
    ));
    let training = Config {
        steps: args.optimizer.steps.unwrap_or(1000),
        batch: shape.batch,
        accumulate: shape.accumulate,
        lr: args.optimizer.lr.unwrap_or(5e-4),
        warmup: args.optimizer.warmup,
        clip: args.optimizer.clip(),
        weight_decay: args.optimizer.weight_decay,
        recompute: plan.recompute,
    };
    let taken: [command::Taken<'_>; 3] =
        [("--model", std::slice::from_ref(&folder)), ("--train", &train), ("--eval", &eval.files)];
    let given = command::pinned(&command::given(), &taken);
    let configured = configuration(args, shape, &training);
    let mut live = Live::open(&args.live, console, None, training.steps)?;
    let title = session::title(&device);
    live.tell(Place::default(), &Event::Config { command: &given, device: &title, config: &configured });
    device.memory().reset_peak();
    let mut probe = Probe::new(&device, args.machine.report.is_some());
    let start = Instant::now();
    let mut task = console.task("pretrain", training.steps as u64);
    let mut smooth = 0.0;
    probe.begin();
    let mut records = Vec::with_capacity(training.steps);
    let mut on_step = |trainer: &Trainer, _: &TrainSampler, record: StepRecord| {
        smooth = if record.step == 1 { record.loss } else { 0.98 * smooth + 0.02 * record.loss };
        let memory_bytes = device.memory().peak().total;
        probe.after_step(&record);
        graphs.after_step(trainer);
        if record.step < training.steps {
            probe.begin();
        }
        task.update(record.step as u64, &progress::step(&StepRecord { loss: smooth, ..record }, memory_bytes));
        live.tell(Place { cycle: 1, step: record.step }, &Event::Step { record: &record, memory_bytes });
        records.push(record);
        Ok(ControlFlow::Continue(()))
    };
    let mut sampler = TrainSampler::new(windows.count(), seed)?;
    let trained = Trainer::new(&*model, params, training.clone()).and_then(|mut trainer| {
        graphs.begin(&mut trainer);
        trainer.run(&*model, &windows, &mut sampler, &mut on_step)
    });
    if let Err(error) = trained {
        let failed = Err::<(), _>(error.into());
        live.end(&failed);
        return failed;
    }
    task.finish(&format!("{} steps, loss {smooth:.3}", training.steps));
    let peak = device.memory().peak();
    let mut seconds = Seconds { retrain: start.elapsed().as_secs_f64(), ..Seconds::default() };
    device.trim();
    let evaluated = eval_tokens.as_ref().map(|stream| {
        let (tokens, max_windows) = (stream.tokens(), args.eval.max_windows(eval.windows(0)));
        let evaluation =
            Evaluation { console: &console, tokens, seq_len: shape.seq_len, batch: shape.batch, max_windows };
        let perplexity = evaluation.run("pretrained", &*model, &mut seconds.eval)?;
        let at = Place { cycle: 1, step: training.steps };
        live.tell(at, &Event::Eval { name: "pretrained", perplexity });
        Ok(perplexity)
    });
    let written =
        evaluated.transpose().and_then(|perplexity| write(args, &mut *model, config, &tokenizer).map(|()| perplexity));
    live.end(&written);
    let perplexity = written?;
    console.say(&format!("wrote {}", args.out.display()));
    let rate = report::median_tokens_per_second(&records);
    if let Some(path) = &args.machine.report {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            model: args.model.display().to_string(),
            device: device.name().into(),
            gpu: session::gpu_name(&device),
            library: gemm::title(&device),
            method: "full".into(),
            criterion: None,
            pattern: None,
            allocation: None,
            seed,
            perplexity: Perplexities { dense: perplexity, ..Perplexities::default() },
            eval_windows: eval_tokens.as_ref().map(|tokens| tokens.tokens().len() / shape.seq_len),
            sparsity: SparsityReport::default(),
            trainable: Trainable {
                count: counts.trainable,
                percent: counts.trainable_percent(),
                aggregated_percent: counts.trainable_percent(),
            },
            tokens_per_second: rate,
            seconds,
            peak_bytes: PeakBytes::of(&peak),
            cycles: Vec::new(),
            validation: Vec::new(),
            merged: None,
            steps: records.iter().map(|record| Step::of(record, 1)).collect(),
            matrices: Vec::new(),
            step_detail: probe.take().map(StepDetail::of),
            config: configured,
            command: given,
        };
        report::write_run(path, &report)?;
    }
    let rows = [
        vec!["perplexity".into(), perplexity.map_or("–".into(), |p| format!("{p:.2}"))],
        vec!["parameters".into(), tables::count(counts.base)],
        vec!["tokens a second".into(), rate.map_or("–".into(), |rate| format!("{rate:.0}"))],
        vec!["peak memory of training".into(), tables::bytes(peak.total)],
    ];
    print(&format!("{}\n{}", args.out.display(), tables::columns(&rows)))
}

fn configuration(args: &Args, shape: StepShape, training: &Config) -> Value {
    json!({
        "model": args.model,
        "train": args.optimizer.train,
        "eval": args.eval.eval,
        "packing": args.optimizer.packing.to_string(),
        "steps": training.steps,
        "batch": shape.batch,
        "accumulate": shape.accumulate,
        "seq_len": shape.seq_len,
        "lr": training.lr,
        "warmup": training.warmup,
        "clip": training.clip,
        "weight_decay": training.weight_decay,
        "seed": args.optimizer.seed,
        "recomputed_layers": training.recompute,
        "threads": rayon::current_num_threads(),
    })
}

/// The folder's tokenizer, or one trained on the training text; the configuration's vocabulary then is the tokenizer's.
fn tokenizer(
    args: &Args,
    folder: &Path,
    train: &[PathBuf],
    config: &mut Value,
    console: &Console,
) -> Result<Tokenizer, Failure> {
    let has = |file: &str| folder.join(file).is_file();
    if has("tokenizer.json") || has("vocab.json") {
        return Ok(Tokenizer::from_folder(folder)?);
    }
    let from_config = config.get("vocab_size").and_then(Value::as_u64).map(|size| size as usize);
    let Some(vocab_size) = args.vocab_size.or(from_config) else {
        return Err(Failure::usage("--vocab-size is missing: the configuration has no vocab_size"));
    };
    let task = console.task("tokenizer", 1);
    let end = "</s>".to_string();
    let settings = BpeSettings {
        vocab_size,
        special_tokens: vec![end.clone()],
        bos: Some(end.clone()),
        eos: Some(end),
        pad: None,
    };
    // Words are counted as documents come; an error ends them, and is told below.
    let mut failed = None;
    let documents = data::read_documents(train)?;
    let texts = documents.map_while(|document| document.map_err(|error| failed = Some(error)).ok());
    let trained = train_bpe(texts.map(|document| document.text), &settings);
    if let Some(error) = failed {
        return Err(error.into());
    }
    let tokenizer = trained?;
    task.finish(&format!("{} tokens", tokenizer.vocab_size()));
    for (field, value) in [("vocab_size", tokenizer.vocab_size()), ("bos_token_id", 0), ("eos_token_id", 0)] {
        config[field] = json!(value);
    }
    Ok(tokenizer)
}

fn write(args: &Args, model: &mut dyn Model, mut config: Value, tokenizer: &Tokenizer) -> Result<(), Failure> {
    let (dtype, name) = match args.dtype {
        Written::F32 => (DType::F32, "float32"),
        Written::F16 => (DType::F16, "float16"),
        Written::Bf16 => (DType::BF16, "bfloat16"),
    };
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = json!(name);
    let folder = OutputFolder::create(Path::new(&args.out))?;
    model::save(model, &folder, &config, None, Some(dtype), WeightFormat::HuggingFace)?;
    tokenizer.save(&folder)?;
    Ok(folder.commit()?)
}
