//! OPT's configuration, and the published sizes.

use engine::autograd::Activation;
use engine::error::Result;
use engine::model::{Loader, Model, ModelInfo};
use serde_json::{Value, json};

use super::network::Opt;
use crate::read::{Fields, even_heads};
use crate::{Architecture, ConfigError};

/// OPT's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct OptConfig {
    pub(super) info: ModelInfo,
    /// Width of embedding and head; projections stand between it and another hidden width.
    pub(super) embed: usize,
    pub(super) ffn: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// LayerNorm before each block, or after.
    pub(super) norm_before: bool,
    pub(super) final_norm: bool,
    pub(super) biases: bool,
    pub(super) activation: Activation,
    pub(super) tied: bool,
    init_std: f64,
}

impl OptConfig {
    /// Reads config.json's fields; what is missing has transformers' default.
    ///
    /// # Errors
    /// A field that is missing, out of range, or not supported.
    pub fn read(config: &Value) -> std::result::Result<OptConfig, ConfigError> {
        let fields = Fields(config);
        let (hidden, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        if !fields.flag("layer_norm_elementwise_affine", true)? {
            return Err(ConfigError("layer_norm_elementwise_affine false is not supported".into()));
        }
        let norm_before = fields.flag("do_layer_norm_before", true)?;
        let activation = match fields.text("activation_function", "relu")? {
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            other => {
                let supported = "supported are relu, gelu, gelu_new and silu";
                return Err(ConfigError(format!("activation_function '{other}' is not supported; {supported}")));
            }
        };
        Ok(OptConfig {
            info: ModelInfo {
                architecture: "opt".into(),
                layers: fields.layers()?,
                hidden,
                vocab: fields.size("vocab_size")?,
                context: fields.size("max_position_embeddings")?,
            },
            embed: fields.optional_size("word_embed_proj_dim")?.unwrap_or(hidden),
            ffn: fields.size("ffn_dim")?,
            heads,
            head_dim: even_heads(hidden, heads)?,
            norm_before,
            final_norm: norm_before && !fields.flag("_remove_final_layer_norm", false)?,
            biases: fields.flag("enable_bias", true)?,
            activation,
            tied: fields.flag("tie_word_embeddings", true)?,
            init_std: fields.positive("init_std", 0.02)?,
        })
    }
}

impl Architecture for OptConfig {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn init_std(&self) -> f64 {
        self.init_std
    }

    fn build(&self, loader: &Loader<'_>) -> Result<Box<dyn Model>> {
        Ok(Box::new(Opt::build(self.clone(), loader)?))
    }
}

/// The configuration of a published OPT size, such as `opt-30b` or `facebook/opt-30b`.
pub fn builtin(name: &str) -> Option<Value> {
    let name = name.to_ascii_lowercase();
    let size = name.strip_prefix("facebook/").unwrap_or(&name).strip_prefix("opt-")?;
    let (hidden, layers, heads) = match size {
        "125m" => (768, 12, 12),
        "350m" => (1024, 24, 16),
        "1.3b" => (2048, 24, 32),
        "2.7b" => (2560, 32, 32),
        "6.7b" => (4096, 32, 32),
        "13b" => (5120, 40, 40),
        "30b" => (7168, 48, 56),
        "66b" => (9216, 64, 72),
        _ => return None,
    };
    let post_norm = size == "350m";
    Some(json!({
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": 50272,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "ffn_dim": 4 * hidden,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": if post_norm { 512 } else { hidden },
        "do_layer_norm_before": !post_norm,
        "activation_function": "relu",
        "tie_word_embeddings": true,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float16",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_transformers_mean_the_same() {
        for model in ["opt-pre", "opt-post"] {
            let read = |file: &str| {
                let path = format!("{}/../tests/golden/{model}/{file}", env!("CARGO_MANIFEST_DIR"));
                OptConfig::read(&serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()).unwrap()
            };
            assert_eq!(read("config.json"), read("config.v4.json"));
        }
    }

    #[test]
    fn every_published_size_is_there_under_either_name() {
        for size in ["125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b"] {
            let config = builtin(&format!("opt-{size}")).unwrap();
            assert_eq!(builtin(&format!("facebook/OPT-{size}")).unwrap(), config);
            OptConfig::read(&config).unwrap();
        }
        assert!(builtin("opt-7b").is_none() && builtin("gpt2").is_none());
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let message = |field: &str, value: Value| {
            let mut config = builtin("opt-125m").unwrap();
            config[field] = value;
            OptConfig::read(&config).unwrap_err().to_string()
        };
        assert_eq!(
            message("num_attention_heads", json!(5)),
            "config.json: num_attention_heads 5 does not divide hidden_size 768"
        );
        assert!(message("hidden_size", json!(0)).contains("hidden_size is 0, expected a whole number from 1"));
        assert!(message("ffn_dim", json!(1e30)).contains("ffn_dim is 1e+30"));
        assert!(message("vocab_size", Value::Null).contains("vocab_size is missing"));
        assert!(message("enable_bias", json!("yes")).contains("enable_bias is \"yes\", expected true or false"));
        assert!(message("activation_function", json!("mish")).contains("'mish' is not supported"));
    }
}
