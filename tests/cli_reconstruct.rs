//! `reconstruct` on the command line: what it writes is what it measured.

mod cli_support;

use cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn the_model_it_writes_is_the_one_that_it_measured() {
    let fixture = Fixture::get();
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let common = ["--model", text(&model), "--eval", text(&eval), "--seq-len", "32", "--quiet", "--device", "cpu"];
    for (method, criterion) in [("perp", "magnitude"), ("full", "wanda"), ("norms", "sparsegpt")] {
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
