//! What is fuzzed: a function of bytes for each parser, which must end in time, within its memory, and without a panic,
//! whatever the bytes. `fuzz_targets` calls them from libFuzzer, and `tools/fuzz.sh` runs them all; as a test of perp-engine this
//! file runs the seeds and some thousand mutations of them. docs/fuzzing.md says how.
//!
//! The program's own files (flags, sweeps, sparsities, reports) are read by its binary, which is no library: its modules stand
//! here under their own names.
#![allow(dead_code, unused_imports, missing_docs)]

mod short;
pub mod targets;

/// The binary's modules. They name each other from the crate's root.
#[path = "../../bin/perp-engine"]
mod program {
    pub mod allocation;
    pub mod args;
    pub mod calibration;
    pub mod checkpoints;
    pub mod command;
    pub mod error;
    pub mod fetch;
    pub mod format;
    pub mod freezing;
    pub mod gemm;
    pub mod graphs;
    pub mod live;
    pub mod page;
    pub mod planned;
    pub mod progress;
    pub mod pruner;
    pub mod report;
    pub mod reports;
    pub mod retrain;
    pub mod run_config;
    pub mod session;
    pub mod settings_file;
    pub mod signals;
    pub mod tables;
    pub mod text;
    pub mod validation;

    /// Of `sweep` what reads its files.
    pub mod sweep {
        pub mod file;
        pub mod grid;
    }
}
use program::*;

/// The short run: this file as a test without a harness.
pub fn main() {
    // What asks for tests by other names.
    if std::env::args().skip(1).any(|argument| argument == "--ignored" || argument == "--list") {
        return;
    }
    short::run(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz"));
}
