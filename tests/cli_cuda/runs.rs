//! Runs on a GPU, beside the processor's.

use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_succeeds, program, text};
use crate::{PERPLEXITY, json, on_gpu, perplexity, retrain};

#[test]
fn a_gpu_prunes_retrains_and_writes_what_the_processor_reads_back() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let length = ["--sparsity", "0.85", "--steps", "12", "--batch", "4"];
    let flags = [&length[..], &["--device", "cuda:0", "--out", text(&out)]].concat();
    let on_a100 = |args: &[&str]| on_gpu("a100-40gb", args);
    let gpu = retrain(on_a100, &folder, &flags);
    let cpu = retrain(program, &folder, &length);
    assert_eq!((&gpu["device"], &cpu["device"]), (&"cuda".into(), &"cpu".into()));
    assert_eq!(gpu["gpu"], "NVIDIA A100-SXM4-40GB");
    for name in ["dense", "pruned", "retrained"] {
        let (got, want) = (perplexity(&gpu, name), perplexity(&cpu, name));
        assert!((got / want - 1.0).abs() <= PERPLEXITY, "{name}: {got}, not {want}");
    }
    let (pruned, retrained) = (perplexity(&gpu, "pruned"), perplexity(&gpu, "retrained"));
    assert!(retrained < pruned, "{pruned} before, {retrained} after");
    assert_eq!((&gpu["sparsity"], &gpu["trainable"]), (&cpu["sparsity"], &cpu["trainable"]));

    let (second, eval, adapter) = (folder.path().join("eval.json"), Fixture::get().eval(), out.join("adapter"));
    let args =
        ["eval", "--model", text(&out), "--adapter", text(&adapter), "--eval", text(&eval), "--eval-windows", "16"];
    for run in [program(&args), on_a100(&args)] {
        let mut run = run;
        assert_succeeds(&run.args(["--report", text(&second), "--quiet"]).output().unwrap());
        let read_back = json(&second)["perplexity"].as_f64().unwrap();
        assert!((read_back / perplexity(&gpu, "retrained") - 1.0).abs() <= PERPLEXITY, "{read_back}");
    }
}

/// Merging computes on the host: what a GPU trained goes through it and back, and every zero stays.
#[test]
fn a_gpu_merges_what_it_trained_and_keeps_every_zero() {
    let on_a100 = |args: &[&str]| on_gpu("a100-40gb", args);
    let fixture = Fixture::get();
    for (method, pattern) in [
        ("lora-prune", ["--sparsity", "0.6"]),
        ("lora-prune", ["--pattern", "2:4"]),
        ("mask-lora", ["--sparsity", "0.6"]),
        ("scale-lora", ["--pattern", "2:4"]),
    ] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("out");
        let flags = ["--steps", "2", "--batch", "2", "--method", method, "--device", "cuda", "--out", text(&out)];
        let report = retrain(on_a100, &folder, &[&flags[..], &pattern].concat());
        assert_eq!(report["merged"]["matrices"], 13);
        assert_eq!(report["merged"]["zeros_before"], report["merged"]["zeros_after"]);
        assert!(!out.join("adapter").exists());
        let (second, eval) = (folder.path().join("eval.json"), fixture.eval());
        let args = ["eval", "--model", text(&out), "--eval", text(&eval), "--eval-windows", "16"];
        assert_succeeds(&program(&args).args(["--report", text(&second), "--quiet"]).output().unwrap());
        let read_back = json(&second)["perplexity"].as_f64().unwrap();
        assert!((read_back / perplexity(&report, "retrained") - 1.0).abs() <= PERPLEXITY, "{read_back}");
    }
}

/// An adapter that is left inside its weights is read back there, on either device; and a plan knows what it costs.
#[test]
fn an_adapter_inside_weights_is_read_by_a_gpu() {
    let folder = TempDir::new().unwrap();
    let (out, fixture) = (folder.path().join("out"), Fixture::get());
    let on_a100 = |args: &[&str]| on_gpu("a100-40gb", args);
    let flags = ["--steps", "2", "--batch", "2", "--method", "mask-lora", "--sparsity", "0.6", "--merge", "none"];
    let report = retrain(on_a100, &folder, &[&flags[..], &["--device", "cuda", "--out", text(&out)]].concat());
    let (second, eval, adapter) = (folder.path().join("eval.json"), fixture.eval(), out.join("adapter"));
    let args =
        ["eval", "--model", text(&out), "--adapter", text(&adapter), "--eval", text(&eval), "--eval-windows", "16"];
    for mut run in [program(&args), on_a100(&args)] {
        assert_succeeds(&run.args(["--report", text(&second), "--quiet"]).output().unwrap());
        let read_back = json(&second)["perplexity"].as_f64().unwrap();
        assert!((read_back / perplexity(&report, "retrained") - 1.0).abs() <= PERPLEXITY, "{read_back}");
    }
    for method in ["mask-lora", "scale-lora"] {
        let args = ["profile", "--model", "opt-125m", "--method", method, "--gpu", "a100-40gb"];
        let shown = assert_succeeds(&program(&args).output().unwrap());
        assert!(shown.contains("adapted_gradients"), "{shown}");
    }
}

#[test]
fn a_run_on_a_gpu_is_resumed_in_the_same_bits() {
    for flags in [&["--method", "perp", "--sparsity", "0.6"][..], &["--method", "full", "--cycles", "2"]] {
        let folder = TempDir::new().unwrap();
        let (out, kept) = (folder.path().join("out"), folder.path().join("run"));
        let mut args = vec!["--device", "cuda", "--steps", "2", "--batch", "2", "--out", text(&out)];
        args.extend(["--checkpoints", text(&kept), "--save-every", "1", "--keep", "9", "--resume"]);
        args.extend(flags);
        let run = || {
            retrain(|args| on_gpu("a100-40gb", args), &folder, &args);
            let written = std::fs::read(out.join("model.safetensors")).unwrap();
            std::fs::remove_dir_all(&out).unwrap();
            let mut files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            (written, files)
        };
        let (whole, files) = run();
        // Without the one of the end it goes on from the last cycle's first step.
        std::fs::remove_file(files.last().unwrap()).unwrap();
        let (resumed, again) = run();
        assert!(whole == resumed && files == again, "{flags:?}");
    }
}

#[test]
fn a_gpu_prunes_to_the_bytes_that_the_processor_prunes_to() {
    let (folder, model) = (TempDir::new().unwrap(), Fixture::get().model());
    for (i, flags) in [
        &["--sparsity", "0.5"][..],
        &["--pattern", "2:4"],
        &["--pattern", "4:8"],
        &["--sparsity", "0.3", "--criterion", "random"],
    ]
    .into_iter()
    .enumerate()
    {
        let weights = ["cpu", "cuda"].map(|device| {
            let out = folder.path().join(format!("{i}-{device}"));
            let args = [&["prune", "--model", text(&model), "--out", text(&out), "--device", device, "--quiet"], flags]
                .concat();
            assert_succeeds(&on_gpu("a100-40gb", &args).output().unwrap());
            std::fs::read(out.join("model.safetensors")).unwrap()
        });
        assert!(weights[0] == weights[1], "{flags:?}");
    }
}
