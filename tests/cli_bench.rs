//! `bench` as a user runs it: what it reports must be true of the model, whatever the times are.

mod cli_support;

use cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};
use serde_json::Value;
use tempfile::TempDir;

/// Runs `bench` on the fixture with more flags; returns what it printed and its report.
fn bench(flags: &[&str]) -> (String, Value) {
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("bench.json");
    let model = Fixture::get().model();
    let mut args = vec!["bench", "--model", text(&model), "--batch", "8", "--seq-len", "32", "--report", text(&report)];
    args.extend(flags);
    let out = assert_succeeds(&program(&args).output().unwrap());
    (out, serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap())
}

#[test]
fn a_timed_step_does_the_work_that_the_plan_says() {
    let (out, report) = bench(&["--steps", "3", "--sparsity", "0.5"]);
    assert!(out.contains("tok/s") && out.contains("linear_forward"), "{out}");
    assert_eq!(report["step_seconds"].as_array().unwrap().len(), 3);
    assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);

    let model = Fixture::get().model();
    let flags = ["profile", "--model", text(&model), "--batch", "8", "--seq-len", "32", "--json"];
    let plan: Value = serde_json::from_str(&assert_succeeds(&program(&flags).output().unwrap())).unwrap();
    let planned = plan["kernels"].as_array().unwrap();
    let timed = report["kernels"].as_array().unwrap();
    assert_eq!(timed.len(), planned.len());
    for kernel in planned {
        let same = timed.iter().find(|timed| timed["kernel"] == kernel["kernel"]).expect("the kernel ran");
        assert_eq!(same["calls"], kernel["calls"], "{}", kernel["kernel"]);
        assert_eq!(same["flops"].as_f64(), kernel["flops"].as_f64(), "{}", kernel["kernel"]);
        let share = same["share_of_peak"].as_f64().unwrap();
        assert!(share > 0.0 && share.is_finite(), "{}", kernel["kernel"]);
    }
}

#[test]
fn products_count_only_the_weights_that_are_there() {
    let (_, report) = bench(&["--products", "--steps", "2"]);
    let products = report["products"].as_array().unwrap();
    for pattern in ["dense", "0.5", "0.9", "2:4"] {
        assert!(products.iter().any(|product| product["pattern"] == pattern), "{pattern} is missing");
    }
    for product in products {
        let density = match product["pattern"].as_str().unwrap() {
            "dense" => 1.0,
            "2:4" | "4:8" => 0.5,
            sparsity => 1.0 - sparsity.parse::<f64>().unwrap(),
        };
        let share = product["gflops"].as_f64().unwrap() / product["dense_gflops"].as_f64().unwrap();
        // ⌊sparsity·n⌋ entries go: the share kept is off by less than one entry of a few hundred.
        assert!((share - density).abs() < 5e-3, "{product}");
        assert_eq!(product["milliseconds"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn scaling_is_drawn_for_what_the_model_can_take() {
    let folder = TempDir::new().unwrap();
    let svg = folder.path().join("scaling.svg");
    let (out, report) = bench(&["--scaling", text(&svg), "--steps", "1", "--quiet"]);
    let series: Vec<&str> = report.as_array().unwrap().iter().map(|s| s["varied"].as_str().unwrap()).collect();
    // The fixture's context is shorter than every length of the series, and it has no other sizes.
    assert_eq!(series, ["sequences", "sparsity"]);
    assert!(out.contains("0.95"), "{out}");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("sequences") && drawn.ends_with("</svg>\n"), "{drawn}");
}

#[test]
fn what_cannot_be_timed_is_named() {
    let fails = |flags: &[&str], code, parts: &[&str]| assert_fails(&bare(flags).output().unwrap(), code, parts);
    fails(&["bench", "--model", "/nowhere/model"], 1, &["/nowhere/model"]);
    fails(&["bench", "--scaling", "/nowhere/plot.svg"], 2, &["--scaling", "/nowhere"]);
    fails(&["bench", "--products", "--sparsity", "0.5"], 2, &["--products"]);
    fails(&["bench", "--memory-budget", "10MB"], 1, &["does not fit", "9.54 MiB"]);
}

#[test]
fn no_more_layers_are_recomputed_than_the_budget_forces() {
    let peak = |report: &Value| report["peak_bytes"]["total"].as_u64().unwrap();
    let recomputed = |report: &Value| report["recomputed_layers"].as_u64().unwrap();
    let (_, plain) = bench(&["--steps", "1"]);
    assert_eq!(recomputed(&plain), 0);
    let (_, one) = bench(&["--steps", "1", "--memory-budget", &(peak(&plain) - 1).to_string()]);
    assert_eq!(recomputed(&one), 1);
    assert!(peak(&one) < peak(&plain));
    let (_, both) = bench(&["--steps", "1", "--memory-budget", &(peak(&one) - 1).to_string()]);
    assert_eq!(recomputed(&both), 2);
    assert!(peak(&both) < peak(&one));
    let (_, all) = bench(&["--steps", "1", "--checkpointing", "on"]);
    assert_eq!((recomputed(&all), peak(&all)), (2, peak(&both)));
}
