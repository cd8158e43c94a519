//! Programs against the driver, through cudarc, as the engine's own device finds it.
//!
//! A process looks for `libcuda.so` once, so the tests below start this program again with the virtual GPU on the
//! library path: the ignored tests are those programs.

mod programs;

use std::path::Path;
use std::process::{Command, Output};

/// Runs the ignored tests that `filter` picks in a process of its own.
fn run(filter: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--test-threads=1", "--nocapture"])
        .args(filter)
        .env("LD_LIBRARY_PATH", virtual_gpu::library_folder())
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// The same, where it must succeed; gives stdout and stderr.
fn succeed(filter: &[&str], variables: &[(&str, &str)]) -> (String, String) {
    let output = run(filter, variables);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{filter:?} fails:\n{stdout}\n{stderr}");
    assert!(!stdout.contains(" 0 passed"), "{filter:?} picks no test");
    (stdout.into_owned(), stderr.into_owned())
}

/// Runs one program and gives what it left on stderr.
fn complaints(program: &str) -> String {
    succeed(&["--exact", &format!("programs::faults::{program}")], &[]).1
}

#[test]
fn programs_that_are_right_run() {
    let (_, stderr) = succeed(&["programs::right"], &[]);
    assert!(!stderr.contains("virtual GPU:"), "{stderr}");
}

#[test]
fn every_kind_of_call_answers_as_cudas_does() {
    let (_, stderr) = succeed(&["programs::calls"], &[]);
    for absent in ["cuTexObjectCreate: a texture is not supported", "cuArrayCreate_v2: an array is not supported"] {
        assert!(stderr.contains(absent), "{absent}: {stderr}");
    }
}

#[test]
fn graphs_run_what_they_captured_or_were_given() {
    let (_, stderr) = succeed(&["programs::graphs"], &[]);
    assert!(!stderr.contains("virtual GPU:"), "{stderr}");
}

#[test]
fn the_environment_chooses_the_devices() {
    succeed(&["--exact", "programs::devices::two_of_them"], &[("VIRTUAL_GPU_DEVICE", "rtx-4090,h100")]);
    succeed(&["--exact", "programs::devices::none"], &[("VIRTUAL_GPU_DEVICE", "voodoo-2")]);
}

#[test]
fn a_fault_names_kernel_thread_and_line_and_loses_the_context() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault.jsonl");
    let _ = std::fs::remove_file(&report);
    let variables = [("VIRTUAL_GPU_REPORT", report.to_str().unwrap())];
    let (_, stderr) = succeed(&["--exact", "programs::faults::out_of_bounds"], &variables);
    assert!(stderr.contains("kernel scale") && stderr.contains("thread (64,0,0)"), "{stderr}");
    assert!(stderr.contains("st.global.f32") || stderr.contains("ld.global.f32"), "{stderr}");
    let lines = virtual_gpu::report::read(&report).unwrap();
    assert_eq!(lines[0]["launch"]["kernel"], "scale");
    assert_eq!(lines[0]["launch"]["counters"]["global_load"]["requests"], 2, "{}", lines[0]);
    assert_eq!(lines[1]["failure"]["status"], "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(lines[1]["failure"]["fault"]["kind"], "out_of_bounds");
    assert_eq!(lines.len(), 2);
}

#[test]
fn missing_synchronisation_is_an_error_that_names_both_sides() {
    for program in ["unordered_kernels", "unordered_host_copy", "copy_before_the_kernel_on_another_stream"] {
        let stderr = complaints(program);
        assert!(stderr.contains("missing synchronisation"), "{program}: {stderr}");
        assert!(stderr.contains("kernel scale on stream 0x"), "{program}: {stderr}");
        assert!(stderr.contains("allocation 0x"), "{program}: {stderr}");
    }
    let stderr = complaints("default_streams_of_two_threads");
    let kernels = stderr.matches("kernel scale on a thread's own default stream (number ").count();
    assert_eq!(kernels, 2, "{stderr}");
    let stderr = complaints("a_threads_default_stream_beside_a_stream_that_does_not_block");
    assert!(
        stderr.contains("on a thread's own default stream") && stderr.contains("kernel scale on stream 0x"),
        "{stderr}"
    );
    let stderr = complaints("branches_of_a_graph");
    assert_eq!(stderr.matches("kernel scale of a graph on stream 0x").count(), 2, "{stderr}");
    assert!(stderr.contains("4 bytes of allocation") && stderr.contains("from byte 124"), "{stderr}");
    let stderr = complaints("free_while_used");
    assert!(stderr.contains("free (cuMemFree)") && stderr.contains("kernel scale on stream 0x"), "{stderr}");
    let stderr = complaints("part_of_a_pinned_page_written_too_early");
    let both = ["the host wrote page-locked memory while", "copy from host to device on stream 0x"];
    assert!(both.iter().all(|side| stderr.contains(side)), "{stderr}");
    for (program, host, copy) in [
        ("pinned_buffer_written_too_early", "writes byte 0 of the 256", "which copy from host to device on stream 0x"),
        ("pinned_buffer_read_too_early", "reads byte 4800 of the 6000", "which copy from device to host on stream 0x"),
        (
            "pinned_buffer_read_after_another_stream_was_waited_for",
            "reads byte 0 of the 256",
            "which copy from device to host on stream 0x",
        ),
    ] {
        let stderr = complaints(program);
        let both = ["missing synchronisation: host thread ", host, copy];
        assert!(both.iter().all(|side| stderr.contains(side)), "{program}: {stderr}");
    }
}

#[test]
fn faults_of_the_program_itself_stay_its_own() {
    let output = run(&["--exact", "programs::faults::wild_pointer"], &[]);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGSEGV));
}

#[test]
fn what_nothing_wrote_is_not_copied_to_the_host() {
    assert!(complaints("uninitialised_copy").contains("nothing has written byte 0"));
}
