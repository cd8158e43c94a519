//! A small training run, as `retrain` is one: it goes on from the newest checkpoint, trains, writes its report and its model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::checkpoint::{Disk, OutputFolder, RunCheckpoint, RunFolder, WeightFormat, folder_hash, replace_file_on};
use engine::data::TrainSampler;
use engine::model::{self, TokenBatch};
use engine::peft::{self, Method};
use engine::prune::Pattern;
use engine::retrain::{Config, RunState, StepRecord, Trainer, records};
use kernels::Device;
use serde_json::{Map, Value, json};

use super::file_system::Tree;
use super::recorder::Said;
use super::small_models::{build, train_set};

const STEPS: usize = 5;
const EVERY: usize = 2;
const KEEP: usize = 2;
/// Checkpoints, in a folder that is made with the one above it.
const CHECKPOINTS: &str = "runs/one";
/// The model, likewise.
const OUT: &str = "models/new/one";
const REPORT: &str = "report.json";

/// What became of the run, and all that it leaves to whoever asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    pub files: Tree,
}

fn config() -> Value {
    json!({
        "model_type": "opt", "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "ffn_dim": 12,
        "num_attention_heads": 2, "max_position_embeddings": 16, "word_embed_proj_dim": 8,
    })
}

fn window(number: usize) -> TokenBatch {
    TokenBatch::new((0..12).map(|t| ((t * 7 + number * 11) % 40) as u32).collect(), 12)
}

/// What lies under a path of `root`.
fn read(root: &Path, at: &str) -> Tree {
    let mut tree = Tree::new();
    let mut left = vec![PathBuf::from(at)];
    while let Some(path) = left.pop() {
        let whole = root.join(&path);
        if whole.is_dir() {
            for entry in std::fs::read_dir(&whole).unwrap() {
                left.push(path.join(entry.unwrap().file_name()));
            }
            tree.insert(path, None);
        } else if whole.exists() {
            tree.insert(path, Some(std::fs::read(&whole).unwrap()));
        }
    }
    tree
}

/// The report and the model.
pub fn results(root: &Path) -> Results {
    let mut files = read(root, REPORT);
    files.extend(read(root, OUT));
    Results { files }
}

/// The model that is there, if one is.
pub fn model_of(root: &Path) -> Tree {
    read(root, OUT)
}

/// The report that is there, if one is.
pub fn report_of(root: &Path) -> Tree {
    read(root, REPORT)
}

/// Runs, or goes on, to the end. `say` hears what the run says when it says it.
pub fn run(disk: Arc<dyn Disk>, root: &Path, say: &dyn Fn(Said)) -> Result<(), String> {
    let failed = |error: engine::error::Error| error.to_string();
    let folder = RunFolder::open_on(disk.clone(), root.join(CHECKPOINTS)).map_err(|e| failed(e.into()))?;
    let open = |path: PathBuf| -> engine::error::Result<_> {
        let checkpoint = RunCheckpoint::open(path)?;
        let (state, records) = (RunState::read(&checkpoint)?, records(&checkpoint)?);
        Ok((checkpoint, state, records))
    };
    let newest = folder.newest(open).map_err(failed)?;
    // Renamed when it is synced: no cut leaves a torn one under a checkpoint's name.
    if let Some((_, error)) = newest.damaged.first() {
        return Err(error.to_string());
    }
    if root.join(OUT).exists() {
        let result = folder.result().map_err(|e| failed(e.into()))?;
        let found = folder_hash(&root.join(OUT)).map_err(|e| failed(e.into()))?;
        if newest.intact.is_none() || result != Some(json!({"model": found})) {
            return Err("a model is there that nobody told of".into());
        }
        say(Said::Over);
        return Ok(());
    }

    let device = Device::cpu();
    let mut model = build(&device, &config(), Pattern::Unstructured { sparsity: 0.5 });
    let params = peft::apply(&mut *model, &train_set(Method::Perp), 0).map_err(failed)?;
    let config = config_of_training();
    let mut trainer = Trainer::new(&*model, params, config).map_err(failed)?;
    let mut sampler = TrainSampler::new(9, 0).unwrap();
    let mut done: Vec<(usize, StepRecord)> = Vec::new();
    let save = |trainer: &Trainer, sampler: &TrainSampler, done: &[(usize, StepRecord)]| -> Result<(), String> {
        let state = RunState {
            version: "1".into(),
            device: "cpu".into(),
            cycle: 1,
            step: done.len(),
            sampler: sampler.position(),
            configuration: Map::new(),
            measured: Value::Null,
        };
        trainer.save(&folder, &state, done, &[]).map_err(failed)?;
        say(Said::Checkpoint(done.len() as u64));
        folder.keep_newest(KEEP).map_err(|e| failed(e.into()))
    };
    match newest.intact {
        Some((checkpoint, state, records)) => {
            trainer.restore(&checkpoint, &state).map_err(failed)?;
            sampler = TrainSampler::resume(9, 0, state.sampler).unwrap();
            done = records;
            say(Said::GoesOn(done.len() as u64));
        }
        None => save(&trainer, &sampler, &done)?,
    }
    while done.len() < STEPS {
        let batches: Vec<TokenBatch> = sampler.next_batch(2).into_iter().map(window).collect();
        let mut record = trainer.step(&*model, &batches).map_err(failed)?;
        record.seconds = 1.0; // all else is the same in every run
        done.push((1, record));
        if done.len().is_multiple_of(EVERY) || done.len() == STEPS {
            save(&trainer, &sampler, &done)?;
        }
    }

    let report: Vec<Value> = done.iter().map(|(_, r)| json!([r.step, r.loss, r.lr, r.grad_norm])).collect();
    replace_file_on(&*disk, &root.join(REPORT), json!(report).to_string().as_bytes()).map_err(|e| failed(e.into()))?;
    say(Said::Report);
    let out = OutputFolder::create_on(disk, root.join(OUT)).map_err(|e| failed(e.into()))?;
    model::save(&mut *model, &out, &self::config(), None, None, WeightFormat::HuggingFace).map_err(failed)?;
    peft::save_adapter(&mut *model, &out, Some("adapter"), "base").map_err(failed)?;
    let hash = out.hash().map_err(|e| failed(e.into()))?;
    folder.set_result(&json!({"model": hash})).map_err(|e| failed(e.into()))?;
    out.commit().map_err(|e| failed(e.into()))?;
    say(Said::Model);
    Ok(())
}

fn config_of_training() -> Config {
    Config {
        steps: STEPS,
        batch: 1,
        accumulate: 2,
        lr: 1e-2,
        warmup: 0.2,
        clip: Some(1.0),
        weight_decay: 0.01,
        recompute: 0,
    }
}
