//! Steps as CUDA graphs, and what is timed.

use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};
use crate::{json, on_gpu, retrain, with_gpu};

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
