//! `retrain --adapter`: training goes on from an adapter that was trained before.

mod cli_support;

use std::path::Path;
use std::process::Output;

use cli_support::{Fixture, assert_succeeds, program, text};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

const LAYER: &str = "model.decoder.layers.";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The f32 entries of a tensor.
fn entries(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

/// The matrices that pruning works on.
fn matrices(folder: &Path) -> Vec<String> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = file.names().into_iter().map(str::to_string).collect();
    names.retain(|name| name.starts_with(LAYER) && name.ends_with(".weight") && !name.contains("norm"));
    names.sort();
    assert_eq!(names.len(), 12);
    names
}

/// The fixture's model as another program would leave it: `keeps` says which entries of a matrix stay, by its number, row and column.
fn pruned_elsewhere(keeps: impl Fn(usize, usize, usize) -> bool) -> TempDir {
    let folder = Fixture::get().copy();
    let names = matrices(folder.path());
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let mut data = view.data().to_vec();
        if let Some(number) = names.iter().position(|matrix| *matrix == name) {
            let cols = view.shape()[1];
            for (i, entry) in data.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                if !keeps(number, i / cols, i % cols) {
                    *entry = [0; 4];
                }
            }
        }
        tensors.push((name, view.dtype(), view.shape().to_vec(), data));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let written = safetensors::serialize(views, None).unwrap();
    std::fs::write(&path, written).unwrap();
    folder
}

/// A number that looks random, of three.
fn mixed(number: usize, row: usize, col: usize) -> usize {
    let i = ((number * 1000 + row) * 1000 + col) as u64;
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9) as usize >> 33
}

fn retrain(model: &Path, place: &Path, flags: &[&str]) -> Output {
    let fixture = Fixture::get();
    let (train, eval, out, report) = (fixture.train(), fixture.eval(), place.join("out"), place.join("run.json"));
    let mut args = vec!["retrain", "--prune", "none", "--model", text(model), "--train", text(&train)];
    args.extend(["--eval", text(&eval), "--eval-windows", "16", "--out", text(&out), "--report", text(&report)]);
    for (flag, value) in [("--steps", "24"), ("--batch", "4"), ("--accumulate", "2"), ("--lr", "5e-3")] {
        if !flags.contains(&flag) {
            args.extend([flag, value]);
        }
    }
    args.extend(flags);
    program(&args).output().unwrap()
}

/// Every matrix has its zeros where it had them, and no other; returns how many matrices changed elsewhere.
fn changed_but_not_its_zeros(before: &Path, after: &Path) -> usize {
    let changed = |name: &String| {
        let (before, after) = (entries(before, name), entries(after, name));
        for (i, (a, b)) in before.iter().zip(&after).enumerate() {
            assert!((*a == 0.0) == (*b == 0.0), "{name}: entry {i} was {a} and is {b}");
        }
        before != after
    };
    matrices(before).iter().filter(|name| changed(name)).count()
}

/// The perplexity of a folder with an adapter.
fn perplexity(folder: &Path, adapter: &Path) -> f64 {
    let dir = TempDir::new().unwrap();
    let (report, eval) = (dir.path().join("eval.json"), Fixture::get().eval());
    let mut args = vec!["eval", "--model", text(folder), "--adapter", text(adapter), "--eval", text(&eval)];
    args.extend(["--eval-windows", "16", "--report", text(&report)]);
    assert_succeeds(&program(&args).output().unwrap());
    json(&report)["perplexity"].as_f64().unwrap()
}

/// An adapter that another program trained on a pruned model, with a rank and an alpha of its own for one module, is where training
/// starts: with a learning rate of 0 it is where it ends, too.
#[test]
fn training_goes_on_from_an_adapter() {
    let model = pruned_elsewhere(|number, row, col| mixed(number, row, col).is_multiple_of(2));
    let place = TempDir::new().unwrap();
    let adapter = place.path().join("peft");
    std::fs::create_dir(&adapter).unwrap();
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "elsewhere", "bias": "none", "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.05, "target_modules": ["fc1", "q_proj"], "use_rslora": true, "use_dora": false, "modules_to_save": null,
        "rank_pattern": {"layers.1.fc1": 2}, "alpha_pattern": {"layers.1.fc1": 3}, "inference_mode": true,
    });
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    for (module, rank, rows, cols) in [
        ("model.decoder.layers.0.fc1", 4, 64, 32),
        ("model.decoder.layers.1.fc1", 2, 64, 32),
        ("model.decoder.layers.0.self_attn.q_proj", 4, 32, 32),
    ] {
        for (part, shape) in [("A", vec![rank, cols]), ("B", vec![rows, rank])] {
            let value = |i: usize| (mixed(rank, rows + cols, i) % 200) as f32 / 1000.0 - 0.1;
            let data: Vec<u8> = (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
            tensors.push((format!("base_model.model.{module}.lora_{part}.weight"), shape, data));
        }
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    std::fs::write(adapter.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let start = perplexity(model.path(), &adapter);

    // Rank-stabilised, it is plain LoRA with α·√r: 16 of rank 4, and 3·√2 of rank 2.
    let plain = place.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let mut same = config.clone();
    same["use_rslora"] = false.into();
    same["lora_alpha"] = 16.into();
    same["alpha_pattern"]["layers.1.fc1"] = (3.0 * 2f64.sqrt()).into();
    std::fs::write(plain.join("adapter_config.json"), same.to_string()).unwrap();
    std::fs::copy(adapter.join("adapter_model.safetensors"), plain.join("adapter_model.safetensors")).unwrap();
    assert_eq!(perplexity(model.path(), &plain), start);

    let flags = ["--adapter", text(&adapter), "--parts", "lora", "--lr"];
    let at_rest = TempDir::new().unwrap();
    assert_succeeds(&retrain(model.path(), at_rest.path(), &[&flags[..], &["0", "--steps", "1"]].concat()));
    let told = |place: &Path| json(&place.join("run.json"))["perplexity"]["retrained"].as_f64().unwrap();
    // The same products summed in another order, at most 64 in f32: each rounds by at most 2⁻²⁴ of what their magnitudes add up to,
    // which is about 4.
    assert!(
        (told(at_rest.path()) / start - 1.0).abs() < 64.0 * 4.0 / (1 << 24) as f64,
        "{} {start}",
        told(at_rest.path())
    );
    assert_eq!(json(&at_rest.path().join("run.json"))["config"]["targets"], serde_json::json!(["fc1", "q_proj"]));

    assert_succeeds(&retrain(model.path(), place.path(), &[&flags[..], &["5e-3"]].concat()));
    assert!(told(place.path()) < start, "{} after {start}", told(place.path()));
    // What is written says the same, read again; ranks stay, and layer 1's q_proj, which the adapter did not have, is new.
    let (out, written) = (place.path().join("out"), place.path().join("out/adapter"));
    let again = perplexity(&out, &written);
    assert!((again / told(place.path()) - 1.0).abs() < 64.0 * 4.0 / (1 << 24) as f64, "{again}");
    let bytes = std::fs::read(written.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names().len(), 8);
    let rank =
        |module: &str| file.tensor(&format!("base_model.model.{LAYER}{module}.lora_A.weight")).unwrap().shape()[0];
    assert_eq!([rank("0.fc1"), rank("1.fc1"), rank("1.self_attn.q_proj")], [4, 2, 16]);
    assert_eq!(changed_but_not_its_zeros(model.path(), &out), 0);
}

/// What llm-compressor says of a model that it pruned and stored dense is no reason to refuse it.
#[test]
fn dense_weights_of_compressed_tensors_are_read() {
    let folder = Fixture::get().copy();
    let file = folder.path().join("config.json");
    let mut config = json(&file);
    config["quantization_config"] = serde_json::json!({
        "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed", "config_groups": {},
        "sparsity_config": {"format": "dense", "sparsity_structure": "2:4", "global_sparsity": 0.5, "targets": [], "ignore": []},
    });
    std::fs::write(&file, config.to_string()).unwrap();
    assert_succeeds(&cli_support::bare(&["inspect", text(folder.path())]).output().unwrap());
}
