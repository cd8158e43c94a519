//! `sweep`, on the demo's file and on small grids.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::browser::Browser;
use crate::cli_support::{CACHE, Fixture, assert_fails, assert_succeeds, bare, text};
use crate::pages::look;

/// A sweep of the fixture with this grid; flags behind -- that make it small.
fn sweep(folder: &TempDir, grid: &str, more: &[&str]) -> Output {
    command(folder, grid, more).output().unwrap()
}

fn command(folder: &TempDir, grid: &str, more: &[&str]) -> Command {
    let fixture = Fixture::get();
    let (file, out) = (folder.path().join("grid.toml"), folder.path().join("out"));
    std::fs::write(&file, grid).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_perp-engine"));
    command.env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", CACHE);
    command.arg("sweep").arg(file).arg("--out").arg(out).args(more).arg("--");
    for (flag, path) in [("--model", fixture.model()), ("--train", fixture.train()), ("--eval", fixture.eval())] {
        command.arg(flag).arg(path);
    }
    #[rustfmt::skip]
    command.args([
        "--batch", "2", "--accumulate", "1", "--rank", "4", "--eval-windows", "8", "--token-cache", "off", "--threads", "2",
    ]);
    command
}

fn reports(folder: &TempDir) -> Vec<(PathBuf, Value)> {
    let files = std::fs::read_dir(folder.path().join("out/runs")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: PathBuf| (path.clone(), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
    files.into_iter().map(read).collect()
}

/// What a run measured, without the time that it took.
fn numbers(report: &Value) -> Value {
    let of_all = |list: &str, field: &str| -> Vec<Value> {
        report[list].as_array().unwrap().iter().map(|one| one[field].clone()).collect()
    };
    json!([report["perplexity"], report["matrices"], of_all("steps", "loss"), of_all("validation", "perplexity")])
}

const GRID: &str = "title = 'A grid'\n[run]\nsteps = 6\neval-every = 6\nvalidation-windows = 8\n[grid]\nsparsity = [0.5, 0.7]\n\
                    method = ['norms', 'full', 'perp']\nlr = [1e-3, 1e-2]\n";

#[test]
fn runs_that_share_a_pruned_model_are_those_that_run_alone() {
    let folder = TempDir::new().unwrap();
    let output = sweep(&folder, GRID, &[]);
    let markdown = assert_succeeds(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    // Of six runs at a sparsity the first prunes; after each of the two that train all weights, the next one does.
    assert_eq!(said.matches("prune: as the run before").count(), 2 * 3, "{said}");
    assert_eq!(said.matches("dense perplexity").count(), 1, "{said}");
    let all = reports(&folder);
    assert_eq!(all.len(), 12);
    for (path, report) in &all {
        // The command of the report, in a process of its own.
        let alone = folder.path().join("alone.json");
        let command = report["command"].as_str().unwrap();
        if !command.contains("--sparsity 0.7") {
            continue;
        }
        let mut words: Vec<&str> = command.split(' ').skip(1).collect();
        words.extend(["--report", text(&alone), "--quiet"]);
        assert_succeeds(&bare(&words).output().unwrap());
        let alone: Value = serde_json::from_slice(&std::fs::read(&alone).unwrap()).unwrap();
        assert_eq!(numbers(report), numbers(&alone), "{}", path.display());
    }
    // Before the first step a pruned model is the same under every method.
    for pattern in ["unstructured 0.5", "unstructured 0.7"] {
        let of = all.iter().map(|(_, report)| report).filter(|report| report["pattern"] == pattern);
        let first: Vec<&Value> = of.map(|report| &report["validation"][0]["perplexity"]).collect();
        assert!(first.len() == 6 && first.iter().all(|other| other.is_number() && *other == first[0]), "{first:?}");
    }
    // Of the two rates the better one on the validation text stands in the table.
    let best = |sparsity: f64, method: &str| -> f64 {
        let of = all
            .iter()
            .map(|(_, report)| report)
            .filter(|report| report["method"] == method && report["pattern"] == format!("unstructured {sparsity}"));
        let rank = |report: &&Value| report["validation"][1]["perplexity"].as_f64().unwrap();
        of.min_by(|a, b| rank(a).total_cmp(&rank(b))).unwrap()["perplexity"]["retrained"].as_f64().unwrap()
    };
    for method in ["norms", "perp", "full"] {
        let row = markdown.lines().find(|line| line.starts_with(&format!("| {method} |"))).unwrap();
        for sparsity in [0.5, 0.7] {
            assert!(row.contains(&format!("{:.2}", best(sparsity, method))), "{row}");
        }
    }
    let comparison = |form: &str| folder.path().join("out/comparison").with_extension(form);
    assert!(comparison("md").exists() && comparison("json").exists());
    let html = std::fs::read_to_string(comparison("html")).unwrap();
    for part in ["<h1>A grid</h1>", "12 runs, 12 settings", "Learning rates: the best on validation text is taken"] {
        assert!(html.contains(part), "{part}");
    }
    let Some(mut browser) = Browser::start() else { return };
    look(&mut browser, &comparison("html"), "sweep");
}

#[test]
fn a_sweep_goes_on_where_it_stopped_and_a_run_that_fails_stops_no_other() {
    let folder = TempDir::new().unwrap();
    // A learning rate at which everything overflows.
    let grid = "[run]\nsteps = 6\n[grid]\nmethod = ['norms']\nlr = [1e-3, 1e38]\n";
    let output = sweep(&folder, grid, &["--quiet"]);
    assert_fails(&output, 1, &["1 of 2 runs failed", "lr"]);
    let first = reports(&folder);
    assert_eq!(first.len(), 1);
    let when = std::fs::metadata(&first[0].0).unwrap().modified().unwrap();
    // A report that was cut off is no report.
    let good = "[run]\nsteps = 6\n[grid]\nmethod = ['norms']\nlr = [1e-3, 2e-3]\n";
    let output = sweep(&folder, good, &[]);
    assert_succeeds(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 2 runs are done already"));
    assert_eq!(std::fs::metadata(&first[0].0).unwrap().modified().unwrap(), when, "what is done is left alone");
    let bytes = std::fs::read(&first[0].0).unwrap();
    std::fs::write(&first[0].0, &bytes[..bytes.len() / 2]).unwrap();
    assert_succeeds(&sweep(&folder, good, &["--quiet"]));
    let again: Value = serde_json::from_slice(&std::fs::read(&first[0].0).unwrap()).unwrap();
    assert_eq!(again["perplexity"], first[0].1["perplexity"]);
}

#[test]
fn a_killed_sweep_goes_on_inside_its_run_and_ends_in_the_same_numbers() {
    let grid = "[run]\nsteps = 200\n[grid]\nmethod = ['perp', 'norms']\n";
    let (killed, whole) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let flags = ["--save-every", "2"];
    let checkpoints = killed.path().join("out/checkpoints");
    let newest = || {
        let runs = std::fs::read_dir(&checkpoints).into_iter().flatten().map(|run| run.unwrap().path());
        let files = runs.flat_map(|run| std::fs::read_dir(run).unwrap().map(|file| file.unwrap().path()));
        files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).max()
    };
    let mut child = command(&killed, grid, &flags).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    // The first is that of step 0, and the second says that training is on.
    let first = loop {
        if let Some(first) = newest() {
            break first;
        }
        assert!(started.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    };
    while newest().as_ref() == Some(&first) {
        assert!(child.try_wait().unwrap().is_none(), "it is over already");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.path().join("out/runs").read_dir().unwrap().any(|_| true), "no run is done");

    let again = sweep(&killed, grid, &flags);
    assert_succeeds(&again);
    let said = String::from_utf8_lossy(&again.stderr);
    assert_eq!(said.matches("goes on after step").count(), 1, "{said}");
    assert!(!checkpoints.exists(), "what is done needs no checkpoints");
    assert_succeeds(&sweep(&whole, grid, &[]));
    let all = |folder: &TempDir| reports(folder).iter().map(|(_, report)| numbers(report)).collect::<Vec<_>>();
    assert_eq!(all(&killed), all(&whole));
}

#[test]
fn processes_that_are_started_together_share_the_runs_out() {
    let grid = "[run]\nsteps = 20\n[grid]\nsparsity = [0.5]\nmethod = ['norms', 'perp']\nseed = [0, 1, 2]\n";
    let (shared, alone) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    // A command writes its sweep's file: all of them are made before the first reads it.
    let commands = [(), (), ()].map(|()| command(&shared, grid, &[]));
    let start = |mut command: Command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let processes = commands.map(start);
    let mut ran = Vec::new();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        assert_succeeds(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        ran.extend(said.lines().filter(|line| line.starts_with("run ")).map(str::to_string));
    }
    ran.sort();
    assert_eq!(ran.len(), 6, "each run once: {ran:?}");
    ran.dedup();
    assert_eq!(ran.len(), 6, "each run once: {ran:?}");
    assert!(!shared.path().join("out/running").exists(), "no one is at anything");
    assert_succeeds(&sweep(&alone, grid, &["--quiet"]));
    let all = |folder: &TempDir| reports(folder).iter().map(|(_, report)| numbers(report)).collect::<Vec<_>>();
    assert_eq!(all(&shared), all(&alone));
}

#[test]
fn a_dry_run_lists_and_a_wrong_sweep_is_named_before_anything_runs() {
    let folder = TempDir::new().unwrap();
    let out = assert_succeeds(&sweep(&folder, GRID, &["--dry-run"]));
    assert_eq!(out.lines().filter(|line| line.starts_with("perp-engine retrain --model")).count(), 12, "{out}");
    assert_fails(&sweep(&folder, "[grid]\nalpha = [0]\n", &[]), 2, &["alpha"]);
    let below = "invalid value '-1' for '--clip <NORM>': expected a number of at least 0: perp-engine retrain";
    assert_fails(&sweep(&folder, "[grid]\nclip = [-1]\n", &[]), 2, &[below]);
    let products = "grid.toml: --gemm has several values";
    assert_fails(&sweep(&folder, "[grid]\ngemm = ['own', 'auto']\n", &[]), 2, &[products]);
    assert_fails(&sweep(&folder, "title = 'Nothing'\n", &[]), 2, &["grid.toml", "neither [run] nor [grid]"]);
    assert_fails(&sweep(&folder, "[grid]\nspeed = [1]\n", &[]), 2, &["grid.toml", "--speed"]);
    assert_fails(&bare(&["sweep", "/nowhere.toml", "--out", "x"]).output().unwrap(), 2, &["/nowhere.toml"]);
    assert!(!folder.path().join("out").exists());
}
