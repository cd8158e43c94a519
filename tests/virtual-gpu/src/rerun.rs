//! Tests of a GPU in a process of their own: a process looks for `libcuda.so` once.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs this program's ignored tests that `filter` picks on a virtual GPU, which is `device`: a name or a description's file.
/// What it counts goes to `report`, one line of JSON a launch. Other libraries are found in the folders `libraries`.
///
/// # Panics
/// If one of the tests fails, with all that they said; or if there is none.
pub fn ignored_tests(filter: &[&str], device: &str, report: &Path, libraries: &[PathBuf]) {
    // What an earlier run left there would be read as this one's.
    let _ = std::fs::remove_file(report);
    let folders = std::iter::once(crate::library_folder()).chain(libraries.iter().cloned());
    let path = std::env::join_paths(folders).expect("folders without a colon");
    let program = std::env::current_exe().expect("a program knows its own file");
    let output = Command::new(program)
        .args(["--ignored", "--test-threads=2"])
        .args(filter)
        .env("LD_LIBRARY_PATH", path)
        .env("VIRTUAL_GPU_DEVICE", device)
        .env("VIRTUAL_GPU_REPORT", report)
        .output()
        .expect("a program can start itself");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{filter:?} fails on the virtual GPU:\n{stdout}\n{stderr}");
    assert!(!stdout.contains(" 0 passed"), "{filter:?} picks no test");
}
