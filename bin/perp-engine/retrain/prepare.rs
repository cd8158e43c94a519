//! From flags to a run: files opened, the step planned, text tokenised, before a weight is touched.

use engine::checkpoint::Tokenizer;
use engine::data::Windows;
use engine::hub::Use;
use engine::plan::StepShape;
use engine::prune::{Criterion, Pattern};
use engine::retrain::Config;

use super::{Args, Prune, Run, Shared};
use crate::allocation;
use crate::error::Failure;
use crate::planned::{Planned, Target};
use crate::progress::Console;
use crate::session::{self, demo};
use crate::tables;
use crate::text::Texts;
use crate::validation::Validation;

impl Args {
    /// What chose the weights that are gone, as reports name it.
    pub(super) fn criterion(&self) -> &'static str {
        match self.prune {
            Prune::Yes => self.pruning.criterion.name(),
            Prune::None => "none",
        }
    }

    /// Fails where the flags of pruning contradict each other.
    fn check_pruning(&self) -> Result<(), Failure> {
        self.allocation.check(&self.pruning)?;
        if self.prune == Prune::Yes {
            return Ok(());
        }
        let pruning = &self.pruning;
        let asked = [
            ("--sparsity", pruning.sparsity.is_some()),
            ("--pattern", pruning.pattern.is_some()),
            ("--criterion", pruning.criterion != Criterion::Magnitude),
            ("--allocation", !self.allocation.is_uniform()),
            ("--cycles", self.cycles > 1),
        ];
        match asked.iter().find(|(_, asked)| *asked) {
            None if self.model.is_none() => {
                Err(Failure::usage("--prune none goes with --model: the demo's model is not pruned"))
            }
            None => Ok(()),
            Some((flag, _)) => {
                Err(Failure::usage(format!("--prune none and {flag} contradict each other: leave one of the two out")))
            }
        }
    }
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

pub(super) fn prepare<'a>(args: &'a Args, shared: &mut Shared) -> Result<Run<'a>, Failure> {
    let console = Console::new(args.machine.quiet);
    let device = shared.device(&console, &args.machine)?;
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
    args.check_pruning()?;
    let calibrate =
        args.calibration.files(args.pruning.criterion, &args.allocation, if is_demo { &train } else { &[] })?;
    let texts = Texts::new(&console, &args.text);
    let (train, eval) = (texts.files(&train, Use::Train)?, texts.evaluation(&eval)?);
    let calibrate = texts.files(&calibrate, Use::Train)?;
    let validation = match (args.validation.validation.as_slice(), args.validation.eval_every) {
        (_, None) => None,
        ([], Some(_)) if eval.files.is_empty() => {
            return Err(Failure::usage("--eval-every needs text to validate on: name it with --validation or --eval"));
        }
        ([], Some(_)) => Some(eval.files.clone()),
        (named, Some(_)) => Some(texts.files(named, Use::Validation)?),
    };
    let opened = session::open(&console, &model_path)?;
    let mut set = args.method.train_set()?;
    args.merging.check(set.kind.merges())?;
    let adapter = args.start.open(&args.method, &mut set, args.cycles)?;
    let allocating = match args.prune {
        Prune::Yes => args.allocation.plan(&args.pruning, &*opened.architecture)?,
        Prune::None => allocation::found(&opened.folder, &*opened.architecture)?,
    };
    let pattern = allocating.pattern;
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
    let steps = args.optimizer.steps.unwrap_or(defaults.steps);
    let planned = Planned {
        architecture: &*opened.architecture,
        dtype: session::weight_dtype(&opened.folder),
        criterion: args.pruning.criterion,
        pattern,
        allocation: allocating.of_file(),
        set: &set,
        adapter: adapter.as_ref(),
        freezing: args.freezing.freezing().map(|freezing| (freezing, steps)),
        shape,
        offload: 0,
    };
    let target = Target::of(&device, None)?.besides(shared.held_bytes()).within(args.step.memory_budget);
    let mut plan = planned.fit(args.step.saving, target)?;
    let graphs = args.step.graphs.plan(&console, &planned, &mut plan, target)?;
    let info = opened.architecture.info();
    console.say(&format!(
        "{} ({}, {} layers of {}) on {}; a step of {}×{} tokens{} needs {}{}",
        opened.name,
        info.architecture,
        info.layers,
        info.hidden,
        session::title(&device),
        shape.batch,
        shape.seq_len,
        graphs.title(),
        tables::bytes(plan.needed()),
        planned.measures(&plan),
    ));
    let tokenizer = Tokenizer::from_folder(&opened.path)?;
    let (packing, seed) = (args.optimizer.packing, args.optimizer.seed);
    let windows = Windows::new(texts.stream(&tokenizer, &train, "training")?, packing, shape.seq_len)?;
    let batch = (shape.batch, shape.seq_len);
    let calibration = args.calibration.read(&texts, &tokenizer, &calibrate, batch, seed, target)?;
    let eval_tokens = if eval.files.is_empty() {
        console.say("no --eval: perplexities are not measured");
        None
    } else {
        Some(texts.evaluation_tokens(&tokenizer, &eval, shape.seq_len)?)
    };
    let validate = validation.clone().unwrap_or_default();
    let validation = match validation {
        None => None,
        Some(files) => {
            let stream = texts.stream(&tokenizer, &files, "validation")?;
            Some(Validation::new(&args.validation, stream, packing, shape.seq_len, seed)?)
        }
    };
    let config = Config {
        steps,
        batch: shape.batch,
        accumulate: shape.accumulate,
        lr: args.optimizer.lr.unwrap_or(defaults.lr),
        warmup: args.optimizer.warmup,
        clip: args.optimizer.clip(),
        weight_decay: args.optimizer.weight_decay,
        recompute: plan.recompute,
    };
    let eval_windows = args.eval.max_windows(eval.windows(defaults.eval_windows));
    let (offload, signals) = (plan.offload, shared.signals()?);
    Ok(Run {
        args,
        console,
        signals,
        device,
        opened,
        set,
        adapter,
        pattern,
        allocating,
        shape,
        config,
        offload,
        graphs,
        train,
        windows,
        calibrate,
        calibration,
        eval,
        eval_tokens,
        eval_windows,
        validate,
        validation,
    })
}
