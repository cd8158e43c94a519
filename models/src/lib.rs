//! Networks from Hugging Face configurations. A `config.json` becomes an [`Architecture`], which builds a
//! [`Model`] from any [`Loader`]. Nothing here knows of training.
//!
//! * [`opt`] — OPT 125M to 66B.
//! * [`llama`] — Llama 2 and 3, SmolLM, Mistral, Qwen2: one network, told apart by their configs.

pub mod llama;
pub mod opt;
mod read;

use engine::error::Result;
use engine::model::{Loader, Model, ModelInfo};
use serde_json::Value;

pub use opt::builtin;

/// A configuration that cannot be a network; names the field.
#[derive(Debug, thiserror::Error)]
#[error("config.json: {0}")]
pub struct ConfigError(String);

impl From<ConfigError> for engine::error::Error {
    fn from(error: ConfigError) -> engine::error::Error {
        engine::error::Error::config(error.to_string())
    }
}

/// A network without weights: sizes and wiring.
pub trait Architecture {
    /// Facts about it.
    fn info(&self) -> &ModelInfo;

    /// The standard deviation of a fresh model's weights.
    fn init_std(&self) -> f64;

    /// The network with weights from `loader`.
    ///
    /// # Errors
    /// Those of the loader: a missing tensor, a wrong shape, no memory.
    fn build(&self, loader: &Loader<'_>) -> Result<Box<dyn Model>>;
}

/// Reads a configuration.
///
/// # Errors
/// An unknown `model_type`, or a field that is missing, out of range, or means something that is not supported.
pub fn from_config(config: &Value) -> std::result::Result<Box<dyn Architecture>, ConfigError> {
    match config.get("model_type").and_then(Value::as_str) {
        Some("opt") => Ok(Box::new(opt::OptConfig::read(config)?)),
        Some(family @ ("llama" | "mistral" | "qwen2")) => Ok(Box::new(llama::LlamaConfig::read(family, config)?)),
        Some(other) => Err(ConfigError(format!(
            "model_type '{other}' is not supported; supported are opt, llama, mistral and qwen2"
        ))),
        None => Err(ConfigError("model_type is missing: this is not a transformers configuration".into())),
    }
}
