//! Models that are pruned already, retrained as they are.

mod cli_support;

use std::collections::BTreeMap;
use std::path::Path;

use cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

fn run(args: &[&str]) -> String {
    assert_succeeds(&program(args).output().unwrap())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Of every matrix inside a layer, all f32, which entries are zero.
fn zeros(folder: &Path) -> BTreeMap<String, Vec<bool>> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let matrices =
        file.tensors().into_iter().filter(|(name, view)| name.contains(".layers.") && view.shape().len() == 2);
    let zero = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x) == 0.0).collect();
    matrices.map(|(name, view)| (name, zero(view.data()))).collect()
}

#[test]
fn a_model_pruned_elsewhere_keeps_its_zeros_and_its_pattern_is_told() {
    let fixture = Fixture::get();
    let dir = TempDir::new().unwrap();
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let path = |name: &str| dir.path().join(name);
    // Each layer another share, as no uniform pruning would have it.
    let shares = path("shares.json");
    std::fs::write(&shares, r#"{"layers": [0.37, 0.81]}"#).unwrap();
    let kinds: [(&str, &[&str], &str); 3] = [
        ("two", &["--pattern", "2:4"], "2:4"),
        ("four", &["--pattern", "4:8"], "4:8"),
        ("own", &["--allocation", text(&shares)], "unstructured 0.589"),
    ];
    for (name, how, pattern) in kinds {
        let pruned = path(name);
        run(&[&["prune", "--model", text(&model), "--out", text(&pruned), "--quiet"], how].concat());
        let before = zeros(&pruned);
        for (method, merge) in [("full", &[][..]), ("mask-lora", &["--merge", "all"]), ("perp", &[])] {
            let (out, report) = (path(&format!("{name}-{method}")), path("run.json"));
            run(&[
                &[
                    "retrain",
                    "--model",
                    text(&pruned),
                    "--prune",
                    "none",
                    "--train",
                    text(&train),
                    "--eval",
                    text(&eval),
                ][..],
                &["--eval-windows", "8", "--method", method, "--steps", "2", "--batch", "2", "--quiet"],
                &["--out", text(&out), "--report", text(&report)],
                merge,
            ]
            .concat());
            assert!(zeros(&out) == before, "{name}, {method}: zeros have moved");
            let report = json(&report);
            let told = report["pattern"].as_str().unwrap();
            assert!(told.starts_with(pattern), "{name}: {told}");
            assert_eq!((report["criterion"].as_str(), report["perplexity"]["dense"].as_f64()), (Some("none"), None));
            let measured = path("eval.json");
            run(&[
                "eval",
                "--model",
                text(&pruned),
                "--eval",
                text(&eval),
                "--eval-windows",
                "8",
                "--report",
                text(&measured),
            ]);
            // Packed and dense, a product sums the same entries in the same order.
            assert_eq!(report["perplexity"]["pruned"], json(&measured)["perplexity"], "{name}");
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let fixture = Fixture::get();
    let (model, train) = (fixture.model(), fixture.train());
    let refused = |more: &[&str], parts: &[&str]| {
        let args = ["retrain", "--model", text(&model), "--train", text(&train), "--prune", "none", "--quiet"];
        assert_fails(&program(&[&args[..], more].concat()).output().unwrap(), 2, parts);
    };
    refused(&[], &["--prune none", "is not pruned", "leave --prune out"]);
    refused(&["--sparsity", "0.5"], &["--prune none and --sparsity contradict each other"]);
    refused(&["--pattern", "2:4"], &["--prune none and --pattern contradict each other"]);
    refused(&["--criterion", "random"], &["--prune none and --criterion contradict each other"]);
    refused(&["--cycles", "2"], &["--prune none and --cycles contradict each other"]);
    let demo = program(&["retrain", "--prune", "none"]).output().unwrap();
    assert_fails(&demo, 2, &["--prune none goes with --model"]);
}
