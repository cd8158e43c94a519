//! Round trips, and every bad input with its message.

mod adapter;
mod folder;
mod packed;
mod tensors;
mod tokenizer;
mod write;

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::write::write_weight_file;
use super::{NewTensor, Result, SystemDisk, WeightFormat};

fn config() -> Value {
    json!({"model_type": "opt", "hidden_size": 4, "zeta": 1e-5, "alpha": null})
}

/// Values that f16 and bf16 hold exactly: multiples of 1/8 below 16 need 7 bits.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 128) as f32 / 8.0 - 4.0).collect()
}

fn write_file(path: &Path, tensors: &[(&str, &[usize])]) {
    let data: Vec<(&str, &[usize], Vec<f32>)> =
        tensors.iter().map(|&(name, shape)| (name, shape, values(shape.iter().product()))).collect();
    write_weight_file(
        &SystemDisk,
        path,
        data.iter().map(|(name, shape, v)| NewTensor::f32(*name, *shape, v)).collect(),
        WeightFormat::HuggingFace,
    )
    .unwrap();
}

/// A folder with config.json and model.safetensors.
fn single_file_model(tensors: &[(&str, &[usize])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
    write_file(&dir.path().join("model.safetensors"), tensors);
    dir
}

/// The one line that a user would see; fails if there are more, or none.
#[track_caller]
fn message<T>(result: Result<T>) -> String {
    let text = result.err().expect("must fail").to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[track_caller]
fn assert_message<T>(result: Result<T>, parts: &[&str]) {
    let text = message(result);
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// Names of what a folder holds, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
