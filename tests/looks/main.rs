//! What a run shows: its page, its log, TensorBoard's files, comparisons, sweeps, generated text.

mod browser;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod generate;
mod live;
mod pages;
mod sweep;
