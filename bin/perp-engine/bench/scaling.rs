//! Series of steps: how tokens a second and memory grow with the sequence, the batch, the model and the sparsity.

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::checkpoint::replace_file;
use serde::{Deserialize, Serialize};

use super::{Args, plot, publish};
use crate::error::Failure;
use crate::progress::Console;
use crate::session;
use crate::tables;

/// What is varied, by which flag, over which values.
const SERIES: [(&str, &str, &[&str]); 4] = [
    ("tokens of a sequence", "--seq-len", &["256", "512", "1024", "2048"]),
    ("sequences", "--batch", &["1", "2", "4", "8"]),
    ("model", "--model", &["opt-125m", "opt-350m", "opt-1.3b"]),
    ("sparsity", "--sparsity", &["0", "0.3", "0.5", "0.7", "0.8", "0.9", "0.95"]),
];

/// The series that make sense for a model: sequences within its context, and other sizes only of a built-in one.
fn series(args: &Args, context: usize) -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let fits = |flag: &str, value: &str| match flag {
        "--seq-len" => value.parse().is_ok_and(|length: usize| length <= context),
        "--model" => models::builtin(&args.model).is_some(),
        _ => true,
    };
    SERIES
        .iter()
        .map(|(varied, flag, values)| (*varied, *flag, values.iter().copied().filter(|v| fits(flag, v)).collect()))
        .filter(|(_, _, values): &(_, _, Vec<&str>)| !values.is_empty())
        .collect()
}

/// What the report of one step says that is drawn.
#[derive(Debug, Deserialize)]
struct Measured {
    tokens_per_second: f64,
    peak_resident_bytes: Option<u64>,
    peak_bytes: Peak,
}

#[derive(Debug, Deserialize)]
struct Peak {
    total: u64,
}

/// One varied quantity.
#[derive(Debug, Serialize)]
pub struct Series {
    pub varied: &'static str,
    pub points: Vec<Point>,
}

/// One step of a series.
#[derive(Debug, Serialize)]
pub struct Point {
    pub value: String,
    pub tokens_per_second: f64,
    /// The accountant's high-water mark.
    pub peak_bytes: u64,
    /// The process's, where the system tells.
    pub peak_resident_bytes: Option<u64>,
}

pub fn run(args: &Args, svg: &Path) -> Result<(), Failure> {
    let context = session::open_config(&args.model)?.info().context;
    let console = Console::new(args.machine.quiet);
    let series = series(args, context);
    let mut task = console.task("bench", series.iter().map(|(_, _, values)| values.len() as u64).sum());
    let mut done = 0;
    let mut all = Vec::new();
    for (varied, flag, values) in series {
        let mut points = Vec::new();
        for value in values {
            task.update(done, &format!("{varied} {value}"));
            points.push(measure(args, flag, value)?);
            done += 1;
        }
        all.push(Series { varied, points });
    }
    task.finish(&format!("{done} steps"));
    replace_file(svg, plot::draw(&all, &title(args))?.as_bytes())?;
    publish(args, &all, &text(args, &all))
}

fn title(args: &Args) -> String {
    let pattern = args.pruning.pattern();
    let (model, method) = (&args.model, args.method.label());
    format!("{model}, {pattern}, {method}, {}×{} tokens a step, one of them varied", args.batch, args.seq_len)
}

/// Runs one step in a process of its own, so that its memory is its own.
fn measure(args: &Args, flag: &str, value: &str) -> Result<Point, Failure> {
    let report: PathBuf = std::env::temp_dir().join(format!("perp-engine-bench-{}.json", std::process::id()));
    let program = std::env::current_exe().map_err(|e| Failure::failed(format!("cannot find this program: {e}")))?;
    let mut command = Command::new(program);
    let mut flags = vec![
        ("--model", args.model.clone()),
        ("--method", args.method.method.to_string()),
        ("--batch", args.batch.to_string()),
        ("--seq-len", args.seq_len.to_string()),
    ];
    match args.pruning.pattern {
        Some(pattern) if flag != "--sparsity" => flags.push(("--pattern", pattern.to_string())),
        _ => flags.push(("--sparsity", args.pruning.sparsity.unwrap_or(0.5).to_string())),
    }
    flags.retain(|(name, _)| *name != flag);
    flags.push((flag, value.into()));
    flags.push(("--steps", args.steps.to_string()));
    flags.push(("--device", args.machine.device.to_string()));
    flags.push(("--gemm", args.machine.gemm.name()));
    if let Some(threads) = args.machine.threads {
        flags.push(("--threads", threads.to_string()));
    }
    command.arg("bench").args(flags.iter().flat_map(|(name, value)| [*name, value.as_str()]));
    let output = command
        .args(["--quiet", "--report"])
        .arg(&report)
        .output()
        .map_err(|e| Failure::failed(format!("cannot start a step: {e}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::failed(format!("{flag} {value}: {}", why.trim_start_matches("error: ").trim_end())));
    }
    let text = std::fs::read(&report).map_err(|e| Failure::failed(format!("{}: {e}", report.display())))?;
    let _ = std::fs::remove_file(&report);
    let measured: Measured =
        serde_json::from_slice(&text).map_err(|e| Failure::failed(format!("{}: {e}", report.display())))?;
    Ok(Point {
        value: value.into(),
        tokens_per_second: measured.tokens_per_second,
        peak_bytes: measured.peak_bytes.total,
        peak_resident_bytes: measured.peak_resident_bytes,
    })
}

fn text(args: &Args, all: &[Series]) -> String {
    let mut out = format!("{}\n", title(args));
    for series in all {
        let mut rows = vec![[series.varied, "tok/s", "peak memory", "process"].map(String::from).to_vec()];
        rows.extend(series.points.iter().map(|point| {
            vec![
                point.value.clone(),
                format!("{:.0}", point.tokens_per_second),
                tables::bytes(point.peak_bytes),
                point.peak_resident_bytes.map_or("unknown".into(), tables::bytes),
            ]
        }));
        out += &format!("\n{}", tables::columns(&rows));
    }
    out
}
