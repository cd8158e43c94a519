//! `report`: compares runs on one page.

use std::path::PathBuf;

use engine::checkpoint::replace_file;
use serde::Serialize;

use crate::error::{Failure, print};
use crate::page::{self, Comparison, RunData};
use crate::report;

/// Compare runs on one page, or make the page of one: the tables and figures of the reports that retrain --report wrote.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Reports: .json files. Runs that differ in their seed alone are one result, with mean and standard deviation.
    #[arg(required = true, value_name = "FILE")]
    reports: Vec<PathBuf>,
    /// Where the page goes: .html; or its tables as .md or .json.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The page's title.
    #[arg(long, default_value = "Runs compared", value_name = "TEXT")]
    title: String,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let form = Form::of(&args.out)?;
    report::check("--out", &args.out)?;
    let runs = read(&args.reports)?;
    match (&runs[..], form) {
        ([(_, run)], Form::Html) => replace_file(&args.out, page::run(run).as_bytes())?,
        _ => form.write(&args.out, &page::comparison(&args.title, &runs))?,
    }
    print(&format!("{}\n", args.out.display()))
}

/// What a comparison is written as.
#[derive(Clone, Copy)]
enum Form {
    Html,
    Markdown,
    Json,
}

impl Form {
    fn of(path: &std::path::Path) -> Result<Form, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("html" | "htm") => Ok(Form::Html),
            Some("md") => Ok(Form::Markdown),
            Some("json") => Ok(Form::Json),
            _ => Err(Failure::usage(format!("--out {}: name a .html, .md or .json file", path.display()))),
        }
    }

    fn write(self, path: &std::path::Path, comparison: &Comparison) -> Result<(), Failure> {
        match self {
            Form::Html => Ok(replace_file(path, comparison.html.as_bytes())?),
            Form::Markdown => Ok(replace_file(path, comparison.markdown.as_bytes())?),
            Form::Json => report::write(path, &comparison.json),
        }
    }
}

/// The reports, each under as much of its path as tells it from the others.
fn read(paths: &[PathBuf]) -> Result<Vec<(String, RunData)>, Failure> {
    let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let unique = |path: &PathBuf| paths.iter().filter(|other| stem(other) == stem(path)).count() == 1;
    let name = |path: &PathBuf| if unique(path) { stem(path) } else { path.display().to_string() };
    paths.iter().map(|path| Ok((name(path), RunData::read(path)?))).collect()
}

/// Writes a comparison in all its forms, `stem`.html, .md and .json; returns its Markdown.
pub fn write_all(stem: &std::path::Path, title: &str, runs: &[(String, RunData)]) -> Result<String, Failure> {
    let comparison = page::comparison(title, runs);
    for (form, extension) in [(Form::Html, "html"), (Form::Markdown, "md"), (Form::Json, "json")] {
        form.write(&stem.with_extension(extension), &comparison)?;
    }
    Ok(comparison.markdown)
}

/// A report as its page.
pub fn page_of<T: Serialize>(report: &T) -> Result<String, Failure> {
    let value = serde_json::to_value(report).map_err(|e| Failure::failed(format!("the report: {e}")))?;
    Ok(page::run(&RunData::of(value)?))
}
