//! Which device is taken, and what is said of it.

use assert_cmd::Command;
use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use crate::{json, on_gpu};

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
    let text_of = include_str!("../virtual-gpu/src/device/rtx-4090.toml");
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
