//! The tests of this program on the virtual GPU.

use std::path::Path;

fn run(filter: &[&str], report: &str) {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(report);
    let cublas = virtual_gpu::library_folder_of("virtual_cublas", &["libcublasLt.so.12"]);
    virtual_gpu::rerun::ignored_tests(filter, "a100-40gb", &report, &[cublas]);
}

#[test]
fn every_test_of_a_gpu_passes_on_a_virtual_a100() {
    run(&["gpu_"], "cuda.jsonl");
}

#[test]
fn a_driver_gives_what_is_accounted_and_no_more() {
    run(&["the_driver_gives_what_is_accounted"], "cuda-driver.jsonl");
}

#[test]
fn the_host_waits_for_nothing_within_a_step() {
    run(&["graphs::the_host_waits_for_nothing_within_a_step"], "cuda-calls.jsonl");
}
