//! The command line of perp-engine. This file wires: one file for each subcommand, the flags that they share in `args`,
//! what they say in `progress` and `report`.

mod allocation;
mod args;
mod bench;
mod calibration;
mod checkpoints;
mod command;
mod convert;
mod error;
mod eval;
mod fetch;
mod format;
mod freezing;
mod gemm;
mod generate;
mod graphs;
mod inspect;
mod live;
mod merge;
mod page;
mod planned;
mod pretrain;
mod profile;
mod progress;
mod prune;
mod pruner;
mod reconstruct;
mod report;
mod reports;
mod retrain;
mod run_config;
mod session;
mod settings_file;
mod signals;
mod sweep;
mod tables;
mod text;
mod validation;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use error::Failure;

/// Prunes language models and wins their quality back by retraining under 1% of the parameters.
#[derive(Parser)]
#[command(name = "perp-engine", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  perp-engine retrain                                  the demo: prune a small model by half and retrain it
  perp-engine retrain --model DIR --train a.txt b.txt --eval c.txt --sparsity 0.5 --out DIR
  perp-engine retrain --model DIR --train t.jsonl --eval e.txt --pattern 2:4 --method norms
  perp-engine retrain --model DIR --train t.jsonl --eval e.txt --criterion sparsegpt --calibrate t.jsonl
  perp-engine retrain --model facebook/opt-1.3b --train allenai/c4:en --eval wikitext2
  perp-engine eval --model DIR --adapter DIR/adapter --eval c.txt
  perp-engine retrain --report run.html                the demo, and a page that shows the run
  perp-engine sweep sweeps/demo.toml --out DIR         a grid of runs, compared on one page
  perp-engine generate --prompt 'It is a truth'        what the demo model makes of it
  perp-engine profile --model opt-30b --gpu a100-40gb  does it fit?
  perp-engine bench --model opt-125m                   how fast is a step here?

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.";

#[derive(Subcommand)]
enum Command {
    /// Prune a model, retrain a few of its parameters, and measure what that wins back.
    Retrain(Box<retrain::Args>),
    /// Train a model from scratch from its configuration.
    Pretrain(pretrain::Args),
    /// Prune a model and write it, without retraining.
    Prune(prune::Args),
    /// Prune a model and reconstruct it, one decoder layer at a time.
    Reconstruct(Box<reconstruct::Args>),
    /// Measure a model's perplexity.
    Eval(eval::Args),
    /// Merge a LoRA adapter into its model; those of mask-lora and scale-lora keep every zero.
    Merge(merge::Args),
    /// Write a model packed, without its zeros, or dense again.
    Convert(convert::Args),
    /// Plan a training step: memory by category, work by kernel, and whether it fits.
    Profile(profile::Args),
    /// Time training steps against this machine's peak.
    Bench(bench::Args),
    /// Let models go on from a prompt.
    Generate(generate::Args),
    /// Run a grid of retrainings and compare them on one page.
    Sweep(sweep::Args),
    /// Compare runs on one page.
    Report(reports::Args),
    /// List a model's tensors and their sparsity.
    Inspect(inspect::Args),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Quiet) => ExitCode::SUCCESS,
        Err(failure @ Failure::Interrupted { .. }) => {
            error::tell(&failure.to_string());
            failure.exit_code()
        }
        Err(failure) => {
            error::tell(&format!("error: {}", error::one_line(&failure.to_string())));
            failure.exit_code()
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments = run_config::expand(std::env::args_os().collect(), &Cli::command())?;
    command::remember(&arguments);
    let matches =
        Cli::command().mut_subcommands(args::with_minus).try_get_matches_from(arguments).map_err(error::usage)?;
    match Cli::from_arg_matches(&matches).map_err(error::usage)?.command {
        Command::Retrain(args) => retrain::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Reconstruct(args) => reconstruct::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Report(args) => reports::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_help() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} --{} has no help", command.get_name(), arg.get_id());
            }
        }
    }
}
