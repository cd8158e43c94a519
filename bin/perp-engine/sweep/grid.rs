//! From axes to runs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches};
use engine::prune::Criterion;

use super::file::Alone;
use crate::error::{self, Failure};
use crate::retrain;
use crate::{args, command};

/// A flag and what it may be: its values in a run, or nothing for a run without it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    pub flag: String,
    pub choices: Vec<Option<Vec<String>>>,
}

/// A run that is to be.
#[derive(Debug)]
pub struct Planned {
    /// What varies, in words.
    pub name: String,
    pub args: retrain::Args,
    /// How to have it alone.
    pub command: String,
    /// Where its report is, or will be.
    pub report: PathBuf,
    /// Where its checkpoints are while it goes on, if any are kept.
    pub checkpoints: Option<PathBuf>,
}

/// Where runs leave what they have, and how loud they are.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The sweep's folder.
    pub out: &'a Path,
    pub quiet: bool,
    /// Steps from one checkpoint to the next, where they are kept.
    pub save_every: Option<usize>,
}

#[cfg(test)]
impl Setup<'static> {
    pub fn in_tests() -> Setup<'static> {
        Setup { out: Path::new("out"), quiet: false, save_every: None }
    }
}

/// The flags that decide about the pruned model come first, so that runs which share one follow each other; the method and the
/// learning rate, over which most is shared, last.
const FIRST: [&str; 6] = ["model", "criterion", "sparsity", "pattern", "calibrate", "seed"];
const LAST: [&str; 2] = ["method", "lr"];

/// The flags that say where and how a run is computed, and decide about rounding at most. Where all runs have the same, these do not
/// make a run another: what one machine has done, another need not do again.
const MACHINE: [&str; 8] =
    ["device", "threads", "gemm", "cuda-graphs", "checkpointing", "offload", "memory-budget", "token-cache"];

/// Axes in the order in which they are gone through, the first the slowest.
pub fn ordered(mut axes: Vec<Axis>) -> Vec<Axis> {
    let rank = |axis: &Axis| {
        let at = |names: &[&str]| names.iter().position(|name| *name == axis.flag);
        match (at(&FIRST), at(&LAST)) {
            (Some(at), _) => at,
            (_, Some(at)) => FIRST.len() + 1 + at,
            _ => FIRST.len(),
        }
    };
    axes.sort_by_key(rank);
    axes
}

/// Where the reports of runs are.
pub fn folder(out: &Path) -> PathBuf {
    out.join("runs")
}

/// The most runs of a sweep; at a minute each they would take a week.
const MOST_RUNS: usize = 10_000;

/// All combinations of each grid, each once.
///
/// # Errors
/// More than [`MOST_RUNS`], before any is planned, and flags that retrain refuses.
pub fn runs(grids: &[Vec<Axis>], setup: Setup<'_>) -> Result<Vec<Planned>, Failure> {
    let grids: Vec<_> = grids.iter().map(|axes| joined(axes)).collect();
    let size = |axes: &Vec<Vec<Chosen>>| axes.iter().map(Vec::len).fold(1, usize::saturating_mul);
    let all = grids.iter().map(size).fold(0, usize::saturating_add);
    if all > MOST_RUNS {
        return Err(Failure::usage(format!(
            "the sweep has {all} runs, and no more than {MOST_RUNS} are taken: give its axes fewer values, or make several sweeps"
        )));
    }
    let (mut runs, mut known) = (Vec::new(), HashSet::new());
    for axes in &grids {
        for choice in combinations(axes) {
            let run = plan(&choice, setup)?;
            if known.insert(run.report.clone()) {
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

/// A flag with its values in one run, and whether it varies.
#[derive(Clone, Debug, PartialEq)]
struct Chosen {
    flag: String,
    values: Option<Vec<String>>,
    varies: bool,
}

/// Axes as lists of choices. Sparsity and pattern exclude each other: together they are one axis.
fn joined(axes: &[Axis]) -> Vec<Vec<Chosen>> {
    let mut all: Vec<Vec<Chosen>> = Vec::new();
    let mut pruning: Option<usize> = None;
    for axis in axes {
        let is_pruning = matches!(axis.flag.as_str(), "sparsity" | "pattern");
        let choice = |values: &Option<Vec<String>>| Chosen {
            flag: axis.flag.clone(),
            values: values.clone(),
            varies: axis.choices.len() > 1,
        };
        let mut choices: Vec<Chosen> = axis.choices.iter().map(choice).collect();
        match pruning.filter(|_| is_pruning) {
            Some(at) => {
                all[at].append(&mut choices);
                all[at].iter_mut().for_each(|choice| choice.varies = true);
            }
            None => {
                if is_pruning {
                    pruning = Some(all.len());
                }
                all.push(choices);
            }
        }
    }
    all
}

fn combinations(axes: &[Vec<Chosen>]) -> Vec<Vec<Chosen>> {
    axes.iter().fold(vec![Vec::new()], |combinations, choices| {
        combinations
            .iter()
            .flat_map(|chosen| choices.iter().map(|choice| [&chosen[..], std::slice::from_ref(choice)].concat()))
            .collect()
    })
}

/// Whether the criterion looks at text: others refuse to be given any.
fn needs_calibration(choice: &[Chosen]) -> bool {
    let criterion =
        choice.iter().find(|chosen| chosen.flag == "criterion").and_then(|chosen| chosen.values.as_ref()?.first());
    criterion.and_then(|name| name.parse::<Criterion>().ok()).is_some_and(Criterion::needs_calibration)
}

fn plan(choice: &[Chosen], setup: Setup<'_>) -> Result<Planned, Failure> {
    let (mut flags, mut deciding) = (Vec::<String>::new(), Vec::<String>::new());
    let mut words = Vec::new();
    let calibrated = needs_calibration(choice);
    for Chosen { flag, values, varies } in choice {
        let Some(values) = values else { continue };
        if flag.starts_with("calibrat") && !calibrated {
            continue;
        }
        let given: Vec<String> = std::iter::once(format!("--{flag}")).chain(values.iter().cloned()).collect();
        if *varies || !MACHINE.contains(&flag.as_str()) {
            deciding.extend(given.iter().cloned());
        }
        flags.extend(given);
        if *varies {
            words.push(format!("{flag} {}", values.join(" ")));
        }
    }
    let line = |flags: &[String]| command::line(std::iter::once("retrain").chain(flags.iter().map(String::as_str)));
    let command = line(&flags);
    let name = if words.is_empty() { "run".into() } else { words.join(", ") };
    // A run of other flags is another run; and a checkpoint is of one device.
    let [stem, with_machine] =
        [&line(&deciding), &command].map(|flags| format!("{}-{:08x}", slug(&name), crc32c::crc32c(flags.as_bytes())));
    let report = folder(setup.out).join(format!("{stem}.json"));
    flags.extend(["--report".into(), report.display().to_string()]);
    let checkpoints = setup.save_every.map(|_| setup.out.join("checkpoints").join(&with_machine));
    if let (Some(folder), Some(steps)) = (&checkpoints, setup.save_every) {
        let folder = folder.display().to_string();
        flags.extend(["--checkpoints".into(), folder, "--save-every".into(), steps.to_string(), "--resume".into()]);
    }
    flags.extend((setup.quiet && !flags.iter().any(|flag| flag == "--quiet")).then(|| "--quiet".into()));
    let read = args::with_minus(Alone::command()).try_get_matches_from(flags);
    let alone = read
        .and_then(|matches| Alone::from_arg_matches(&matches))
        .map_err(|e| Failure::usage(format!("{}: {command}", error::usage(e))))?;
    Ok(Planned { name, args: alone.args, command, report, checkpoints })
}

/// A name as files have it: its last 120 letters, digits and dots.
fn slug(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            c if c.is_ascii_alphanumeric() || c == '.' => out.push(c),
            _ if !out.ends_with('-') && !out.is_empty() => out.push('-'),
            _ => {}
        }
    }
    let cut = out.len().saturating_sub(120);
    out[cut..].trim_matches(['-', '.']).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(flag: &str, values: &[&str]) -> Axis {
        Axis { flag: flag.into(), choices: values.iter().map(|value| Some(vec![value.to_string()])).collect() }
    }

    #[test]
    fn every_combination_is_a_run_and_those_pruned_alike_follow_each_other() {
        let axes = ordered(vec![
            axis("lr", &["1e-3", "1e-4"]),
            axis("method", &["norms", "perp"]),
            axis("pattern", &["2:4"]),
            axis("sparsity", &["0.5", "0.7"]),
            axis("steps", &["3"]),
        ]);
        let all = runs(&[axes.clone(), axes], Setup::in_tests()).unwrap();
        assert_eq!(all.len(), 3 * 2 * 2, "sparsity and pattern are one axis, and a run that two grids have is one");
        let names: Vec<&str> = all.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names[0], "sparsity 0.5, method norms, lr 1e-3");
        assert_eq!(names[1], "sparsity 0.5, method norms, lr 1e-4");
        assert_eq!(names[11], "pattern 2:4, method perp, lr 1e-4");
        assert_eq!(all[0].command, "perp-engine retrain --sparsity 0.5 --steps 3 --method norms --lr 1e-3");
        let report = all[0].report.to_str().unwrap();
        assert!(report.starts_with("out/runs/sparsity-0.5-method-norms-lr-1e-3-"), "{report}");
    }

    #[test]
    fn a_run_is_the_same_on_another_machine_unless_runs_differ_in_that() {
        let of = |device: &[&str]| {
            let axes = [
                vec![axis("seed", &["1"])],
                (!device.is_empty()).then(|| axis("device", device)).into_iter().collect(),
            ];
            let setup = Setup { save_every: Some(5), ..Setup::in_tests() };
            runs(&[ordered(axes.concat())], setup).unwrap()
        };
        let (here, there, both) = (of(&[]), of(&["cpu"]), of(&["cpu", "auto"]));
        assert_eq!(here[0].report, there[0].report);
        assert_ne!(here[0].checkpoints, there[0].checkpoints, "training does not go on elsewhere");
        assert_eq!(there[0].command, "perp-engine retrain --seed 1 --device cpu");
        assert_eq!(both.len(), 2);
        assert!(both[0].report.to_str().unwrap().starts_with("out/runs/device-cpu-"), "{:?}", both[0].report);
    }

    #[test]
    fn a_grid_that_nobody_will_live_to_see_is_refused_before_it_takes_memory() {
        let values: Vec<String> = (0..100).map(|value| value.to_string()).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let axes =
            ["seed", "steps", "rank", "batch", "lr", "alpha", "warmup", "clip", "eval-every", "cycles", "seq-len"];
        let axes: Vec<Axis> = axes.iter().map(|flag| axis(flag, &values)).collect();
        let failure = runs(&[axes], Setup::in_tests()).unwrap_err().to_string();
        assert!(failure.contains(&format!("has {} runs", usize::MAX)), "{failure}");
        let half = vec![axis("seed", &values), axis("steps", &values)];
        let failure = runs(&[half.clone(), half], Setup::in_tests()).unwrap_err().to_string();
        assert!(failure.contains("has 20000 runs, and no more than 10000"), "{failure}");
    }

    #[test]
    fn what_retrain_refuses_is_told_before_anything_runs() {
        let failure = runs(&[vec![axis("steps", &["0"])]], Setup::in_tests()).unwrap_err().to_string();
        assert!(failure.contains("invalid value '0'"), "{failure}");
        assert_eq!(failure.lines().count(), 1, "{failure}");
    }
}
