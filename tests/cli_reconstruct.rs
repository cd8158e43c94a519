//! `reconstruct` on the command line: what it writes is what it measured.

mod cli_support;
mod small_models;

use cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn the_model_it_writes_is_the_one_that_it_measured() {
    let fixture = Fixture::get();
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let common = ["--model", text(&model), "--eval", text(&eval), "--seq-len", "32", "--quiet", "--device", "cpu"];
    for (method, criterion) in
        [("perp", "magnitude"), ("full", "wanda"), ("norms", "sparsegpt"), ("mask-lora", "magnitude")]
    {
        let folder = TempDir::new().unwrap();
        let (out, report, pruned) =
            (folder.path().join("out"), folder.path().join("r.json"), folder.path().join("p.json"));
        let how = ["--criterion", criterion, "--sparsity", "0.6"];
        let calibrate = ["--calibrate", text(&train), "--calibration-samples", "16"];
        let files =
            ["--out", text(&out), "--report", text(&report), "--method", method, "--rank", "4", "--steps", "30"];
        assert_succeeds(
            &program(&[&["reconstruct"], &common[..], &how, &calibrate, &files].concat()).output().unwrap(),
        );
        let calibrate = if criterion == "magnitude" { &[][..] } else { &calibrate };
        let alone = [&["prune"], &common[..], &how, calibrate, &["--report", text(&pruned)]].concat();
        assert_succeeds(&program(&alone).output().unwrap());
        let json = |path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
        let (told, pruned) = (json(&report), json(&pruned));
        let number = |value: &Value| value.as_f64().unwrap();
        let layers = told["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for layer in layers {
            assert!(number(&layer["error_reconstructed"]) < number(&layer["error_pruned"]), "{method}: {layer}");
        }
        let perplexity = number(&told["perplexity"]["reconstructed"]);
        assert!(perplexity < number(&pruned["perplexity"]["pruned"]), "{method} {criterion}: {perplexity} {pruned}");
        assert_eq!(told["sparsity"]["weights"], pruned["sparsity"]["weights"]);
        let adapter = out.join("adapter");
        assert_eq!(adapter.exists(), method == "perp");
        let again = folder.path().join("e.json");
        let mut evaluate =
            vec!["eval", "--model", text(&out), "--eval", text(&eval), "--seq-len", "32", "--device", "cpu"];
        evaluate.extend(["--quiet", "--report", text(&again)]);
        if adapter.exists() {
            evaluate.extend(["--adapter", text(&adapter)]);
        }
        assert_succeeds(&program(&evaluate).output().unwrap());
        let again = json(&again);
        let same = again.pointer("/perplexity/model").or(again.pointer("/perplexity")).unwrap();
        // Nothing that is written is rounded: weights have the file's type, what trained beside them is f32.
        assert_eq!(same.as_f64().unwrap_or_else(|| panic!("{again}")), perplexity, "{method}");
    }
}

#[test]
fn what_cannot_be_reconstructed_is_refused() {
    let fixture = Fixture::get();
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let calibrate = ["--calibrate", text(&train)];
    for (flags, code, parts) in [
        (vec!["--eval", text(&eval)], 2, &["--calibrate"][..]),
        (calibrate.to_vec(), 2, &["--out", "--eval"]),
        ([&calibrate[..], &["--eval", text(&eval), "--parts", "head"]].concat(), 1, &["nothing to train"]),
        ([&calibrate[..], &["--eval", text(&eval), "--targets", "q_prj"]].concat(), 1, &["q_prj", "q_proj"]),
        ([&calibrate[..], &["--eval", text(&eval), "--steps", "0"]].concat(), 2, &["--steps"]),
        (
            [&calibrate[..], &["--eval", text(&eval), "--memory-budget", "10KB"]].concat(),
            1,
            &["does not fit", "--batch"],
        ),
        ([&calibrate[..], &["--eval", text(&eval), "--lr", "1e30"]].concat(), 1, &["reconstructing layer 0"]),
    ] {
        let args = [&["reconstruct", "--model", text(&model), "--quiet", "--device", "cpu"], &flags[..]].concat();
        assert_fails(&program(&args).output().unwrap(), code, parts);
    }
}

/// Layers lie dense on the GPU until they are pruned, one by one: a GPU that would only hold them pruned is refused before anything is
/// loaded, and one that holds what a run takes is not.
#[test]
fn a_gpu_must_hold_the_layers_that_are_dense_yet() {
    let mut config = small_models::opt();
    for (field, value) in [("hidden_size", 128), ("ffn_dim", 512), ("num_attention_heads", 2), ("num_hidden_layers", 4)]
    {
        config[field] = value.into();
    }
    (config["word_embed_proj_dim"], config["max_position_embeddings"]) = (128.into(), 32.into());
    let folder = small_models::folder(&config, kernels::DType::F32, 0.02);
    let (model, fixture) = (folder.path().join("model"), Fixture::get());
    std::fs::copy(fixture.model().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let (train, out, report) = (fixture.train(), folder.path().join("out"), folder.path().join("r.json"));
    let mut args = vec!["reconstruct", "--model", text(&model), "--calibrate", text(&train), "--out", text(&out)];
    args.extend(["--report", text(&report), "--sparsity", "0.9", "--steps", "1", "--batch", "1", "--seq-len", "16"]);
    args.extend(["--calibration-samples", "2", "--rank", "2", "--device", "cuda"]);
    let on = |gpu: &str| {
        let mut command = program(&args);
        command.env("LD_LIBRARY_PATH", virtual_gpu::library_folder()).env_remove("CUDA_VISIBLE_DEVICES");
        command.env("VIRTUAL_GPU_DEVICE", gpu).output().unwrap()
    };
    let of = |bytes: f64| {
        let text_of = include_str!("virtual-gpu/src/device/rtx-4090.toml");
        let memory = text_of.lines().find(|line| line.starts_with("memory_bytes")).unwrap();
        let path = folder.path().join("small.toml");
        std::fs::write(&path, text_of.replace(memory, &format!("memory_bytes = {}", bytes as u64))).unwrap();
        path
    };
    assert_succeeds(&on("a100-40gb"));
    std::fs::remove_dir_all(&out).unwrap();
    let told: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let peak = told["peak_bytes"]["total"].as_f64().unwrap();
    assert_fails(&on(text(&of(0.9 * peak))), 1, &["does not fit", "dense behind it", "--batch", "or --device cpu"]);
    assert!(!out.exists());
    assert_succeeds(&on(text(&of(1.1 * peak))));
    assert!(out.exists());
}
