//! The program as a user runs it: whole runs on a small model, and what it writes.

mod cli_support;

use cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};
use serde_json::Value;
use tempfile::TempDir;

fn json(path: &std::path::Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// Runs `retrain` on the fixture with more flags; returns the report.
fn retrain(folder: &TempDir, flags: &[&str]) -> Value {
    let fixture = Fixture::get();
    let report = folder.path().join("run.json");
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let mut args = vec![
        "retrain",
        "--model",
        text(&model),
        "--train",
        text(&train),
        "--eval",
        text(&eval),
        "--report",
        text(&report),
        "--steps",
        "20",
        "--batch",
        "4",
        "--accumulate",
        "1",
        "--quiet",
    ];
    args.extend(flags);
    let out = assert_succeeds(&program(&args).output().unwrap());
    assert!(out.contains("perplexity retrained"), "{out}");
    json(&report)
}

#[test]
fn retraining_wins_back_what_pruning_lost_and_what_is_written_says_the_same() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let report = retrain(&folder, &["--sparsity", "0.6", "--lr", "5e-3", "--out", text(&out), "--rank", "4"]);
    let perplexity = |name: &str| number(&report["perplexity"][name]);
    assert!(perplexity("pruned") > 1.05 * perplexity("dense"), "{}", report["perplexity"]);
    assert!(perplexity("retrained") < perplexity("pruned"), "{}", report["perplexity"]);
    for (field, value) in
        [("method", "perp"), ("device", "cpu"), ("pattern", "unstructured 0.6"), ("criterion", "magnitude")]
    {
        assert_eq!(report[field], value);
    }
    // ⌊0.6·n⌋ of each matrix.
    assert!((number(&report["sparsity"]["weights"]) - 0.6).abs() < 1e-3);
    assert!(number(&report["sparsity"]["with_adapters"]) < number(&report["sparsity"]["weights"]));
    assert!(number(&report["trainable"]["count"]) > 0.0 && number(&report["trainable"]["percent"]) < 100.0);
    assert!(number(&report["tokens_per_second"]) > 0.0);
    for phase in ["prune", "retrain", "eval"] {
        assert!(number(&report["seconds"][phase]) > 0.0);
    }
    let by_category = report["peak_bytes"]["by_category"].as_object().unwrap();
    assert_eq!(by_category.values().map(number).sum::<f64>(), number(&report["peak_bytes"]["total"]));
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 20);
    assert_eq!(number(&steps[0]["lr"]), 0.0);
    assert!(steps.iter().all(|step| number(&step["loss"]) > 0.0 && number(&step["grad_norm"]) > 0.0));

    let fixture = Fixture::get();
    let second = folder.path().join("eval.json");
    let (adapter, text_file) = (out.join("adapter"), fixture.eval());
    let args = [
        "eval",
        "--model",
        text(&out),
        "--adapter",
        text(&adapter),
        "--eval",
        text(&text_file),
        "--report",
        text(&second),
        "--batch",
        "4",
    ];
    assert_succeeds(&program(&args).output().unwrap());
    let read_back = json(&second);
    assert!((number(&read_back["perplexity"]) / perplexity("retrained") - 1.0).abs() < 1e-5, "{read_back}");
    assert_eq!(read_back["sparsity"]["weights"], report["sparsity"]["weights"]);

    let listed = assert_succeeds(&bare(&["inspect", text(&out), "--json"]).output().unwrap());
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["layer_matrices"]["sparsity"], report["sparsity"]["weights"]);
    let table = assert_succeeds(&bare(&["inspect", "--model", text(&out)]).output().unwrap());
    assert!(table.contains("model.decoder.layers.1.self_attn.v_proj.weight"), "{table}");
}

#[test]
fn every_method_and_part_trains_and_lowers_the_loss() {
    // Pruned so far that even biases alone have something to win back.
    for flags in [
        &["--method", "biases", "--sparsity", "0.8"][..],
        &["--method", "norms", "--sparsity", "0.8"],
        &["--method", "probe", "--sparsity", "0.8"],
        &["--method", "full", "--sparsity", "0.8"],
        &["--parts", "lora", "--targets", "all-linear", "--sparsity", "0.8"],
        &["--parts", "norms,head", "--rank", "2", "--sparsity", "0.8"],
        &["--pattern", "2:4", "--checkpointing", "on"],
        &["--criterion", "random", "--sparsity", "0.3"],
    ] {
        let folder = TempDir::new().unwrap();
        let report = retrain(&folder, &[flags, &["--lr", "2e-3"]].concat());
        let (pruned, retrained) = (number(&report["perplexity"]["pruned"]), number(&report["perplexity"]["retrained"]));
        assert!(retrained < 0.99 * pruned, "{flags:?}: {pruned} → {retrained}");
    }
}

#[test]
fn cycles_prune_step_by_step_and_keep_every_zero() {
    let folder = TempDir::new().unwrap();
    for method in ["perp", "full"] {
        let report = retrain(&folder, &["--sparsity", "0.75", "--cycles", "2", "--method", method]);
        let cycles = report["cycles"].as_array().unwrap();
        assert_eq!(cycles.iter().map(|c| number(&c["sparsity"])).collect::<Vec<_>>(), [0.5, 0.75]);
        assert_eq!(report["steps"].as_array().unwrap().len(), 40);
        assert!((number(&report["sparsity"]["weights"]) - 0.75).abs() < 1e-3);
    }
}

#[test]
fn rows_are_padded_and_validated_and_tokens_kept() {
    let folder = TempDir::new().unwrap();
    for (name, from) in [("a", 0), ("b", 9)] {
        let rows: String =
            (from..from + 9).map(|i| format!("{{\"text\": \"{}\"}}\n", "It was so. ".repeat(i + 1))).collect();
        std::fs::write(folder.path().join(format!("{name}.jsonl")), rows).unwrap();
    }
    let (pattern, cache) = (folder.path().join("*.jsonl"), folder.path().join("tokens"));
    let flags = ["--train", text(&pattern), "--packing", "pad", "--token-cache", text(&cache), "--eval-every", "8"];
    let report = {
        let fixture = Fixture::get();
        let (model, eval, report) = (fixture.model(), fixture.eval(), folder.path().join("run.json"));
        let common = ["retrain", "--model", text(&model), "--eval", text(&eval), "--report", text(&report)];
        let args = [&common[..], &flags, &["--steps", "20", "--validation-windows", "3"]].concat();
        let run = || {
            let output = program(&args).output().unwrap();
            assert_succeeds(&output);
            (String::from_utf8(output.stderr).unwrap(), json(&report))
        };
        let (first, second) = (run(), run());
        assert!(!first.0.contains("kept from before") && second.0.contains("kept from before"), "{}", second.0);
        for field in ["perplexity", "config"] {
            assert_eq!(first.1[field], second.1[field], "tokens made and tokens kept");
        }
        second.1
    };
    let steps: Vec<_> = report["validation"].as_array().unwrap().iter().map(|one| one["step"].clone()).collect();
    assert_eq!(steps, [0, 8, 16, 20], "before the first step, every eighth, and the last");
    assert!(report["validation"].as_array().unwrap().iter().all(|one| number(&one["perplexity"]) > 1.0));
    assert_eq!(report["config"]["packing"], "pad");
}

#[test]
fn the_same_seed_gives_the_same_run_whatever_checkpointing_and_another_seed_another() {
    let folder = TempDir::new().unwrap();
    let losses = |flags: &[&str]| -> Vec<f64> {
        let report = retrain(&folder, flags);
        report["steps"].as_array().unwrap().iter().map(|step| number(&step["loss"])).collect()
    };
    let first = losses(&["--seed", "7"]);
    assert_eq!(first, losses(&["--seed", "7", "--checkpointing", "on"]));
    assert_ne!(first, losses(&["--seed", "8"]));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let run = |threads: &str| {
        let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
        let (out, report) = (folder.path().join(threads), folder.path().join(format!("{threads}.json")));
        #[rustfmt::skip]
        let args = [
            "retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval), "--steps", "5",
            "--batch", "3", "--threads", threads, "--out", text(&out), "--report", text(&report), "--quiet",
        ];
        assert_succeeds(&bare(&args).output().unwrap());
        let weights = ["model.safetensors", "adapter/adapter_model.safetensors"];
        (json(&report)["perplexity"].clone(), weights.map(|file| std::fs::read(out.join(file)).unwrap()))
    };
    let one = run("1");
    assert!(one == run("2"));
    assert!(one == run("3"));
}

#[test]
fn the_demo_runs_from_any_folder_and_tells_the_papers_story() {
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("run.json");
    let args = ["retrain", "--steps", "12", "--lr", "1e-3", "--eval-windows", "8", "--report", "run.json", "--quiet"];
    assert_succeeds(&program(&args).current_dir(folder.path()).output().unwrap());
    let perplexity = &json(&report)["perplexity"];
    let [dense, pruned, retrained] = ["dense", "pruned", "retrained"].map(|name| number(&perplexity[name]));
    assert!(dense < retrained && retrained < pruned, "{perplexity}");
}

#[test]
fn flags_come_from_a_file_and_the_command_line_wins() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("run.toml");
    let report = folder.path().join("run.json");
    let toml = format!(
        "model = {:?}\ntrain = [{:?}]\neval = {:?}\npattern = '2:4'\nsteps = 3\nbatch = 2\naccumulate = 1\n\
         targets = ['q_proj', 'fc1']\nlr = 1e-3\nquiet = true\nreport = {:?}\n",
        fixture.model(),
        fixture.train(),
        fixture.eval(),
        report
    );
    std::fs::write(&config, toml).unwrap();
    assert_succeeds(
        &program(&["retrain", "--config", text(&config), "--steps", "2", "--sparsity", "0.5"]).output().unwrap(),
    );
    let written = json(&report);
    assert_eq!(written["pattern"], "unstructured 0.5");
    assert_eq!(written["config"]["targets"], serde_json::json!(["q_proj", "fc1"]));
    assert_eq!(written["steps"].as_array().unwrap().len(), 2);

    std::fs::write(&config, "modle = 'x'\n").unwrap();
    let output = program(&["retrain", "--config", text(&config)]).output().unwrap();
    assert_fails(&output, 2, &["unknown key 'modle'", "did you mean 'model'"]);
    std::fs::write(&config, "steps = [\n").unwrap();
    assert_fails(&program(&["retrain", "--config", text(&config)]).output().unwrap(), 2, &["run.toml"]);
}

#[test]
fn profile_needs_no_weights_and_says_whether_it_fits() {
    let out =
        assert_succeeds(&bare(&["profile", "--model", "opt-30b", "--gpu", "a100-40gb", "--json"]).output().unwrap());
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["trainable"]["count"], 27_426_304);
    assert!(number(&plan["estimated_seconds"]) > 0.0);
    assert!(plan["kernels"].as_array().unwrap().len() > 10);
    let out = assert_succeeds(&bare(&["profile", "--model", "opt-30b", "--gpu", "rtx4090"]).output().unwrap());
    assert!(out.contains("does not fit") && out.contains("estimate"), "{out}");
    let config = Fixture::get().path("config.json");
    let on_processor = ["profile", "--model", text(&config), "--gemm", "cublas"];
    assert_fails(&bare(&on_processor).output().unwrap(), 2, &["--gemm cublas multiplies on a GPU"]);
    let out = assert_succeeds(&bare(&["profile", "--model", text(&config), "--method", "norms"]).output().unwrap());
    assert!(out.contains("linear_backward_input") && out.contains("fits"), "{out}");
}

#[test]
fn calibrated_pruning_loses_less_than_magnitude_and_the_same_through_a_file() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let prune = |criterion: &str, run: &str, flags: &[&str]| {
        let (out, report) = (folder.path().join(run), folder.path().join(format!("{run}.json")));
        #[rustfmt::skip]
        let mut args = vec![
            "prune", "--model", text(&model), "--criterion", criterion, "--sparsity", "0.6", "--eval", text(&eval),
            "--out", text(&out), "--report", text(&report), "--quiet",
        ];
        args.extend(flags);
        assert_succeeds(&program(&args).output().unwrap());
        (json(&report), std::fs::read(out.join("model.safetensors")).unwrap())
    };
    let perplexity = |report: &Value| number(&report["perplexity"]["pruned"]);
    let (magnitude, in_memory) = prune("magnitude", "magnitude", &[]);
    assert_eq!(magnitude["layer_errors"], serde_json::json!([]));
    let mut last = perplexity(&magnitude);
    let (_, in_files) = prune("magnitude", "magnitude-files", &["--memory-budget", "1KiB"]);
    assert!(in_memory == in_files, "pruned layers in files are the same");
    let owl = ["--allocation", "owl", "--calibrate", text(&train), "--calibration-samples", "8"];
    let (_, in_memory) = prune("magnitude", "owl", &owl);
    let (_, in_files) = prune("magnitude", "owl-files", &[&owl[..], &["--memory-budget", "1KiB"]].concat());
    assert!(in_memory == in_files, "and so where an allocation is found first");
    for criterion in ["wanda", "sparsegpt"] {
        let flags = ["--calibrate", text(&train), "--calibration-samples", "32", "--batch", "8"];
        let (report, weights) = prune(criterion, criterion, &flags);
        assert!(perplexity(&report) < last, "{criterion}: {} of {last}", perplexity(&report));
        last = perplexity(&report);
        assert_eq!(report["calibration_samples"], 32);
        let errors: Vec<f64> = report["layer_errors"].as_array().unwrap().iter().map(number).collect();
        assert!(errors.len() == 2 && errors.iter().all(|error| *error > 0.0 && *error < 1.0), "{errors:?}");
        // Rows and blocks of columns each lose ⌊0.6·n⌋.
        let sparsity = number(&report["sparsity"]["weights"]);
        assert!(sparsity <= 0.6 && sparsity > 0.6 - 1.0 / 32.0, "{criterion}: {sparsity}");
        let spilled =
            prune(criterion, &format!("{criterion}-file"), &[&flags[..], &["--memory-budget", "1KiB"]].concat());
        assert!(weights == spilled.1, "{criterion}: the same through a file");
        let other = prune(criterion, &format!("{criterion}-seed"), &[&flags[..], &["--seed", "1"]].concat());
        assert!(weights != other.1, "{criterion}: another seed draws other windows");
    }
}

#[test]
fn calibrated_pruning_is_retrained_in_cycles_with_adapters_and_with_all_weights() {
    let train = Fixture::get().train();
    for (criterion, method) in [("wanda", "perp"), ("sparsegpt", "perp"), ("sparsegpt", "full")] {
        let folder = TempDir::new().unwrap();
        #[rustfmt::skip]
        let flags = [
            "--criterion", criterion, "--calibrate", text(&train), "--calibration-samples", "16", "--sparsity", "0.75",
            "--cycles", "2", "--method", method, "--lr", "2e-3",
        ];
        let report = retrain(&folder, &flags);
        let (pruned, retrained) = (number(&report["perplexity"]["pruned"]), number(&report["perplexity"]["retrained"]));
        assert!(retrained < pruned, "{criterion} {method}: {pruned} → {retrained}");
        assert_eq!(number(&report["sparsity"]["weights"]), 0.75, "{criterion} {method}");
        for cycle in report["cycles"].as_array().unwrap() {
            assert_eq!(cycle["layer_errors"].as_array().unwrap().len(), 2, "{criterion} {method}");
        }
        assert_eq!(report["config"]["calibrate"], serde_json::json!([text(&train)]));
    }
}

#[test]
fn prune_writes_exact_zeros_and_leaves_the_other_bits_alone() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("pruned");
    let model = fixture.model();
    let args = ["prune", "--model", text(&model), "--pattern", "4:8", "--out", text(&out), "--quiet"];
    assert_succeeds(&program(&args).output().unwrap());
    let read = |path: std::path::PathBuf| std::fs::read(path.join("model.safetensors")).unwrap();
    let (before, after) = (read(fixture.model()), read(out.clone()));
    let tensors = |bytes: &[u8]| -> std::collections::BTreeMap<String, Vec<u8>> {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
    };
    let (before, after) = (tensors(&before), tensors(&after));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, old) in &before {
        let new = &after[name];
        if !(name.contains("layers.") && name.ends_with("proj.weight")
            || name.contains(".fc") && name.ends_with("weight"))
        {
            assert_eq!(old, new, "{name}");
            continue;
        }
        for (old, new) in old.chunks(32).zip(new.chunks(32)) {
            let zeros = new.chunks(4).filter(|x| **x == [0; 4]).count();
            assert_eq!(zeros, 4, "{name}");
            assert!(old.chunks(4).zip(new.chunks(4)).all(|(old, new)| new == old || *new == [0; 4]), "{name}");
        }
    }
    assert!(out.join("tokenizer.json").is_file() && out.join("config.json").is_file());
}

#[test]
fn a_run_whose_progress_no_one_reads_goes_on() {
    let (fixture, folder) = (Fixture::get(), TempDir::new().unwrap());
    let out = folder.path().join("pruned");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_perp-engine"))
        .args(["prune", "--model", text(&fixture.model()), "--sparsity", "0.5", "--out", text(&out)])
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert!(String::from_utf8(output.stdout).unwrap().contains("sparsity of the weights"));
    assert!(out.join("model.safetensors").is_file());
}
