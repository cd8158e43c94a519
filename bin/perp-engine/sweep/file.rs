//! A sweep as its file and the command line describe it.

use std::path::Path;

use clap::{Arg, ArgAction, CommandFactory};
use serde::Deserialize;
use toml::{Table, Value};

use super::grid::{self, Axis, Planned, Setup};
use crate::error::Failure;
use crate::retrain;
use crate::settings_file::read_text;

/// retrain's flags that are the sweep's own business, and why.
const RESERVED: [(&[&str], &str); 2] = [
    (&["out", "report", "config", "log", "tensorboard"], "each run writes its report to the sweep's folder"),
    (
        &["checkpoints", "save-every", "keep", "resume"],
        "sweep --save-every N keeps checkpoints of the run that goes on",
    ),
];

/// Flags of which a process has one value.
const ONE: [&str; 3] = ["threads", "device", "gemm"];

/// A retrain command line alone.
#[derive(clap::Parser, Debug)]
#[command(name = "retrain", no_binary_name = true)]
pub struct Alone {
    #[command(flatten)]
    pub args: retrain::Args,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    title: Option<String>,
    /// Flags that must be given, here or on the command line.
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default)]
    run: Table,
    grid: Option<Grids>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Grids {
    One(Table),
    Several(Vec<Table>),
}

/// A sweep.
#[derive(Debug)]
pub struct Sweep {
    pub title: String,
    /// One for each grid: its axes, a flag that all runs have being an axis of one value.
    grids: Vec<Vec<Axis>>,
}

impl Sweep {
    /// Reads a sweep; `flags` replace what the file says.
    ///
    /// # Errors
    /// A file that cannot be read or is no sweep, a flag that retrain has not, and one that is missing.
    pub fn read(path: &Path, flags: &[String]) -> Result<Sweep, Failure> {
        let shown = path.display();
        let text = read_text(path).map_err(|e| Failure::usage(format!("{shown}: cannot be read: {e}")))?;
        let described: Described = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            Failure::usage(format!("{shown}:{line}: {}", e.message().lines().next().unwrap_or("not TOML")))
        })?;
        let in_file = |error: Failure| Failure::usage(format!("{shown}: {error}"));
        let axes = |table: &Table, axis: fn(&str, &Value) -> Result<Axis, Failure>| {
            table.iter().map(|(name, value)| axis(name, value)).collect::<Result<Vec<_>, _>>().map_err(in_file)
        };
        let (given, common) = (given(flags)?, axes(&described.run, fixed)?);
        // A file that was cut off, say: one run of retrain's defaults is not what it stood for.
        let empty = described.grid.is_none() && common.is_empty() && described.requires.is_empty();
        if empty && given.iter().all(|axis| axis.choices.len() < 2) {
            return Err(Failure::usage(format!("{shown}: has neither [run] nor [grid]: there is nothing to sweep")));
        }
        let grids = match described.grid {
            None => vec![Table::new()],
            Some(Grids::One(grid)) => vec![grid],
            Some(Grids::Several(grids)) => grids,
        };
        let mut all = Vec::new();
        for grid in &grids {
            let axes = replaced(replaced(common.clone(), axes(grid, varied)?), given.clone());
            if let Some(missing) = described.requires.iter().find(|name| !axes.iter().any(|axis| axis.flag == **name)) {
                return Err(Failure::usage(format!(
                    "{shown}: --{missing} is missing: name it behind --, such as: sweep {shown} --out DIR -- --{missing} …"
                )));
            }
            if let Some(axis) = axes.iter().find(|axis| axis.choices.len() > 1 && ONE.contains(&axis.flag.as_str())) {
                return Err(Failure::usage(format!(
                    "{shown}: --{} has several values, and all runs are of one process: name one",
                    axis.flag
                )));
            }
            all.push(grid::ordered(axes));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Sweep { title: described.title.unwrap_or(stem), grids: all })
    }

    /// The runs, in an order in which those that are pruned alike follow each other.
    ///
    /// # Errors
    /// Flags that retrain refuses.
    pub fn runs(&self, setup: Setup<'_>) -> Result<Vec<Planned>, Failure> {
        grid::runs(&self.grids, setup)
    }
}

/// retrain's flag of this name, by itself or as TOML spells it.
fn flag(name: &str) -> Result<Arg, Failure> {
    let name = name.replace('_', "-");
    if let Some((_, why)) = RESERVED.iter().find(|(names, _)| names.contains(&name.as_str())) {
        return Err(Failure::usage(format!("{name} is not for sweeps: {why}")));
    }
    let command = Alone::command();
    let found = command.get_arguments().find(|arg| arg.get_long() == Some(name.as_str())).cloned();
    found.ok_or_else(|| Failure::usage(format!("retrain has no flag --{name}; retrain --help lists them")))
}

/// Whether a flag takes several values at once.
fn takes_many(arg: &Arg) -> bool {
    arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append)
}

/// Several values as the flag takes them.
fn together(arg: &Arg, values: Vec<String>) -> Vec<String> {
    match arg.get_value_delimiter() {
        Some(delimiter) => vec![values.join(&delimiter.to_string())],
        None => values,
    }
}

fn scalar(name: &str, value: &Value) -> Result<String, Failure> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(format!("{number:?}")),
        _ => Err(Failure::usage(format!("{name} is {value}: expected a string or a number"))),
    }
}

/// A flag as all runs have it. True is the flag alone, false leaves it out.
fn fixed(name: &str, value: &Value) -> Result<Axis, Failure> {
    let arg = flag(name)?;
    let long = name.replace('_', "-");
    let choice = match value {
        Value::Boolean(set) if arg.get_action().takes_values() => {
            return Err(Failure::usage(format!("{name} is {set}, and --{long} takes a value")));
        }
        Value::Boolean(true) => Some(Vec::new()),
        Value::Boolean(false) => None,
        _ if !arg.get_action().takes_values() => {
            return Err(Failure::usage(format!("{name} is {value}, and --{long} is true or false")));
        }
        Value::Array(list) if takes_many(&arg) => {
            let values = list.iter().map(|value| scalar(name, value)).collect::<Result<Vec<_>, _>>()?;
            Some(together(&arg, values))
        }
        Value::Array(_) => return Err(Failure::usage(format!("{name} is a list: what varies stands in [grid]"))),
        value => Some(vec![scalar(name, value)?]),
    };
    Ok(Axis { flag: long, choices: vec![choice] })
}

/// A flag whose every value is a run.
fn varied(name: &str, value: &Value) -> Result<Axis, Failure> {
    let Value::Array(list) = value else {
        return Err(Failure::usage(format!("{name} is {value}: [grid] has lists; what all runs have stands in [run]")));
    };
    if list.is_empty() {
        return Err(Failure::usage(format!("{name} is an empty list: no run would be left")));
    }
    let choices =
        list.iter().map(|value| fixed(name, value).map(|axis| axis.choices)).collect::<Result<Vec<_>, _>>()?;
    Ok(Axis { flag: name.replace('_', "-"), choices: choices.concat() })
}

/// The flags behind `--`.
fn given(flags: &[String]) -> Result<Vec<Axis>, Failure> {
    let mut all: Vec<(Arg, String, Vec<String>)> = Vec::new();
    for word in flags {
        match (word.strip_prefix("--"), all.last_mut()) {
            (Some(name), _) => {
                let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
                all.push((flag(name)?, name.into(), value.map(String::from).into_iter().collect()));
            }
            (None, Some((_, _, values))) => values.push(word.clone()),
            (None, None) => return Err(Failure::usage(format!("'{word}' behind -- belongs to no flag"))),
        }
    }
    let axis = |(arg, name, values): (Arg, String, Vec<String>)| {
        let choices = if takes_many(&arg) || values.is_empty() {
            vec![Some(together(&arg, values))]
        } else {
            values.into_iter().map(|value| Some(vec![value])).collect()
        };
        Axis { flag: name, choices }
    };
    Ok(all.into_iter().map(axis).collect())
}

/// `axes` with those of `over` instead where both name a flag. Sparsity and pattern are two names of one thing.
fn replaced(axes: Vec<Axis>, over: Vec<Axis>) -> Vec<Axis> {
    let one = |name: &str| if name == "pattern" { "sparsity".to_string() } else { name.to_string() };
    let mut all: Vec<Axis> =
        axes.into_iter().filter(|axis| !over.iter().any(|other| one(&other.flag) == one(&axis.flag))).collect();
    all.extend(over);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, flags: &[&str]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        let flags: Vec<String> = flags.iter().map(|flag| flag.to_string()).collect();
        let runs = Sweep::read(&path, &flags).and_then(|sweep| sweep.runs(Setup::in_tests()));
        runs.map(|runs| runs.into_iter().map(|run| run.command).collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_replaces_the_file_and_several_values_are_an_axis() {
        let text = "[run]\nsteps = 3\ntargets = ['q_proj', 'fc1']\ntrain = ['a.txt']\n[grid]\npattern = ['2:4']\nseed = [0, 1]\n";
        assert_eq!(
            read(text, &[]).unwrap(),
            [0, 1].map(|seed| format!(
                "perp-engine retrain --pattern 2:4 --seed {seed} --steps 3 --targets q_proj,fc1 --train a.txt"
            ))
        );
        let flags = ["--model", "A", "B", "--sparsity", "0.5", "--train", "b.txt", "c.txt", "--seed=4"];
        assert_eq!(
            read(text, &flags).unwrap(),
            ["A", "B"].map(|model| format!(
                "perp-engine retrain --model {model} --sparsity 0.5 --seed 4 --steps 3 --targets q_proj,fc1 --train b.txt \
                 c.txt"
            ))
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        for (text, part) in [
            ("[grid]\nspeed = [1]\n", "retrain has no flag --speed"),
            ("[grid]\nlr = 1e-3\n", "[grid] has lists"),
            ("[grid]\nlr = []\n", "empty list"),
            ("[run]\nlr = [1e-3]\n", "stands in [grid]"),
            ("[run]\nquiet = 3\n", "is true or false"),
            ("[run]\nlr = true\n", "takes a value"),
            ("[run]\nreport = 'a.json'\n", "not for sweeps"),
            ("[run]\nresume = true\n", "sweep --save-every N"),
            ("[grid]\nthreads = [1, 2]\n", "--threads has several values"),
            ("[grit]\nlr = [1]\n", "unknown field `grit`"),
            ("requires = ['model']\n", "--model is missing"),
            ("[run\n", "s.toml:1"),
            ("", "neither [run] nor [grid]"),
        ] {
            let message = read(text, &[]).unwrap_err();
            assert!(message.contains(part) && message.lines().count() == 1, "{text}: {message}");
        }
        assert!(read("", &["3"]).unwrap_err().contains("belongs to no flag"));
        assert_eq!(read("", &["--seed", "0", "1"]).unwrap().len(), 2, "the command line has an axis");
    }

    #[test]
    fn the_sweeps_that_ship_are_sound() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sweeps");
        let flags =
            ["--model", "M", "--train", "t.txt", "--eval", "e.txt", "--validation", "v.txt", "--calibrate", "t.txt"];
        for (name, with, runs) in [
            ("demo.toml", 0, 12),
            ("novels-criteria.toml", 2, 27),
            ("novels-methods.toml", 2, 75),
            ("table1.toml", 8, 375),
            ("table2.toml", 10, 135),
            ("table5.toml", 8, 375),
            ("figure3.toml", 8, 25),
        ] {
            let flags: Vec<String> = flags[..with].iter().map(|flag| flag.to_string()).collect();
            let sweep = Sweep::read(&folder.join(name), &flags).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(sweep.runs(Setup::in_tests()).unwrap().len(), runs, "{name}");
        }
    }
}
