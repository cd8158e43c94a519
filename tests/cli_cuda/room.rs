//! What fits the GPU, and what is said and done where something does not.

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};
use crate::{gpu_of, json, on_gpu, retrain, small_models};

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

/// A folder with `model`, whose matrices are what it takes of memory.
fn four_layers() -> TempDir {
    let mut config = small_models::opt();
    for (field, value) in [("hidden_size", 128), ("ffn_dim", 512), ("num_attention_heads", 2), ("num_hidden_layers", 4)]
    {
        config[field] = value.into();
    }
    (config["word_embed_proj_dim"], config["max_position_embeddings"]) = (128.into(), 32.into());
    let folder = small_models::folder(&config, kernels::DType::F32, 0.02);
    let tokenizer = Fixture::get().model().join("tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("model/tokenizer.json")).unwrap();
    folder
}

/// OPT-30B's case: 60 GB dense, 34 packed, on a GPU of 40.
#[test]
fn a_model_that_fits_only_pruned_is_retrained_and_its_dense_perplexity_left_out() {
    let folder = four_layers();
    let model = folder.path().join("model");
    let fixture = Fixture::get();
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
    let folder = four_layers();
    let model = folder.path().join("model");
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
