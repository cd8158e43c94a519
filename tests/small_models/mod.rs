//! Small networks of every wiring, with random weights.

// Each test file uses a part of this.
#![allow(dead_code)]

use engine::checkpoint::{ModelFolder, OutputFolder};
use engine::model::{self, Loader, Model, Offload, Source};
use engine::peft::{Method, TrainSet};
use engine::prune::{Criterion, Pattern, Pruning, prune_linear};
use kernels::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a method trains, with LoRA as in the paper.
pub fn train_set(method: Method) -> TrainSet {
    TrainSet::of(method, 16, 32.0, &["q_proj".to_string(), "v_proj".to_string()])
}

/// OPT. Neither its vocabulary nor its feed-forward width is a multiple of anything.
pub fn opt() -> Value {
    json!({
        "model_type": "opt", "vocab_size": 301, "hidden_size": 48, "num_hidden_layers": 3, "ffn_dim": 100,
        "num_attention_heads": 3, "max_position_embeddings": 64, "word_embed_proj_dim": 48,
    })
}

/// OPT-350m's variant.
pub fn opt_post_norm() -> Value {
    let mut config = opt();
    config["do_layer_norm_before"] = json!(false);
    config["word_embed_proj_dim"] = json!(20);
    config
}

/// Llama with grouped heads and a tied head.
pub fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    })
}

/// Pruning by magnitude.
pub fn by_magnitude(pattern: Pattern) -> Pruning {
    Pruning { criterion: Criterion::Magnitude, pattern, seed: 0 }
}

/// A model of random (or no) weights, pruned as it is made.
pub fn build(device: &Device, config: &Value, pattern: Pattern) -> Box<dyn Model> {
    let pruning = by_magnitude(pattern);
    let source = Source::Random { seed: 0, std: 0.02 };
    let loader = Loader::new(device, source).on_linear(move |linear| prune_linear(linear, &pruning));
    models::from_config(config).unwrap().build(&loader).unwrap()
}

/// The folder of a random model, its weights in `dtype`.
pub fn folder(config: &Value, dtype: DType, std: f64) -> TempDir {
    let folder = TempDir::new().unwrap();
    let device = Device::cpu();
    let loader = Loader::new(&device, Source::Random { seed: 1, std });
    let mut made = models::from_config(config).unwrap().build(&loader).unwrap();
    let out = OutputFolder::create(folder.path().join("model")).unwrap();
    model::save(&mut *made, &out, config, None, Some(dtype)).unwrap();
    out.commit().unwrap();
    folder
}

/// The model of such a folder, pruned as it is loaded.
pub fn load(device: &Device, folder: &TempDir, pattern: Pattern) -> Box<dyn Model> {
    load_offloaded(device, folder, pattern, 0)
}

/// The same with the weights of the first layers in the host's memory.
pub fn load_offloaded(device: &Device, folder: &TempDir, pattern: Pattern, layers: usize) -> Box<dyn Model> {
    let pruning = by_magnitude(pattern);
    let offload = Offload::new(device, layers);
    let folder = ModelFolder::open(folder.path().join("model")).unwrap();
    let loader = Loader::new(device, Source::Folder(&folder)).on_linear(move |linear| {
        prune_linear(linear, &pruning)?;
        offload.take(linear)
    });
    models::from_config(folder.config()).unwrap().build(&loader).unwrap()
}
