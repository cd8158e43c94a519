//! Flags from a TOML file. A file is turned into the flags it stands for, ahead of those on the command line; what the
//! command line names itself is left out of it.

use std::ffi::OsString;
use std::path::Path;

use clap::{ArgAction, Command};
use toml::{Table, Value};

use crate::error::Failure;
use crate::settings_file::read_text;

/// Flags that exclude each other: naming one on the command line hides the other in the file.
const EXCLUSIVE: [&str; 2] = ["sparsity", "pattern"];

/// The arguments with those of `--config FILE`, if there is one, put in.
pub fn expand(arguments: Vec<OsString>, cli: &Command) -> Result<Vec<OsString>, Failure> {
    let Some(path) = value_of(&arguments, "config") else { return Ok(arguments) };
    let Some(at) = arguments.iter().skip(1).position(|arg| cli.find_subcommand(arg).is_some()).map(|at| at + 1) else {
        return Ok(arguments);
    };
    let command = cli.find_subcommand(&arguments[at]).expect("just found");
    let table = read(Path::new(&path))?;
    let mut expanded = arguments[..=at].to_vec();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(name.as_str()) && name != "config")
        else {
            return Err(unknown(&path, key, command));
        };
        let hidden = |flag: &str| value_of(&arguments, flag).is_some() || has_flag(&arguments, flag);
        if hidden(&name) || EXCLUSIVE.contains(&name.as_str()) && EXCLUSIVE.iter().any(|flag| hidden(flag)) {
            continue;
        }
        let bad = |expected: &str| {
            Failure::usage(format!("{}: {key} is {value}, expected {expected}", Path::new(&path).display()))
        };
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            match value {
                Value::Boolean(true) => expanded.push(format!("--{name}").into()),
                Value::Boolean(false) => {}
                _ => return Err(bad("true or false")),
            }
            continue;
        }
        let values = match value {
            Value::Array(list) => list.iter().map(scalar).collect::<Option<Vec<_>>>(),
            other => scalar(other).map(|value| vec![value]),
        };
        let values = values.filter(|values| !values.is_empty()).ok_or_else(|| bad("a value, or a list of values"))?;
        if arg.get_value_delimiter().is_some() {
            expanded.push(format!("--{name}={}", values.join(",")).into());
        } else {
            for value in values {
                expanded.push(format!("--{name}={value}").into());
            }
        }
    }
    expanded.extend_from_slice(&arguments[at + 1..]);
    Ok(expanded)
}

fn read(path: &Path) -> Result<Table, Failure> {
    let text =
        read_text(path).map_err(|e| Failure::usage(format!("--config {}: cannot be read: {e}", path.display())))?;
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        Failure::usage(format!("{}:{line}: {}", path.display(), e.message().lines().next().unwrap_or("not TOML")))
    })
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

fn has_flag(arguments: &[OsString], name: &str) -> bool {
    let flag = format!("--{name}");
    arguments.iter().any(|arg| arg.to_str() == Some(flag.as_str()))
}

/// What follows `--name` or `--name=`.
fn value_of(arguments: &[OsString], name: &str) -> Option<OsString> {
    let (flag, prefix) = (format!("--{name}"), format!("--{name}="));
    arguments.iter().enumerate().find_map(|(i, arg)| match arg.to_str()? {
        text if text == flag => arguments.get(i + 1).cloned(),
        text => text.strip_prefix(&prefix).map(OsString::from),
    })
}

fn unknown(path: &OsString, key: &str, command: &Command) -> Failure {
    let known: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    let close = known.iter().max_by_key(|name| {
        let prefix = name.bytes().zip(key.bytes()).take_while(|(a, b)| a == b).count();
        let shared = key.bytes().filter(|b| name.as_bytes().contains(b)).count();
        2 * prefix + shared
    });
    Failure::usage(format!(
        "{}: unknown key '{key}' for {}; did you mean '{}'?",
        Path::new(path).display(),
        command.get_name(),
        close.unwrap_or(&"")
    ))
}
