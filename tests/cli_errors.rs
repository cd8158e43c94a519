//! Bad input: one clear error that names the culprit, exit code 2 for usage and 1 for failure, nothing written.

mod cli_support;

use std::path::Path;

use cli_support::{Fixture, assert_fails, program, text};
use tempfile::TempDir;

/// Runs `retrain` on `model` with more flags and an output folder; nothing may be written.
fn refused(model: &Path, flags: &[&str], code: i32, parts: &[&str]) {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let (out, report) = (folder.path().join("out"), folder.path().join("run.json"));
    let (train, eval) = (fixture.train(), fixture.eval());
    let mut args = vec!["retrain", "--model", text(model), "--out", text(&out), "--report", text(&report), "--quiet"];
    for (flag, value) in [("--train", text(&train)), ("--eval", text(&eval)), ("--steps", "2")] {
        if !flags.contains(&flag) {
            args.extend([flag, value]);
        }
    }
    args.extend(flags);
    assert_fails(&program(&args).output().unwrap(), code, parts);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn edit_config(folder: &TempDir, from: &str, to: &str) {
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{config}");
    std::fs::write(path, config.replace(from, to)).unwrap();
}

/// Rewrites the weights' header.
fn edit_header(folder: &TempDir, edit: impl Fn(String) -> String) {
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = edit(String::from_utf8(bytes[8..8 + length].to_vec()).unwrap());
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&bytes[8 + length..]);
    std::fs::write(path, out).unwrap();
}

#[test]
fn usage_errors_name_the_flag_and_exit_with_2() {
    let model = Fixture::get().model();
    for (flags, parts) in [
        (&["--sparsity", "1.0"][..], &["--sparsity", "[0, 1)"][..]),
        (&["--sparsity", "-0.5"], &["--sparsity"]),
        (&["--pattern", "5:4"], &["5:4", "n:m"]),
        (&["--sparsity", "0.5", "--pattern", "2:4"], &["--sparsity", "--pattern"]),
        (&["--method", "lora"], &["lora", "biases, norms, probe, perp, full"]),
        (&["--criterion", "wanda2"], &["magnitude, random, wanda, sparsegpt"]),
        (&["--criterion", "wanda"], &["--criterion wanda", "--calibrate"]),
        (&["--criterion", "sparsegpt"], &["--criterion sparsegpt", "--calibrate"]),
        (&["--calibrate", "text.txt"], &["--calibrate", "magnitude"]),
        (&["--steps", "0"], &["--steps", "at least 1"]),
        (&["--lr", "-1"], &["--lr", "expected a number"]),
        (&["--lr", "fast"], &["--lr", "expected a number"]),
        (&["--warmup", "2"], &["--warmup", "[0, 1]"]),
        (&["--seq-len", "33"], &["--seq-len 33", "context of 32"]),
        (&["--cycles", "2", "--pattern", "2:4"], &["--cycles"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
        (&["--config", "no-such.toml"], &["no-such.toml"]),
    ] {
        refused(&model, flags, 2, parts);
    }
}

#[test]
fn missing_files_are_named() {
    let model = Fixture::get().model();
    refused(Path::new("no-such-model"), &[], 1, &["no-such-model"]);
    refused(&model, &["--train", "no-such.txt"], 1, &["no-such.txt"]);
    refused(&model, &["--eval", "no-such.jsonl"], 1, &["no-such.jsonl"]);
    let empty = TempDir::new().unwrap();
    refused(empty.path(), &[], 1, &["config.json"]);
    let copy = Fixture::get().copy();
    std::fs::remove_file(copy.path().join("model.safetensors")).unwrap();
    refused(copy.path(), &[], 1, &["model.safetensors"]);
    let copy = Fixture::get().copy();
    std::fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    refused(copy.path(), &[], 1, &["tokenizer"]);
}

#[test]
fn configurations_that_cannot_be_are_named() {
    let copy = Fixture::get().copy();
    edit_config(&copy, "\"opt\"", "\"mamba\"");
    refused(copy.path(), &[], 1, &["model_type 'mamba' is not supported", "opt"]);
    let copy = Fixture::get().copy();
    edit_config(&copy, "\"num_attention_heads\": 2", "\"num_attention_heads\": 5");
    refused(copy.path(), &[], 1, &["num_attention_heads 5 does not divide hidden_size 32"]);
    let copy = Fixture::get().copy();
    std::fs::write(copy.path().join("config.json"), "{").unwrap();
    refused(copy.path(), &[], 1, &["config.json"]);
}

#[test]
fn damaged_weights_are_named() {
    let copy = Fixture::get().copy();
    let path = copy.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for keep in [bytes.len() - 1, bytes.len() / 2, 100, 7, 0] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        refused(copy.path(), &[], 1, &["model.safetensors"]);
    }
    let copy = Fixture::get().copy();
    edit_header(&copy, |header| header.replace("layers.1.fc1.bias", "layers.1.fc1.bios"));
    refused(copy.path(), &[], 1, &["model.decoder.layers.1.fc1.bias"]);
    let copy = Fixture::get().copy();
    edit_header(&copy, |header| header.replacen("\"shape\":[64,32]", "\"shape\":[32,64]", 1));
    refused(copy.path(), &[], 1, &["fc1.weight", "[32, 64]", "[64, 32]"]);
    let copy = Fixture::get().copy();
    edit_header(&copy, |header| header.replacen("\"dtype\":\"F32\"", "\"dtype\":\"I32\"", 1));
    refused(copy.path(), &[], 1, &["I32"]);
}

#[test]
fn an_index_that_leaves_the_folder_is_refused() {
    for file in ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors"] {
        let copy = Fixture::get().copy();
        std::fs::remove_file(copy.path().join("model.safetensors")).unwrap();
        let index = format!(r#"{{"metadata": {{}}, "weight_map": {{"model.decoder.embed_tokens.weight": "{file}"}}}}"#);
        std::fs::write(copy.path().join("model.safetensors.index.json"), index).unwrap();
        refused(copy.path(), &[], 1, &["model.safetensors.index.json", file]);
    }
}

#[test]
fn text_that_cannot_be_used_is_named() {
    let model = Fixture::get().model();
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let short = write("short.txt", b"Too short.");
    refused(&model, &["--eval", text(&short)], 1, &["32"]);
    refused(&model, &["--train", text(&short)], 1, &["32"]);
    let binary = write("binary.txt", &[b'a', 0xff, 0xfe]);
    refused(&model, &["--train", text(&binary)], 1, &["binary.txt", "UTF-8"]);
    let lines = write("lines.jsonl", b"{\"text\": \"one\"}\n{\"txt\": \"two\"}\n");
    refused(&model, &["--train", text(&lines)], 1, &["lines.jsonl:2", "text"]);
    let calibrate = ["--criterion", "sparsegpt", "--calibrate", text(&short)];
    refused(&model, &calibrate, 1, &["windows of 32 tokens", "none of 1 documents", "shorter sequence length"]);
    refused(&model, &["--criterion", "wanda", "--calibrate", "no-such.txt"], 1, &["no-such.txt"]);
    let other = write("table.csv", b"a,b");
    refused(&model, &["--train", text(&other)], 1, &["table.csv", ".jsonl"]);
}

#[test]
fn a_pattern_that_does_not_divide_is_refused_before_anything_is_read() {
    // Rows of 32 and 64 entries in groups of 5.
    refused(&Fixture::get().model(), &["--pattern", "3:5"], 1, &["q_proj.weight", "32 input features", "groups of 5"]);
}

#[test]
fn a_plan_that_does_not_fit_says_by_how_much() {
    let model = Fixture::get().model();
    let tiny = ["the plan does not fit", "64.00 KiB are available", "short", "alone makes it fit"];
    refused(&model, &["--memory-budget", "64KiB"], 1, &tiny);
    let flags = ["--memory-budget", "3MiB", "--batch", "16", "--checkpointing", "off"];
    refused(&model, &flags, 1, &["it fits with --checkpointing on (", ", or --checkpointing on --batch "]);
}

#[test]
fn targets_and_sets_that_do_not_exist_are_named() {
    let model = Fixture::get().model();
    refused(&model, &["--targets", "q_proj,gate_proj"], 1, &["gate_proj", "q_proj", "fc1"]);
    refused(&model, &["--parts", "lora,everything"], 2, &["everything"]);
}

#[test]
fn an_output_that_exists_is_never_written_over() {
    let fixture = Fixture::get();
    let model = fixture.model();
    let before = std::fs::read(model.join("model.safetensors")).unwrap();
    let args = ["prune", "--model", text(&model), "--out", text(&model), "--quiet"];
    assert_fails(&program(&args).output().unwrap(), 1, &["never written over"]);
    assert_eq!(before, std::fs::read(model.join("model.safetensors")).unwrap());
    let (train, missing) = (fixture.train(), fixture.path("no/such/folder/run.json"));
    let args = ["retrain", "--model", text(&model), "--train", text(&train), "--report", text(&missing), "--quiet"];
    assert_fails(&program(&args).output().unwrap(), 2, &["--report", "no folder"]);
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let fixture = Fixture::get();
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gqa/adapter");
    let (model, eval) = (fixture.model(), fixture.eval());
    let args = ["eval", "--model", text(&model), "--adapter", text(&other), "--eval", text(&eval), "--quiet"];
    assert_fails(&program(&args).output().unwrap(), 1, &["adapter", "another model"]);
}
