//! The program on a GPU, which is the virtual one.

#[path = "../cli_support/mod.rs"]
mod cli_support;
mod devices;
mod graphs;
mod library;
mod room;
mod runs;
#[path = "../small_models/mod.rs"]
mod small_models;
mod troubles;

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

use cli_support::{Fixture, assert_succeeds, program, text};

/// The program where the driver is the virtual GPU's.
fn on_gpu(device: &str, args: &[&str]) -> Command {
    with_gpu(device, program(args))
}

/// A command on a machine with a GPU.
fn with_gpu(device: &str, mut command: Command) -> Command {
    command
        .env("LD_LIBRARY_PATH", virtual_gpu::library_folder())
        .env("VIRTUAL_GPU_DEVICE", device)
        .env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// The same with a cuBLASLt that says that it is of this version.
fn with_cublas(version: &str, args: &[&str]) -> Command {
    let cublas = virtual_gpu::library_folder_of("virtual_cublas", &["libcublasLt.so.12"]);
    let mut command = on_gpu("a100-40gb", args);
    command
        .env("LD_LIBRARY_PATH", std::env::join_paths([virtual_gpu::library_folder(), cublas]).unwrap())
        .env("VIRTUAL_CUBLAS_VERSION", version);
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn perplexity(report: &Value, name: &str) -> f64 {
    report["perplexity"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// Runs `retrain` on the fixture; returns the report.
fn retrain(run: impl Fn(&[&str]) -> Command, folder: &TempDir, flags: &[&str]) -> Value {
    let fixture = Fixture::get();
    let report = folder.path().join("run.json");
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let mut args = vec!["retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval)];
    args.extend(["--report", text(&report), "--accumulate", "1", "--quiet"]);
    args.extend(["--eval-windows", "16", "--lr", "5e-3", "--rank", "4"]);
    args.extend(flags);
    assert_succeeds(&run(&args).output().unwrap());
    json(&report)
}

/// bf16 rounds by up to 1/512; a perplexity is the exponential of a loss near 4.
const PERPLEXITY: f64 = 4.0 / 512.0;

/// A virtual GPU with so much memory, described in `folder`.
fn gpu_of(folder: &TempDir, bytes: usize) -> String {
    let text_of = include_str!("../virtual-gpu/src/device/rtx-4090.toml");
    let memory = text_of.lines().find(|line| line.starts_with("memory_bytes")).unwrap();
    let path = folder.path().join("small.toml");
    std::fs::write(&path, text_of.replace(memory, &format!("memory_bytes = {bytes}"))).unwrap();
    path.to_str().unwrap().into()
}
