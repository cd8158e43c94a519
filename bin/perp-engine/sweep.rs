//! `sweep`: the runs of a grid, one after the other in one process, and a page that compares them.

mod claim;
mod file;
mod grid;

use std::path::{Path, PathBuf};

use crate::args::positive;
use crate::error::{Failure, print};
use crate::page::RunData;
use crate::progress::Console;
use crate::report;
use crate::reports;
use crate::retrain::{self, Shared};
use crate::signals;
use claim::Claim;
use file::Sweep;
use grid::{Planned, Setup};

/// Run every combination of a grid of retrain's flags, and compare them on one page. Runs that agree in them share the dense
/// perplexity, the pruned model and its perplexities. What is done is not done again: the same command goes on where it stopped, and
/// given several times at once, say with a GPU each, shares the runs out.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The sweep: a .toml file with the sections [run] (flags of retrain that all runs have) and [grid] (flags with lists of
    /// values; [[grid]] for several grids). With eval-every the best learning rate on the validation text stands for the others.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder for the reports of the runs (runs/*.json) and for comparison.html, .md and .json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep checkpoints of the run that goes on, so many steps apart: a sweep that is stopped then goes on inside that run, not
    /// at its beginning.
    #[arg(long, value_parser = positive, value_name = "N")]
    save_every: Option<usize>,
    /// List the runs as commands, and run none.
    #[arg(long)]
    dry_run: bool,
    /// Say nothing but the result and warnings.
    #[arg(long)]
    quiet: bool,
    /// Flags of retrain that replace the file's; of a flag that takes one value, several are an axis of the grid.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let console = Console::new(args.quiet);
    let sweep = Sweep::read(&args.file, &args.flags)?;
    let runs = sweep.runs(Setup { out: &args.out, quiet: args.quiet, save_every: args.save_every })?;
    if args.dry_run {
        return print(&runs.iter().map(|run| format!("{}\n", run.command)).collect::<String>());
    }
    std::fs::create_dir_all(grid::folder(&args.out))
        .map_err(|e| Failure::failed(format!("--out {}: cannot be made: {e}", args.out.display())))?;
    let failed = run_all(&console, &args.out, &runs)?;
    let done: Vec<(String, RunData)> = runs
        .iter()
        .filter(|run| run.report.exists())
        .map(|run| Ok((run.name.clone(), RunData::read(&run.report)?)))
        .collect::<Result<_, Failure>>()?;
    if !done.is_empty() {
        print(&reports::write_all(&args.out.join("comparison"), &sweep.title, &done)?)?;
        console.say(&format!("wrote {}", args.out.join("comparison.html").display()));
    }
    match failed.first() {
        None => Ok(()),
        Some((name, why)) => Err(Failure::failed(format!(
            "{} of {} runs failed, and are tried again by the same command; the first, {name}: {why}",
            failed.len(),
            runs.len()
        ))),
    }
}

/// Runs what has no report yet. A run that fails, say because it diverges at a high learning rate or its model has nothing
/// that the method trains, does not stop the others; returns its name and why. What another process is at is left to it.
fn run_all(console: &Console, out: &Path, runs: &[Planned]) -> Result<Vec<(String, String)>, Failure> {
    let done = runs.iter().filter(|run| is_done(&run.report)).count();
    if done > 0 {
        console.say(&format!("{done} of {} runs are done already", runs.len()));
    }
    let mut shared = Shared::keeping();
    let (mut failed, mut elsewhere) = (Vec::new(), Vec::new());
    for (i, run) in runs.iter().enumerate() {
        if is_done(&run.report) {
            continue;
        }
        let claim = Claim::take(out, &run.report)
            .map_err(|e| Failure::failed(format!("--out {}: cannot be written: {e}", out.display())))?;
        let Some(_claim) = claim else {
            elsewhere.push(run);
            continue;
        };
        // Its process may have ended between the two.
        if is_done(&run.report) {
            continue;
        }
        console.say(&format!("run {} of {}: {}", i + 1, runs.len(), run.name));
        match retrain::one(&run.args, &mut shared, run.command.clone()) {
            Ok(measured) => {
                report::write(&run.report, &measured)?;
                run.forget_checkpoints(console);
            }
            Err(Failure::Failed(why) | Failure::Usage(why)) => {
                console.warn(&format!("{}: {why}", run.name));
                failed.push((run.name.clone(), why));
            }
            Err(Failure::Interrupted { signal, .. }) => {
                let message = format!(
                    "{} ended the sweep in run {} of {}: {}; the same command goes on with {}",
                    signals::name(signal),
                    i + 1,
                    runs.len(),
                    run.name,
                    if run.checkpoints.is_some() { "its next step" } else { "that run" },
                );
                return Err(Failure::Interrupted { signal, message });
            }
            Err(other) => return Err(other),
        }
    }
    let left = elsewhere.iter().filter(|run| !is_done(&run.report)).count();
    if left > 0 {
        console.say(&format!("{left} runs were left to other processes of this sweep, and are not done yet"));
    }
    Ok(failed)
}

impl Planned {
    /// A run that is reported needs its checkpoints no more.
    fn forget_checkpoints(&self, console: &Console) {
        let Some(folder) = &self.checkpoints else { return };
        match std::fs::remove_dir_all(folder) {
            // And with the last of them goes what held them all.
            Ok(()) => folder.parent().map_or((), |all| drop(std::fs::remove_dir(all))),
            Err(error) => console.warn(&format!("{}: cannot be removed: {error}", folder.display())),
        }
    }
}

/// Whether a report is there and whole.
fn is_done(report: &Path) -> bool {
    report.exists() && RunData::read(report).is_ok()
}
