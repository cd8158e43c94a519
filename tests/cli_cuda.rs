//! The program on a GPU, which is the virtual one.

mod cli_support;
mod small_models;

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use cli_support::runs::Place;
use cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};
use serde_json::Value;
use tempfile::TempDir;

/// The program where the driver is the virtual GPU's.
fn on_gpu(device: &str, args: &[&str]) -> Command {
    with_gpu(device, program(args))
}

/// A command on a machine with a GPU.
fn with_gpu(device: &str, mut command: Command) -> Command {
    command
        .env("LD_LIBRARY_PATH", virtual_gpu::library_folder())
        .env("VIRTUAL_GPU_DEVICE", device)
        .env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// The same with a cuBLASLt that says that it is of this version.
fn with_cublas(version: &str, args: &[&str]) -> Command {
    let cublas = virtual_gpu::library_folder_of("virtual_cublas", &["libcublasLt.so.12"]);
    let mut command = on_gpu("a100-40gb", args);
    command
        .env("LD_LIBRARY_PATH", std::env::join_paths([virtual_gpu::library_folder(), cublas]).unwrap())
        .env("VIRTUAL_CUBLAS_VERSION", version);
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn perplexity(report: &Value, name: &str) -> f64 {
    report["perplexity"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// Runs `retrain` on the fixture; returns the report.
fn retrain(run: impl Fn(&[&str]) -> Command, folder: &TempDir, flags: &[&str]) -> Value {
    let fixture = Fixture::get();
    let report = folder.path().join("run.json");
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let mut args = vec!["retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval)];
    args.extend(["--report", text(&report), "--accumulate", "1", "--quiet"]);
    args.extend(["--eval-windows", "16", "--lr", "5e-3", "--rank", "4"]);
    args.extend(flags);
    assert_succeeds(&run(&args).output().unwrap());
    json(&report)
}

/// bf16 rounds by up to 1/512; a perplexity is the exponential of a loss near 4.
const PERPLEXITY: f64 = 4.0 / 512.0;

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

#[test]
fn auto_takes_a_gpu_that_there_is_and_says_which_device_it_took() {
    let folder = TempDir::new().unwrap();
    let fixture = Fixture::get();
    let (model, eval, report) = (fixture.model(), fixture.eval(), folder.path().join("eval.json"));
    let args =
        ["eval", "--model", text(&model), "--eval", text(&eval), "--eval-windows", "2", "--report", text(&report)];
    let took = |mut command: Command| {
        let output = command.output().unwrap();
        assert_succeeds(&output);
        (json(&report)["device"].clone(), String::from_utf8(output.stderr).unwrap())
    };
    let (device, said) = took(on_gpu("h100", &args));
    assert_eq!(device, "cuda");
    assert!(said.contains("NVIDIA H100"), "{said}");
    let (device, said) = took(program(&args));
    assert_eq!(device, "cpu");
    assert!(!said.contains("computing on"), "{said}");

    // One that is too old is named, and not used.
    let old = folder.path().join("old.toml");
    let text_of = include_str!("virtual-gpu/src/device/rtx-4090.toml");
    let text_of = text_of.replace("NVIDIA GeForce RTX 4090\"", "NVIDIA T4\"").replace("[8, 9]", "[7, 5]");
    std::fs::write(&old, text_of).unwrap();
    let (device, said) = took(on_gpu(text(&old), &args));
    assert_eq!(device, "cpu");
    assert!(said.contains("NVIDIA T4 has compute capability 7.5"), "{said}");
    let asked = [&args[..], &["--device", "cuda"]].concat();
    assert_fails(&on_gpu(text(&old), &asked).output().unwrap(), 1, &["NVIDIA T4", "8.0", "or the CPU"]);
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
    let fixture = Fixture::get();
    let (model, eval) = (fixture.model(), fixture.eval());
    let args = |device| ["eval", "--model", text(&model), "--eval", text(&eval), "--device", device];
    assert_fails(&on_gpu("a100-40gb", &args("cuda:3")).output().unwrap(), 1, &["GPU 3", "sees 1", "nvidia-smi"]);
    assert_fails(&program(&args("cuda")).output().unwrap(), 1, &["driver", "or use the CPU"]);
    let mut old = on_gpu("a100-40gb", &args("cuda"));
    let output = old.env("VIRTUAL_GPU_DRIVER", "11080").output().unwrap();
    assert_fails(&output, 1, &["supports CUDA 11.8", "need CUDA 12.2", "install driver R535 or newer"]);
    for device in ["gpu", "cuda:", "cuda:x", "cpu:1"] {
        assert_fails(&program(&args(device)).output().unwrap(), 2, &["--device", "cuda:N"]);
    }
}

/// A virtual GPU with so much memory, described in `folder`.
fn gpu_of(folder: &TempDir, bytes: usize) -> String {
    let text_of = include_str!("virtual-gpu/src/device/rtx-4090.toml");
    let memory = text_of.lines().find(|line| line.starts_with("memory_bytes")).unwrap();
    let path = folder.path().join("small.toml");
    std::fs::write(&path, text_of.replace(memory, &format!("memory_bytes = {bytes}"))).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn a_step_that_does_not_fit_the_gpu_is_refused_before_anything_is_loaded() {
    let folder = TempDir::new().unwrap();
    let gpu = gpu_of(&folder, 1 << 20);
    let fixture = Fixture::get();
    let (model, train, out) = (fixture.model(), fixture.train(), folder.path().join("out"));
    let args = ["retrain", "--model", text(&model), "--train", text(&train), "--out", text(&out), "--batch", "64"];
    let output = on_gpu(&gpu, &args).output().unwrap();
    assert_fails(&output, 1, &["does not fit", "1016.00 KiB are available", "short", "it fits with --batch"]);
    assert!(!out.exists());
}

/// OPT-30B's case: 60 GB dense, 34 packed, on a GPU of 40.
#[test]
fn a_model_that_fits_only_pruned_is_retrained_and_its_dense_perplexity_left_out() {
    let mut config = small_models::opt();
    for (field, value) in [("hidden_size", 128), ("ffn_dim", 512), ("num_attention_heads", 2), ("num_hidden_layers", 4)]
    {
        config[field] = value.into();
    }
    (config["word_embed_proj_dim"], config["max_position_embeddings"]) = (128.into(), 32.into());
    let folder = small_models::folder(&config, kernels::DType::F32, 0.02);
    let model = folder.path().join("model");
    let fixture = Fixture::get();
    std::fs::copy(fixture.model().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let (train, eval, report) = (fixture.train(), fixture.eval(), folder.path().join("run.json"));
    let mut args = vec!["retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval)];
    args.extend(["--report", text(&report), "--steps", "1", "--batch", "1", "--accumulate", "1"]);
    args.extend(["--eval-windows", "1", "--sparsity", "0.9", "--rank", "2"]);
    let output = on_gpu(&gpu_of(&folder, 5 << 19), &args).output().unwrap();
    assert_succeeds(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the dense model needs") && said.contains("eval --device cpu"), "{said}");
    let report = json(&report);
    assert!(report["perplexity"]["dense"].is_null() && report["perplexity"]["retrained"].is_number(), "{report}");
}

#[test]
fn offloaded_layers_train_to_the_same_numbers_and_auto_offloads_what_does_not_fit() {
    let folder = TempDir::new().unwrap();
    let losses = |gpu: &str, flags: &[&str]| {
        let flags = [&["--steps", "2", "--batch", "1", "--checkpointing", "on"], flags].concat();
        let report = retrain(|args| on_gpu(gpu, args), &folder, &flags);
        let losses: Vec<f64> =
            report["steps"].as_array().unwrap().iter().map(|s| s["loss"].as_f64().unwrap()).collect();
        let peak = report["peak_bytes"]["total"].as_u64().unwrap();
        (losses, report["config"]["offloaded_layers"].as_u64().unwrap(), peak)
    };
    let (resident, none, peak) = losses("a100-40gb", &[]);
    assert_eq!(none, 0);
    let (offloaded, layers, less) = losses("a100-40gb", &["--offload", "2"]);
    assert_eq!((offloaded, layers), (resident.clone(), 2));
    assert!(less < peak, "{less}, and {peak} with all layers on the GPU");
    let small = gpu_of(&folder, (less + peak) as usize / 2);
    let (offloaded, layers, _) = losses(&small, &["--offload", "auto"]);
    assert_eq!(offloaded, resident);
    assert!(layers > 0);

    let (model, train) = (Fixture::get().model(), Fixture::get().train());
    let args = ["retrain", "--model", text(&model), "--train", text(&train), "--steps", "1"];
    let on_cpu = [&args[..], &["--offload", "1"]].concat();
    assert_fails(&program(&on_cpu).output().unwrap(), 2, &["--offload", "for a GPU"]);
    let full = [&args[..], &["--offload", "auto", "--method", "full"]].concat();
    assert_fails(&on_gpu("a100-40gb", &full).output().unwrap(), 2, &["--offload", "frozen"]);

    // Where it does not fit the hint says what offloading costs, and the run that takes it says the same.
    let args = [&args[..], &["--batch", "1", "--accumulate", "1", "--rank", "4", "--checkpointing", "on"]].concat();
    let refused = on_gpu(&small, &args).output().unwrap();
    assert_fails(&refused, 1, &["does not fit", "--offload auto (", "of host memory, an estimated +", " ms a step)"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    let price = |said: &str, before: &str| -> String {
        let (_, after) = said.split_once(before).unwrap_or_else(|| panic!("no '{before}' in {said}"));
        after.split_once(" ms a step)").unwrap().0.into()
    };
    let (layers, hinted) = (&format!("{layers} layer"), price(&said, "--offload auto ("));
    assert!(hinted.starts_with(layers), "{hinted}");
    let taken = on_gpu(&small, &[&args[..], &["--offload", "auto"]].concat()).output().unwrap();
    assert_succeeds(&taken);
    let told = price(&String::from_utf8(taken.stderr).unwrap(), "and offload of ");
    assert_eq!(hinted.split_once(", ").unwrap().1, told.split_once(" (").unwrap().1);
}

/// The flags of a plan, and what it says.
fn planned(flags: &[(String, String)]) -> String {
    let mut args = vec!["profile"];
    args.extend(flags.iter().flat_map(|(flag, value)| [flag.as_str(), value.as_str()]));
    assert_succeeds(&bare(&args).output().unwrap())
}

/// Flags with those of `remedy` in their places.
fn with_remedy(flags: &[(String, String)], remedy: &str) -> Vec<(String, String)> {
    let (remedy, gone) = match remedy.split_once(" instead of ") {
        Some((remedy, gone)) => (remedy, gone),
        None => (remedy, ""),
    };
    let words: Vec<&str> = remedy.split_whitespace().collect();
    let given: Vec<(String, String)> = words.chunks(2).map(|pair| (pair[0].into(), pair[1].into())).collect();
    let replaced = |flag: &String| flag == gone || given.iter().any(|(other, _)| other == flag);
    flags.iter().filter(|(flag, _)| !replaced(flag)).chain(&given).cloned().collect()
}

#[test]
fn every_remedy_that_a_plan_offers_makes_the_step_fit_when_it_is_taken() {
    let mut offered = std::collections::BTreeSet::new();
    for flags in [
        "--model opt-2.7b --gpu rtx4090 --batch 12 --checkpointing off",
        "--model opt-2.7b --gpu rtx4090 --batch 64 --checkpointing off",
        "--model opt-13b --gpu rtx4090 --batch 32",
        "--model opt-30b --gpu rtx4090",
        "--model opt-30b --gpu rtx4090 --seq-len 1024 --batch 4 --checkpointing off",
        "--model opt-66b --gpu a100-40gb --pattern 2:4",
        "--model opt-66b --gpu a100-40gb --offload 20 --batch 2",
        "--model opt-66b --gpu a100-40gb --offload auto --batch 16",
        "--model opt-6.7b --gpu rtx4090 --method full --batch 4",
    ] {
        let words: Vec<String> = flags.split_whitespace().map(String::from).collect();
        let flags: Vec<(String, String)> = words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let said = planned(&flags);
        let line = said.lines().last().unwrap();
        assert!(line.starts_with("does not fit: "), "{flags:?}: {line}");
        let Some((_, remedies)) = line.split_once("it fits with ") else { continue };
        for remedy in remedies.split(", or ") {
            let (remedy, price) = remedy.split_once(" (").expect("each with what it needs");
            let taken = planned(&with_remedy(&flags, remedy));
            assert!(taken.lines().last().unwrap().starts_with("fits: "), "{flags:?}, {remedy} ({price}: {taken}");
            offered.insert(remedy.split_whitespace().next().unwrap().to_string());
            if remedy == "--offload auto" {
                assert!(price.contains(" layers, ") && price.contains(" of host memory, an estimated +"), "{price}");
                assert!(taken.contains(price.split_once(", ").unwrap().1), "{price} is not what {taken} says");
            }
        }
    }
    let kinds = ["--batch", "--checkpointing", "--offload", "--seq-len", "--sparsity"];
    assert!(offered.iter().eq(kinds.iter()), "{offered:?}");
}

#[test]
fn a_plan_for_the_gpu_that_is_there_takes_its_memory_and_its_clocks() {
    let plan =
        |mut command: Command| -> Value { serde_json::from_str(&assert_succeeds(&command.output().unwrap())).unwrap() };
    let with = |flags: &[&'static str]| [&["profile", "--model", "opt-2.7b", "--json"], flags].concat();
    let here = plan(on_gpu("a100-40gb", &with(&["--device", "cuda:0"])));
    assert_eq!((&here["target"], &here["title"]), (&"cuda:0".into(), &"NVIDIA A100-SXM4-40GB".into()));
    // Nothing else is there; a hundredth and twenty-eighth is left to the driver.
    let memory = 42_405_855_232u64;
    assert_eq!(here["memory_bytes"], memory - memory / 128);
    let sheet = plan(bare(&with(&["--gpu", "a100-40gb"])));
    assert_eq!(here["peak_bytes"], sheet["peak_bytes"]);
    // Clocks make 311.87 TFLOP/s and 1,555.2 GB/s, the data sheet rounds them.
    let seconds = |plan: &Value| plan["estimated_seconds"].as_f64().unwrap();
    assert!((seconds(&here) / seconds(&sheet) - 1.0).abs() < 1e-3, "{} {}", seconds(&here), seconds(&sheet));
    assert_eq!(plan(on_gpu("h100", &with(&["--device", "auto"])))["target"], "cuda");
    for flags in [&[][..], &["--device", "cpu"], &["--device", "auto"]] {
        let on_processor = plan(bare(&with(flags)));
        assert_eq!((&on_processor["target"], &on_processor["estimated_seconds"]), (&"cpu".into(), &Value::Null));
    }

    let folder = TempDir::new().unwrap();
    let args = ["profile", "--model", "opt-125m", "--device", "cuda"];
    let out = assert_succeeds(&on_gpu(&gpu_of(&folder, 64 << 20), &args).output().unwrap());
    assert!(out.contains("on NVIDIA GeForce RTX 4090") && out.contains("does not fit: "), "{out}");
    assert!(out.contains("of 63.50 MiB"), "{out}");
    assert_fails(&program(&args).output().unwrap(), 1, &["no NVIDIA driver found", "or use the CPU"]);
    let both = [&args[..], &["--gpu", "h100"]].concat();
    assert_fails(&program(&both).output().unwrap(), 2, &["--device", "--gpu", "cannot be used with"]);
}

/// Steps as graphs in each of two cycles, with validation between them and what a checkpoint holds: all that is written is the same.
#[test]
fn cuda_graphs_change_no_bit_of_a_run_and_a_sweep_takes_both() {
    let folder = TempDir::new().unwrap();
    let flags = ["--cycles", "2", "--steps", "6", "--batch", "1", "--sparsity", "0.6", "--eval-every", "3"];
    let [on, off] = ["on", "off"].map(|graphs| {
        let (out, kept) = (folder.path().join(graphs), folder.path().join(format!("{graphs}-kept")));
        let also = ["--validation-windows", "2", "--eval-windows", "2", "--cuda-graphs", graphs, "--out", text(&out)];
        let (model, train, eval) = (Fixture::get().model(), Fixture::get().train(), Fixture::get().eval());
        let mut args = vec!["retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval)];
        args.extend(["--device", "cuda", "--accumulate", "2", "--checkpoints", text(&kept), "--save-every", "4"]);
        let output = on_gpu("a100-40gb", &[&args[..], &flags, &also].concat()).output().unwrap();
        assert_succeeds(&output);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("as one CUDA graph needs"), graphs == "on", "{said}");
        assert!(!said.contains("no CUDA graphs"), "{said}");
        ["model.safetensors", "adapter/adapter_model.safetensors"].map(|file| std::fs::read(out.join(file)).unwrap())
    });
    assert!(on == off);

    let (model, train) = (Fixture::get().model(), Fixture::get().train());
    let (file, out) = (folder.path().join("sweep.toml"), folder.path().join("sweep"));
    let run = format!(
        "[run]\nmodel = {:?}\ntrain = {:?}\nsteps = 6\nbatch = 1\naccumulate = 1\ndevice = \"cuda\"\n\
         [grid]\ncuda-graphs = [\"on\", \"off\"]\nfreeze = [\"input\", \"output\"]\n",
        text(&model),
        text(&train)
    );
    std::fs::write(&file, run).unwrap();
    let sweep = bare(&["sweep", text(&file), "--out", text(&out), "--quiet"]);
    assert_succeeds(&with_gpu("a100-40gb", sweep).output().unwrap());
    let mut losses: Vec<Vec<u64>> = std::fs::read_dir(out.join("runs"))
        .unwrap()
        .map(|entry| {
            let steps = json(&entry.unwrap().path())["steps"].as_array().unwrap().clone();
            steps.iter().map(|step| step["loss"].as_f64().unwrap().to_bits()).collect()
        })
        .collect();
    losses.sort();
    assert_eq!(losses.len(), 4);
    assert!(losses[0] == losses[1] && losses[2] == losses[3] && losses[1] != losses[2], "{losses:?}");
}

/// A graph's places take a little more than its buffers: where that little is not there, steps go on without, or it is an error.
#[test]
fn cuda_graphs_without_room_or_gpu_are_told_before_anything_is_loaded() {
    let folder = TempDir::new().unwrap();
    let plain = retrain(
        |args| on_gpu("a100-40gb", args),
        &folder,
        &["--steps", "2", "--batch", "1", "--device", "cuda", "--cuda-graphs", "off"],
    );
    let budget = plain["peak_bytes"]["total"].as_u64().unwrap().to_string();
    let (model, train) = (Fixture::get().model(), Fixture::get().train());
    let args = ["retrain", "--model", text(&model), "--train", text(&train), "--steps", "2", "--batch", "1"];
    let on_cpu = [&args[..], &["--cuda-graphs", "on", "--device", "cpu"]].concat();
    let args = [&args[..], &["--accumulate", "1", "--rank", "4", "--memory-budget", &budget, "--cycles", "2"]].concat();
    let with = |graphs| on_gpu("a100-40gb", &[&args[..], &["--cuda-graphs", graphs]].concat()).output().unwrap();
    let output = with("auto");
    assert_succeeds(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("no CUDA graphs: a step as one needs").count(), 1, "{said}");
    assert_fails(&with("on"), 1, &["--cuda-graphs on: a step as one graph needs", "use --cuda-graphs auto"]);
    assert_fails(&program(&on_cpu).output().unwrap(), 2, &["--cuda-graphs on", "use --cuda-graphs auto"]);
}

#[test]
fn bench_times_the_kernels_of_a_step_and_products_on_the_gpu() {
    let folder = TempDir::new().unwrap();
    let (model, report) = (Fixture::get().model(), folder.path().join("bench.json"));
    let args = [
        "bench",
        "--model",
        text(&model),
        "--seq-len",
        "32",
        "--steps",
        "1",
        "--device",
        "cuda",
        "--report",
        text(&report),
    ];
    let out = assert_succeeds(&on_gpu("a100-40gb", &args).output().unwrap());
    assert!(out.contains("NVIDIA A100-SXM4-40GB: 311869 GFLOP/s in 16 bits, 1555 GB/s"), "{out}");
    let kernels = json(&report)["kernels"].as_array().unwrap().clone();
    let seconds = |name: &str| kernels.iter().find(|k| k["kernel"] == name).map(|k| k["seconds"].as_f64().unwrap());
    for name in ["linear_forward", "attention_backward", "head_loss_and_gradients", "adamw"] {
        assert!(seconds(name) > Some(0.0), "{name}: {:?}", seconds(name));
    }
    let out = assert_succeeds(&on_gpu("a100-40gb", &[&args[..], &["--products"]].concat()).output().unwrap());
    assert!(out.contains("4:8") && out.contains("backward"), "{out}");
}

/// As where the driver stops a kernel that runs too long, or the bus loses the GPU: nothing more can be computed.
#[test]
fn a_gpu_that_stops_in_mid_run_is_told_and_leaves_nothing_half_written() {
    let folder = TempDir::new().unwrap();
    let fixture = Fixture::get();
    let (model, train) = (fixture.model(), fixture.train());
    let (out, report) = (folder.path().join("out"), folder.path().join("run.json"));
    std::fs::write(&report, "an earlier report").unwrap();
    let args =
        ["retrain", "--model", text(&model), "--train", text(&train), "--out", text(&out), "--report", text(&report)];
    let mut run = on_gpu("a100-40gb", &args);
    let output = run.env("VIRTUAL_GPU_LIMIT", "3000").output().unwrap();
    assert_fails(
        &output,
        1,
        &["the GPU stopped", "CUDA_ERROR_LAUNCH_TIMEOUT", "start the program again", "nvidia-smi"],
    );
    assert!(!out.exists());
    assert_eq!(std::fs::read_to_string(&report).unwrap(), "an earlier report");
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 1, "files left behind");
}

/// `retrain` of a place with checkpoints, where the driver is the virtual GPU's; `variable` is one more of its switches.
fn retrain_in(place: &Place, flags: &[&str], variable: (&str, &str)) -> Output {
    let short = ["--device", "cuda", "--steps", "6", "--batch", "1", "--accumulate", "1", "--eval-windows", "1"];
    let mut command = place.kept(&[&short[..], &["--save-every", "1", "--keep", "99"], flags].concat());
    command
        .env("LD_LIBRARY_PATH", virtual_gpu::library_folder())
        .env("VIRTUAL_GPU_DEVICE", "a100-40gb")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env(variable.0, variable.1);
    command.output().unwrap()
}

/// As where the GPU falls off the bus: every call fails from then on. Launch by launch, and in the middle of a graph.
#[test]
fn a_gpu_that_is_lost_in_mid_run_leaves_a_checkpoint_from_which_it_ends_in_the_same_bits() {
    for graphs in ["off", "on"] {
        let flags = ["--cuda-graphs", graphs];
        let whole = Place::new();
        let counted = whole.path("launches.jsonl");
        assert_succeeds(&retrain_in(&whole, &flags, ("VIRTUAL_GPU_REPORT", text(&counted))));
        let expected = whole.result();
        let lines = virtual_gpu::report::read(&counted).unwrap();
        let launches = lines.iter().filter(|line| line.get("launch").is_some()).count();

        let place = Place::new();
        // Behind the pruning, and before the last step is over.
        let fail = format!("launch:{}=999", launches * 3 / 4);
        let output = retrain_in(&place, &flags, ("VIRTUAL_GPU_FAIL", &fail));
        let parts = ["the GPU stopped (CUDA_ERROR_UNKNOWN", "start the program again from its last checkpoint"];
        assert_fails(&output, 1, &parts);
        let newest = place.files()[0].file_stem().unwrap().to_str().unwrap().to_string();
        let step: usize = newest.strip_prefix("step-").unwrap().parse().unwrap();
        assert!((2..6).contains(&step), "{graphs}: {newest} at launch {fail} of {launches}");
        assert!(!place.path("out").exists() && !place.path("run.json").exists());

        let output = retrain_in(&place, &[&flags[..], &["--resume"]].concat(), ("VIRTUAL_GPU_FAIL", ""));
        assert_succeeds(&output);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("goes on after step {step} of cycle")) && !said.contains("warning"), "{said}");
        assert!(place.result() == expected, "{graphs}: other bits after {newest}");
    }
}

#[test]
fn a_driver_that_does_not_start_and_a_gpu_that_takes_no_program_are_told_with_what_helps() {
    let (model, eval) = (Fixture::get().model(), Fixture::get().eval());
    let args = ["eval", "--model", text(&model), "--eval", text(&eval), "--eval-windows", "2"];
    let run = |fail: &str, device| {
        let mut command = on_gpu("a100-40gb", &[&args[..], &["--device", device]].concat());
        command.env("VIRTUAL_GPU_FAIL", fail).output().unwrap()
    };
    for (fail, parts) in [
        ("cuInit=999", ["the NVIDIA driver does not start (cuInit: CUDA_ERROR_UNKNOWN", "nvidia-modprobe -u"]),
        ("cuInit=803", ["(cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "reboot, or install the driver anew"]),
        ("cuInit=802", ["(cuInit: CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager"]),
        ("cuInit=34", ["(cuInit: CUDA_ERROR_STUB_LIBRARY", "LD_LIBRARY_PATH"]),
        ("cuInit=3", ["(cuInit: CUDA_ERROR_NOT_INITIALIZED", "nvidia-smi"]),
        ("cuDevicePrimaryCtxRetain=46", ["GPU 0 takes no further program (CUDA_ERROR_DEVICE_UNAVAILABLE", "exclusive"]),
        ("cuDevicePrimaryCtxRetain=2", ["cuDevicePrimaryCtxRetain: out of memory", "other programs have"]),
    ] {
        let output = run(fail, "cuda");
        assert_fails(&output, 1, &parts);
        assert_fails(&output, 1, &["use the CPU"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("the GPU stopped"), "{fail}: {said}");
        // Where no GPU was asked for there is the processor, and why not the other is told.
        let output = run(fail, "auto");
        assert_succeeds(&output);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("computing on the processor: ") && said.contains(parts[1]), "{fail}: {said}");
    }
}

#[test]
fn memory_that_the_driver_has_not_got_is_told_with_what_needs_less() {
    let folder = TempDir::new().unwrap();
    let (model, train, out) = (Fixture::get().model(), Fixture::get().train(), folder.path().join("out"));
    let args = ["retrain", "--model", text(&model), "--train", text(&train), "--out", text(&out), "--steps", "2"];
    let args = [&args[..], &["--batch", "1", "--accumulate", "1", "--device", "cuda"]].concat();
    let run = |fail: &str, flags: &[&str]| {
        on_gpu("a100-40gb", &[&args[..], flags].concat()).env("VIRTUAL_GPU_FAIL", fail).output().unwrap()
    };
    // Two pieces of pinned memory are for copies, the third is the first weight that is offloaded.
    for (fail, flags, parts) in [
        ("cuMemHostAlloc:3=2", ["--offload", "1"], ["cuMemHostAlloc: out of memory; the host", "offload fewer layers"]),
        ("cuModuleLoadDataEx=2", ["--offload", "off"], ["cuModuleLoadDataEx: out of memory, ", "--offload auto"]),
        (
            "cuGraphInstantiateWithFlags=2",
            ["--cuda-graphs", "on"],
            ["cuGraphInstantiate: out of memory, ", "--cuda-graphs off needs less"],
        ),
    ] {
        let output = run(fail, &flags);
        assert_fails(&output, 1, &parts);
        let of_gpu =
            fail.starts_with("cuMemHostAlloc") || String::from_utf8_lossy(&output.stderr).contains("bytes are free");
        assert!(of_gpu, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!out.exists(), "{fail}");
    }
    let output = run("cuGraphInstantiateWithFlags=2", &[]);
    assert_succeeds(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no CUDA graphs: ") && said.contains("cuGraphInstantiate: out of memory"), "{said}");
}

/// A step of two tokens needs less than pruning a whole matrix does, which is not planned.
#[test]
fn a_gpu_that_runs_out_behind_the_check_says_so_and_leaves_nothing() {
    let mut config = small_models::opt();
    for (field, value) in [("hidden_size", 128), ("ffn_dim", 512), ("num_attention_heads", 2), ("num_hidden_layers", 4)]
    {
        config[field] = value.into();
    }
    (config["word_embed_proj_dim"], config["max_position_embeddings"]) = (128.into(), 32.into());
    let folder = small_models::folder(&config, kernels::DType::F32, 0.02);
    let model = folder.path().join("model");
    std::fs::copy(Fixture::get().model().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let step = ["--batch", "1", "--accumulate", "1", "--seq-len", "2", "--sparsity", "0.9", "--rank", "2"];
    let plan = ["profile", "--model", text(&model), "--dtype", "f32", "--device", "cuda", "--json"];
    let plan = assert_succeeds(&on_gpu("a100-40gb", &[&plan[..], &step].concat()).output().unwrap());
    let needed = serde_json::from_str::<Value>(&plan).unwrap()["peak_bytes"]["total"].as_u64().unwrap();
    // A check leaves a hundredth and twenty-eighth.
    let gpu = gpu_of(&folder, (needed + needed / 100) as usize);
    let (train, out) = (Fixture::get().train(), folder.path().join("out"));
    let args = ["retrain", "--model", text(&model), "--train", text(&train), "--out", text(&out), "--steps", "1"];
    let output = on_gpu(&gpu, &[&args[..], &step].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("a step of 1×2 tokens") && !said.contains("does not fit"), "{said}");
    assert_fails(&output, 1, &["out of memory: ", "bytes in use"]);
    assert!(!out.exists());
}

#[test]
fn dense_products_are_the_librarys_where_it_is_asked_for_and_found() {
    let folder = TempDir::new().unwrap();
    let run = |gemm: &'static str, device: &'static str| {
        let flags = ["--method", "full", "--steps", "2", "--batch", "2", "--device", device, "--gemm", gemm];
        retrain(|args| with_cublas("120205", args), &folder, &flags)
    };
    let [own, auto, cublas] = ["own", "auto", "cublas"].map(|gemm| run(gemm, "cuda"));
    assert_eq!(own["library"], Value::Null);
    assert_eq!(auto["library"], "cuBLASLt 12.2.5 for products of weights that train");
    assert_eq!(cublas["library"], "cuBLASLt 12.2.5 for dense products");
    for with in [&auto, &cublas] {
        let (got, want) = (perplexity(with, "retrained"), perplexity(&own, "retrained"));
        assert!((got / want - 1.0).abs() <= PERPLEXITY, "{got}, not {want}");
        assert!(with["peak_bytes"]["by_category"]["workspace"].as_u64() >= Some(32 << 20), "accounted");
    }
    assert_ne!(auto["steps"][1]["loss"], own["steps"][1]["loss"], "its sums have another order");
}

#[test]
fn a_library_that_is_missing_too_old_or_of_no_use_is_told_in_one_line() {
    let (model, eval) = (Fixture::get().model(), Fixture::get().eval());
    let args = ["eval", "--model", text(&model), "--eval", text(&eval), "--gemm", "cublas"];
    let without = on_gpu("a100-40gb", &args).output().unwrap();
    assert_fails(&without, 1, &["no cuBLASLt found (looked for libcublasLt.so, ", "or take --gemm own"]);
    let old = with_cublas("110502", &args).output().unwrap();
    assert_fails(&old, 1, &["cuBLASLt 11.5.2 found, 12.0 or newer is needed"]);
    let on_cpu = with_cublas("120205", &[&args[..], &["--device", "cpu"]].concat()).output().unwrap();
    assert_fails(&on_cpu, 2, &["--gemm cublas multiplies on a GPU"]);
    // Without being asked for it is no error to be without.
    let auto = with_cublas("110502", &[&args[..6], &["auto", "--eval-windows", "2"]].concat()).output().unwrap();
    assert_succeeds(&auto);
}
