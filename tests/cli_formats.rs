//! Packed models, as a user makes and reads them.

mod cli_support;

use std::path::Path;

use cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use serde_json::Value;
use tempfile::TempDir;

fn run(args: &[&str]) -> String {
    assert_succeeds(&program(args).output().unwrap())
}

/// As [`program`], for commands without threads.
fn plain(args: &[&str]) -> String {
    assert_succeeds(&cli_support::bare(args).output().unwrap())
}

fn perplexity(model: &Path) -> f64 {
    evaluated(model)["perplexity"].as_f64().unwrap()
}

/// What `eval` reports of a model.
fn evaluated(model: &Path) -> Value {
    let dir = TempDir::new().unwrap();
    let (report, eval) = (dir.path().join("eval.json"), Fixture::get().eval());
    run(&["eval", "--model", text(model), "--eval", text(&eval), "--eval-windows", "8", "--report", text(&report)]);
    json(&report)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_pruned_model_is_written_packed_and_is_the_same_model() {
    let fixture = Fixture::get();
    let dir = TempDir::new().unwrap();
    let (model, path) = (fixture.model(), |name: &str| dir.path().join(name));
    let (dense, packed, again, back) = (path("dense"), path("packed"), path("again"), path("back"));
    let prune = |out: &Path, more: &[&str]| {
        run(&[&["prune", "--model", text(&model), "--sparsity", "0.6", "--out", text(out), "--quiet"], more].concat())
    };
    prune(&dense, &[]);
    prune(&packed, &["--out-format", "packed"]);
    let size = |file: &Path| std::fs::metadata(file).unwrap().len();
    assert!(packed.join("tokenizer.json").exists() && !packed.join("model.safetensors").exists());
    assert!(size(&packed.join("model-packed.safetensors")) < size(&dense.join("model.safetensors")));
    // The same products in the same order: the same bits. But what is packed stays so.
    let (of_packed, of_dense) = (evaluated(&packed), evaluated(&dense));
    assert_eq!(of_packed["perplexity"], of_dense["perplexity"]);
    let weights = |of: &Value| of["peak_bytes"]["by_category"]["weights"].as_u64().unwrap();
    let saved = size(&dense.join("model.safetensors")) - size(&packed.join("model-packed.safetensors"));
    // Headers and shapes are in no memory, and differ by some kilobytes.
    assert!(weights(&of_dense) - weights(&of_packed) + 8192 > saved, "{of_packed} {of_dense}");

    let said = plain(&["convert", "--model", text(&dense), "--out", text(&again), "--out-format", "packed"]);
    assert!(said.contains("12 matrices packed"), "{said}");
    let read = |folder: &Path, file: &str| std::fs::read(folder.join(file)).unwrap();
    assert!(read(&again, "model-packed.safetensors") == read(&packed, "model-packed.safetensors"));
    plain(&["convert", "--model", text(&packed), "--out", text(&back), "--out-format", "hf", "--quiet"]);
    assert!(read(&back, "model.safetensors") == read(&dense, "model.safetensors"));
    assert_eq!(json(&back.join("config.json")), json(&dense.join("config.json")));

    let listed: Value = serde_json::from_str(&plain(&["inspect", text(&packed), "--json"])).unwrap();
    let of_dense: Value = serde_json::from_str(&plain(&["inspect", text(&dense), "--json"])).unwrap();
    assert_eq!(listed["layers"], of_dense["layers"]);
    assert_eq!(listed["parameters"], of_dense["parameters"]);
    let patterns = |of: &Value| -> Vec<Value> {
        of["tensors"].as_array().unwrap().iter().map(|t| t["pattern"].clone()).filter(|p| !p.is_null()).collect()
    };
    assert_eq!(patterns(&listed), vec![Value::from("unstructured"); 12]);
    let packed_matrices = listed["tensors"].as_array().unwrap().iter().filter(|t| t["packed"] == true).count();
    assert_eq!(packed_matrices, 12);
}

#[test]
fn a_packed_model_retrains_merges_and_goes_on_like_its_dense_twin() {
    let fixture = Fixture::get();
    let dir = TempDir::new().unwrap();
    let (model, path) = (fixture.model(), |name: &str| dir.path().join(name));
    let (dense, packed) = (path("dense"), path("packed"));
    run(&["prune", "--model", text(&model), "--sparsity", "0.5", "--out", text(&dense), "--quiet"]);
    plain(&["convert", "--model", text(&dense), "--out", text(&packed), "--out-format", "packed", "--quiet"]);
    let mut reports = Vec::new();
    // Pruned further, and as it is.
    let prunings: [&[&str]; 2] = [&["--sparsity", "0.7"], &["--prune", "none"]];
    for (from, pruning) in prunings.iter().flat_map(|pruning| [(&dense, pruning), (&packed, pruning)]) {
        let run_number = reports.len();
        let (report, out) = (path(&format!("{run_number}.json")), path(&format!("out-{run_number}")));
        let (train, eval) = (fixture.train(), fixture.eval());
        let args = [
            "retrain",
            "--model",
            text(from),
            "--train",
            text(&train),
            "--eval",
            text(&eval),
            "--eval-windows",
            "8",
            "--method",
            "perp",
            "--steps",
            "2",
            "--batch",
            "2",
            "--quiet",
            "--out-format",
            "packed",
            "--out",
            text(&out),
            "--report",
            text(&report),
        ];
        run(&[&args[..], pruning].concat());
        reports.push((json(&report), out));
    }
    for pair in reports.chunks(2) {
        assert_eq!(pair[0].0["perplexity"], pair[1].0["perplexity"]);
    }
    let peak = |of: &Value| of["peak_bytes"]["by_category"]["weights"].clone();
    assert_eq!(peak(&reports[2].0), peak(&reports[3].0));
    let (out, merged) = (&reports[1].1, path("merged"));
    assert!(out.join("model-packed.safetensors").exists());
    let adapter = out.join("adapter");
    plain(&[
        "merge",
        "--model",
        text(out),
        "--adapter",
        text(&adapter),
        "--form",
        "mask",
        "--out",
        text(&merged),
        "--quiet",
    ]);
    assert!(perplexity(&merged).is_finite());
    let said = run(&["generate", "--model", text(out), "--prompt", "It is", "--tokens", "2"]);
    assert!(!said.is_empty());
}

#[test]
fn a_format_is_for_a_model_that_is_written() {
    let (model, eval) = (Fixture::get().model(), Fixture::get().eval());
    let args = ["prune", "--model", text(&model), "--eval", text(&eval), "--out-format", "packed"];
    assert_fails(&program(&args).output().unwrap(), 2, &["--out <DIR>"]);
}
