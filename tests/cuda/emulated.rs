//! The tests of this program on the virtual GPU.

use std::path::Path;

#[test]
fn every_test_of_a_gpu_passes_on_a_virtual_a100() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda.jsonl");
    virtual_gpu::rerun::ignored_tests(&["gpu_"], "a100-40gb", &report);
}

#[test]
fn a_driver_gives_what_is_accounted_and_no_more() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-driver.jsonl");
    virtual_gpu::rerun::ignored_tests(&["the_driver_gives_what_is_accounted"], "a100-40gb", &report);
}
