//! Sparsity that is not the same for all layers: from outliers and from files, on the command line.

mod cli_support;

use std::path::Path;

use cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use serde_json::Value;
use tempfile::TempDir;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Runs `prune` on the fixture into a new folder; returns its report and what `inspect` says of the model.
fn pruned(folder: &TempDir, flags: &[&str]) -> (Value, Value) {
    let model = Fixture::get().model();
    let (out, report) = (folder.path().join("out"), folder.path().join("report.json"));
    let mut args = vec![
        "prune",
        "--model",
        text(&model),
        "--out",
        text(&out),
        "--report",
        text(&report),
        "--quiet",
        "--device",
        "cpu",
    ];
    args.extend(flags);
    assert_succeeds(&program(&args).output().unwrap());
    let inspected = assert_succeeds(&cli_support::bare(&["inspect", text(&out), "--json"]).output().unwrap());
    (json(&report), serde_json::from_str(&inspected).unwrap())
}

#[test]
fn owl_spreads_the_sparsity_with_every_criterion_and_keeps_its_mean() {
    let train = Fixture::get().train();
    for criterion in ["magnitude", "wanda", "sparsegpt"] {
        let folder = TempDir::new().unwrap();
        let calibrate = ["--calibrate", text(&train), "--calibration-samples", "8", "--seq-len", "32"];
        let flags = [
            "--criterion",
            criterion,
            "--sparsity",
            "0.6",
            "--allocation",
            "owl",
            "--owl-lambda",
            "0.1",
            "--owl-m",
            "3",
        ];
        let (report, inspected) = pruned(&folder, &[&flags[..], &calibrate[..]].concat());
        let allocation = &report["allocation"];
        assert_eq!((allocation["how"].as_str(), allocation["owl_m"].as_f64()), (Some("owl"), Some(3.0)));
        let (outliers, asked) = (numbers(&allocation["outliers"]), numbers(&allocation["layers"]));
        // Two layers: one keeps all that OWL gives, the other nothing of it.
        assert!(
            (asked[0] + asked[1] - 1.2).abs() < 1e-12 && ((asked[0] - asked[1]).abs() - 0.2).abs() < 1e-12,
            "{asked:?}"
        );
        assert_eq!(outliers[0] > outliers[1], asked[0] < asked[1]);
        // ⌊s·n⌋ of a row of 32 or 64 for Wanda, at most 1/32 short; of a matrix of 1,024 or more for the others.
        let short = if criterion == "wanda" { 1.0 / 32.0 } else { 1.0 / 1024.0 };
        let measured = numbers(&report["sparsity"]["layers"]);
        for (layer, (asked, measured)) in asked.iter().zip(&measured).enumerate() {
            assert!(
                measured <= asked && measured + short >= *asked,
                "{criterion} layer {layer}: {measured} of {asked}"
            );
            assert_eq!(inspected["layers"][layer]["sparsity"].as_f64().unwrap(), *measured);
        }
    }
}

#[test]
fn a_file_gives_layers_and_matrices_sparsities_of_their_own() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sparsities.toml");
    std::fs::write(&file, "layers = [0.25, 0.5]\n[matrices]\nfc1 = 0.75\n").unwrap();
    let (report, inspected) = pruned(&folder, &["--allocation", text(&file)]);
    // Of a layer's 8,192 weights fc1 has 2,048, and all shares cut whole numbers.
    assert_eq!(numbers(&report["sparsity"]["layers"]), [0.375, 0.5625]);
    assert_eq!(report["sparsity"]["weights"], 0.46875);
    assert_eq!(report["pattern"], "unstructured 0.46875");
    assert_eq!(report["allocation"]["matrices"]["model.decoder.layers.1.fc1"], 0.75);
    let zeros = |name: &str| {
        let tensors = inspected["tensors"].as_array().unwrap();
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["sparsity"].as_f64().unwrap()
    };
    assert_eq!(zeros("model.decoder.layers.0.self_attn.q_proj.weight"), 0.25);
    assert_eq!(zeros("model.decoder.layers.0.fc1.weight"), 0.75);
    assert_eq!(zeros("model.decoder.layers.1.fc2.weight"), 0.5);
    let table = assert_succeeds(&cli_support::bare(&["inspect", text(&folder.path().join("out"))]).output().unwrap());
    assert!(table.contains("37.50 %") && table.contains("56.25 %"), "{table}");
}

#[test]
fn cycles_go_to_the_allocation_and_runs_with_it_resume() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sparsities.json");
    std::fs::write(&file, "[0.36, 0.75]").unwrap();
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let (report, checkpoints) = (folder.path().join("report.json"), folder.path().join("run"));
    let common = [
        "retrain",
        "--model",
        text(&model),
        "--train",
        text(&train),
        "--eval",
        text(&eval),
        "--steps",
        "2",
        "--batch",
        "2",
        "--accumulate",
        "1",
        "--cycles",
        "2",
        "--eval-windows",
        "2",
        "--report",
        text(&report),
        "--quiet",
        "--device",
        "cpu",
        "--checkpoints",
        text(&checkpoints),
        "--allocation",
    ];
    let run = |more: &[&str]| program(&[&common[..], more].concat()).output().unwrap();
    assert_succeeds(&run(&[text(&file)]));
    let first = json(&report);
    assert_eq!(
        numbers(&first["sparsity"]["layers"]).iter().map(|s| (s * 100.0).round()).collect::<Vec<_>>(),
        [36.0, 75.0]
    );
    // Both layers have as many weights: 1 − √(1 − 0.555) after the first of two cycles.
    let after_one = first["cycles"][0]["sparsity"].as_f64().unwrap();
    assert!((after_one - (1.0 - 0.445f64.sqrt())).abs() < 1e-9, "{after_one}");
    // The file may move; what it says may not change.
    let moved = folder.path().join("moved.json");
    std::fs::rename(&file, &moved).unwrap();
    assert_succeeds(&run(&[text(&moved), "--resume"]));
    assert_eq!(json(&report)["perplexity"], first["perplexity"]);
    std::fs::write(&moved, "[0.37, 0.74]").unwrap();
    assert_fails(&run(&[text(&moved), "--resume"]), 2, &["allocation"]);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let fixture = Fixture::get();
    let (model, train) = (fixture.model(), fixture.train());
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let file = folder.path().join("short.json");
    std::fs::write(&file, "[0.5]").unwrap();
    let whole = folder.path().join("whole.json");
    std::fs::write(&whole, "[0.5, 0.6]").unwrap();
    let calibrate = ["--calibrate", text(&train), "--calibration-samples", "2"];
    let owl = |flags: &[&'static str]| [&["--allocation", "owl"], flags].concat();
    for (flags, code, parts) in [
        (owl(&[]), 2, &["--allocation owl", "--calibrate"][..]),
        (owl(&["--pattern", "2:4"]), 2, &["--allocation", "2:4"]),
        ([&owl(&["--sparsity", "0.99"])[..], &calibrate].concat(), 1, &["layer", "--owl-lambda below"]),
        (vec!["--owl-m", "3"], 2, &["--owl-m", "--allocation owl"]),
        (vec!["--allocation", "owll"], 2, &["owll", "uniform, owl"]),
        (vec!["--allocation", text(&file)], 2, &["short.json", "lists 1", "2 layers, 0 to 1"]),
        (vec!["--allocation", text(&whole), "--sparsity", "0.5"], 2, &["--sparsity 0.5", "0.5500"]),
        (vec!["--calibrate", text(&train)], 2, &["--calibrate", "--allocation owl"]),
    ] {
        let args = [&["prune", "--model", text(&model), "--out", text(&out), "--quiet", "--device", "cpu"], &flags[..]]
            .concat();
        assert_fails(&program(&args).output().unwrap(), code, parts);
        assert!(!out.exists());
    }
}
