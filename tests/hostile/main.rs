//! Bad input, as a table: what it is, how it is made, what is said about it, and the exit code (2 for usage, 1 for failure).
//!
//! Each case gets a folder of its own with a small model (`model`), an adapter (`adapter`), checkpoints of a finished run
//! (`run`) and text, spoils one thing in it, and runs the program there. Whatever the input: one line on standard error that
//! begins with "error: ", no panic, nothing written or altered, and no more memory than `case` grants.
#![cfg(unix)]

mod adapters;
mod case;
mod checkpoints;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod configurations;
mod flags;
mod folder;
mod formats;
mod packed;
mod run_toml;
mod settings;
mod texts;
mod tokenizers;
mod weights;

use case::Case;

fn check(cases: Vec<Case>) {
    let failures: Vec<String> = cases.iter().filter_map(|case| case.run().err()).collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn weight_files() {
    check(weights::files());
}

#[test]
fn tensors_and_models() {
    check(weights::tensors());
}

#[test]
fn packed_weight_files() {
    check(formats::files());
    check(formats::models());
}

#[test]
fn indices() {
    check(weights::indices());
}

#[test]
fn configurations() {
    check(configurations::cases());
}

#[test]
fn tokenizers() {
    check(tokenizers::cases());
}

#[test]
fn texts() {
    check(texts::cases());
}

#[test]
fn packed_texts() {
    check(packed::cases());
}

#[test]
fn adapters() {
    check(adapters::cases());
    check(adapters::merging());
    check(adapters::starting());
}

#[test]
fn checkpoints() {
    check(checkpoints::cases());
}

#[test]
fn run_toml() {
    check(run_toml::cases());
}

#[test]
fn sweeps_sparsities_and_reports() {
    check(settings::sweeps());
    check(settings::sparsities());
    check(settings::reports());
}

#[test]
fn flags() {
    check(flags::numbers());
    check(flags::others());
}

#[test]
fn the_table_is_as_long_as_it_should_be_and_no_case_stands_twice() {
    let all = [
        weights::files(),
        weights::tensors(),
        weights::indices(),
        formats::files(),
        formats::models(),
        configurations::cases(),
        tokenizers::cases(),
        texts::cases(),
        packed::cases(),
        adapters::cases(),
        adapters::merging(),
        adapters::starting(),
        checkpoints::cases(),
        run_toml::cases(),
        settings::sweeps(),
        settings::sparsities(),
        settings::reports(),
        flags::numbers(),
        flags::others(),
    ];
    for cases in &all {
        let mut titles = std::collections::HashSet::new();
        cases.iter().for_each(|case| assert!(titles.insert(case.title()), "{} stands twice", case.title()));
    }
    let count = all.iter().flatten().count();
    println!("{count} cases");
    assert!(count >= 150);
}

/// The folder without a fault is no error, or the table would prove nothing.
#[test]
fn what_is_not_spoilt_works() {
    for command in
        [case::INSPECT, case::EVAL, case::ADAPTED, case::MERGE, case::PRUNE, case::RETRAIN, case::RESUME, case::PROFILE]
    {
        case::Case::new(command, "nothing", Vec::new(), "", 0).succeeds();
    }
}
