//! The targets, by what they read.

mod bounded;
mod hub;
mod models;
mod ptx;
mod runs;
mod scratch;
mod settings;
mod texts;
mod tokenizers;

pub use hub::{hub_discussions, hub_id, hub_index, hub_listing};
pub use models::{adapter_config, adapter_weights, config, index, packed, weights};
pub use ptx::ptx;
pub use runs::{checkpoint, token_file};
pub use scratch::clear;
pub use settings::{allocation, report, run_toml, sweep_toml};
pub use texts::{gzip, json_lines, parquet, text, zstd};
pub use tokenizers::{tokenizer, vocabulary};
