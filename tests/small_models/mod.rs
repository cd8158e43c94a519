//! Small networks of every wiring, with random weights.

// Each test file uses a part of this.
#![allow(dead_code)]

use engine::autograd::{Tape, head_loss};
use engine::checkpoint::{ModelFolder, OutputFolder, WeightFormat};
use engine::model::{self, Loader, Model, Offload, Source, TokenBatch};
use engine::peft::{self, ALL_LINEAR, Method, TrainSet};
use engine::prune::{Criterion, Pattern, Pruning, prune_linear};
use kernels::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a method trains, with LoRA as in the paper; adapters that merge on every layer.
pub fn train_set(method: Method) -> TrainSet {
    let targets = if method.lora().merges() { &[ALL_LINEAR][..] } else { &["q_proj", "v_proj"] };
    TrainSet::of(method, 16, 32.0, &targets.iter().map(|target| target.to_string()).collect::<Vec<_>>())
}

/// All methods but lora-prune, which is perp while it trains.
pub fn trained() -> impl Iterator<Item = Method> {
    Method::ALL.into_iter().filter(|method| *method != Method::LoraPrune)
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
    let source = Source::Random { seed: 0, std: 0.02, dtype: DType::F32 };
    let loader = Loader::new(device, source).on_linear(move |linear| prune_linear(linear, &pruning));
    models::from_config(config).unwrap().build(&loader).unwrap()
}

/// The folder of a random model, its weights in `dtype`.
pub fn folder(config: &Value, dtype: DType, std: f64) -> TempDir {
    let folder = TempDir::new().unwrap();
    let device = Device::cpu();
    let loader = Loader::new(&device, Source::Random { seed: 1, std, dtype: DType::F32 });
    let mut made = models::from_config(config).unwrap().build(&loader).unwrap();
    let out = OutputFolder::create(folder.path().join("model")).unwrap();
    model::save(&mut *made, &out, config, None, Some(dtype), WeightFormat::HuggingFace).unwrap();
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

/// A padded batch has the losses and the gradients of its sequences alone. They differ by the order of sums only: each
/// gradient's relative error, in the L2 norm, is at most `tolerance`. Biases of keys have no gradient but rounding, for softmax
/// does not see them: a gradient below a hundredth of all together is measured by that.
pub fn assert_pads_change_nothing(device: &Device, config: &Value, recompute: usize, tolerance: f64) {
    let lengths = [40, 7, 2, 33];
    let sequences: Vec<Vec<u32>> =
        lengths.iter().zip(1..).map(|(length, k)| (0..*length).map(|t| (t * 37 + k * 61) % 300).collect()).collect();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let predictions = lengths.iter().sum::<u32>() as usize - lengths.len();
    let gradients = |batches: &[TokenBatch]| {
        let mut model = build(device, config, Pattern::Unstructured { sparsity: 0.5 });
        let params = peft::apply(&mut *model, &train_set(Method::Perp), 0).unwrap();
        // LoRA begins with B = 0, where A has no gradient.
        for param in params.iter().filter(|param| param.name().contains("lora_B")) {
            let fill = |values: &mut [f32]| {
                values.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 7) as f32 * 0.01 - 0.03);
                Ok(())
            };
            param.value_mut().fill(fill).unwrap();
        }
        let mut loss = 0.0;
        for batch in batches {
            let mut tape = Tape::training(device, recompute);
            let hidden = model.forward(&mut tape, batch).unwrap();
            let found = head_loss(model.head(), &hidden, &batch.targets(), 1.0 / predictions as f32).unwrap();
            loss += found.rows.sum().unwrap();
            tape.backward(hidden, found.gradient.unwrap()).unwrap();
        }
        let grads = params
            .iter()
            .map(|param| (param.name().to_string(), param.take_grad().unwrap().download::<f32>().unwrap()));
        (loss / predictions as f64, grads.collect::<Vec<_>>())
    };
    let padded = gradients(&[TokenBatch::padded(&sequences)]);
    let alone: Vec<TokenBatch> = sequences.iter().map(|sequence| TokenBatch::padded(&[sequence])).collect();
    let alone = gradients(&alone);
    assert!((padded.0 / alone.0 - 1.0).abs() <= tolerance, "loss {} and {}", padded.0, alone.0);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let least = 0.01 * norm(&mut alone.1.iter().flat_map(|(_, grad)| grad.iter().copied()));
    for ((name, padded), (_, alone)) in padded.1.iter().zip(&alone.1) {
        let error = norm(&mut padded.iter().zip(alone).map(|(x, y)| x - y));
        let error = error / norm(&mut alone.iter().copied()).max(least);
        assert!(error <= tolerance, "{name}: {error:.1e}");
    }
}
