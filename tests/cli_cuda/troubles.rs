//! GPUs and drivers that stop, get lost or do not start.

use std::process::Output;

use tempfile::TempDir;

use crate::cli_support::runs::Place;
use crate::cli_support::{Fixture, assert_fails, assert_succeeds, text};
use crate::on_gpu;

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
