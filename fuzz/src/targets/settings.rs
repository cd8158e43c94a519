//! The program's own files: flags, sweeps, sparsities of layers, reports of runs.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use engine::prune::Matrix;

use super::bounded::within;
use super::scratch;
use crate::page::{self, RunData};
use crate::sweep::file::Sweep;
use crate::sweep::grid::Setup;
use crate::{allocation, args, error, retrain, run_config};

const MEMORY: usize = 64 << 20;

/// Flags of `retrain` from a file.
pub fn run_toml(bytes: &[u8]) {
    let path = scratch::file("run.toml", bytes);
    let cli = || Command::new("perp-engine").subcommand(retrain::Args::augment_args(Command::new("retrain")));
    let arguments = ["perp-engine", "retrain", "--config"].map(OsString::from);
    within(MEMORY, || {
        let arguments = arguments.into_iter().chain([path.into()]).collect();
        let Ok(arguments) = run_config::expand(arguments, &cli()) else { return };
        let Ok(matches) = cli().mut_subcommands(args::with_minus).try_get_matches_from(arguments) else { return };
        let (_, retraining) = matches.subcommand().expect("it was named");
        let _ = retrain::Args::from_arg_matches(retraining);
    });
}

/// A sweep, and its runs.
pub fn sweep_toml(bytes: &[u8]) {
    let path = scratch::file("sweep.toml", bytes);
    within(MEMORY, || {
        let Ok(sweep) = Sweep::read(&path, &[]) else { return };
        let _ = sweep.runs(Setup { out: Path::new("out"), quiet: true, save_every: Some(1) });
    });
}

/// Sparsities of layers and matrices, as JSON and as TOML.
pub fn allocation(bytes: &[u8]) {
    let matrix = |(layer, role): (usize, &str)| Matrix { name: format!("layers.{layer}.{role}"), layer, entries: 64 };
    let matrices: Vec<Matrix> = [(0, "q"), (0, "fc1"), (1, "q"), (1, "fc1")].map(matrix).into();
    for name in ["sparsities.json", "sparsities.toml"] {
        let path = scratch::file(name, bytes);
        within(MEMORY, || {
            if let Ok(allocation) = allocation::file::read(&path, &matrices) {
                assert!((0.0..1.0).contains(&allocation.mean(&matrices, f64::NAN)));
            }
        });
    }
}

/// A run's report, and the pages that are made of it. What it says stands in them as text.
pub fn report(bytes: &[u8]) {
    let path = scratch::file("run.json", bytes);
    within(4 * MEMORY, || {
        let run = match RunData::read(&path) {
            Ok(run) => run,
            Err(failure) => return assert!(!error::one_line(&failure.to_string()).contains('\n')),
        };
        let html = page::run(&run);
        assert!(!html.contains("<fuzz"), "what a report says is markup");
        let comparison = page::comparison("two", &[("a".into(), run.clone()), ("b".into(), run)]);
        assert!(!comparison.html.contains("<fuzz"), "what a report says is markup");
    });
}
