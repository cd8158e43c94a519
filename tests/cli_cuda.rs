//! The program on a GPU, which is the virtual one.

mod cli_support;
mod small_models;

use std::path::Path;

use assert_cmd::Command;
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
