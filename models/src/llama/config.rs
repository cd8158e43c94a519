//! The Llama family's configuration.

use engine::error::Result;
use engine::model::{Loader, Model, ModelInfo};
use serde_json::Value;

use super::network::Llama;
use super::rope::Rope;
use crate::read::{Fields, even_heads};
use crate::{Architecture, ConfigError};

/// The configuration of a model of the Llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    pub(super) info: ModelInfo,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Biases on q, k and v.
    pub(super) qkv_bias: bool,
    /// A bias on the attention's output.
    pub(super) out_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) eps: f64,
    pub(super) rope: Rope,
    /// The sliding window of each layer.
    pub(super) windows: Vec<Option<usize>>,
    pub(super) tied: bool,
    init_std: f64,
}

impl LlamaConfig {
    /// Reads config.json's fields for `family` (`llama`, `mistral`, `qwen2`); what is missing has transformers' default.
    ///
    /// # Errors
    /// A field that is missing, out of range, or not supported.
    pub fn read(family: &str, config: &Value) -> std::result::Result<LlamaConfig, ConfigError> {
        let fields = Fields(config);
        let (hidden, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}");
            return Err(ConfigError(reason));
        }
        let head_dim = match fields.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => even_heads(hidden, heads)?,
        };
        match fields.text("hidden_act", "silu")? {
            "silu" | "swish" => {}
            other => return Err(ConfigError(format!("hidden_act '{other}' is not supported; supported is silu"))),
        }
        let attention_bias = family == "llama" && fields.flag("attention_bias", false)?;
        let layers = fields.layers()?;
        let context = fields.size("max_position_embeddings")?;
        Ok(LlamaConfig {
            info: ModelInfo { architecture: family.into(), layers, hidden, vocab: fields.size("vocab_size")?, context },
            intermediate: fields.size("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            qkv_bias: attention_bias || family == "qwen2",
            out_bias: attention_bias,
            mlp_bias: family == "llama" && fields.flag("mlp_bias", false)?,
            eps: fields.positive("rms_norm_eps", 1e-6)?,
            rope: Rope::read(fields, head_dim, context)?,
            windows: windows(family, fields, layers)?,
            tied: fields.flag("tie_word_embeddings", false)?,
            init_std: fields.positive("initializer_range", 0.02)?,
        })
    }
}

/// Mistral's window holds for every layer; Qwen2's where `use_sliding_window` is set, for the layers that `layer_types`
/// names or, without it, from `max_window_layers` on. Llama has none.
fn windows(family: &str, fields: Fields<'_>, layers: usize) -> std::result::Result<Vec<Option<usize>>, ConfigError> {
    let window = match family {
        "mistral" => fields.optional_size("sliding_window")?,
        "qwen2" if fields.flag("use_sliding_window", false)? => fields.optional_size("sliding_window")?,
        _ => None,
    };
    if family != "qwen2" || window.is_none() {
        return Ok(vec![window; layers]);
    }
    if let Some(types) = fields.list("layer_types")? {
        if types.len() != layers {
            return Err(ConfigError(format!("layer_types names {} layers, expected {layers}", types.len())));
        }
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(window),
                Some("full_attention") => Ok(None),
                _ => Err(ConfigError(format!("layer_types has {kind}, expected sliding_attention or full_attention"))),
            })
            .collect();
    }
    let first = match fields.0.get("max_window_layers") {
        None | Some(Value::Null) => 28,
        Some(value) => value.as_u64().ok_or_else(|| {
            ConfigError(format!("max_window_layers is {value}, expected a whole number of at least 0"))
        })?,
    };
    Ok((0..layers as u64).map(|layer| window.filter(|_| layer >= first)).collect())
}

impl Architecture for LlamaConfig {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn init_std(&self) -> f64 {
        self.init_std
    }

    fn build(&self, loader: &Loader<'_>) -> Result<Box<dyn Model>> {
        Ok(Box::new(Llama::build(self.clone(), loader)?))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn small() -> Value {
        json!({
            "vocab_size": 10, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48,
            "num_attention_heads": 4, "max_position_embeddings": 64,
        })
    }

    #[test]
    fn both_spellings_of_transformers_mean_the_same() {
        for (model, family) in [("llama-gqa", "llama"), ("qwen2", "qwen2"), ("mistral", "mistral")] {
            let read = |file: &str| {
                let path = format!("{}/../tests/golden/{model}/{file}", env!("CARGO_MANIFEST_DIR"));
                let config = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
                LlamaConfig::read(family, &config).unwrap()
            };
            assert_eq!(read("config.json"), read("config.v4.json"));
        }
    }

    #[test]
    fn families_differ_in_biases_and_windows() {
        let mut config = small();
        config["sliding_window"] = json!(16);
        let read = |family, config: &Value| LlamaConfig::read(family, config).unwrap();
        assert_eq!(read("llama", &config).windows, [None; 4]);
        assert_eq!(read("mistral", &config).windows, [Some(16); 4]);
        assert_eq!(read("qwen2", &config).windows, [None; 4]);
        assert!(read("qwen2", &config).qkv_bias && !read("qwen2", &config).out_bias);
        config["use_sliding_window"] = json!(true);
        config["max_window_layers"] = json!(3);
        assert_eq!(read("qwen2", &config).windows, [None, None, None, Some(16)]);
        config["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
        assert_eq!(read("qwen2", &config).windows, [Some(16), None, None, Some(16)]);
        config["attention_bias"] = json!(true);
        assert!(read("llama", &config).out_bias && !read("mistral", &config).out_bias);
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let message = |field: &str, value: Value| {
            let mut config = small();
            config[field] = value;
            LlamaConfig::read("llama", &config).unwrap_err().to_string()
        };
        assert!(message("num_key_value_heads", json!(3)).contains("num_key_value_heads 3 does not divide"));
        assert!(message("hidden_act", json!("gelu")).contains("hidden_act 'gelu' is not supported"));
        assert!(message("head_dim", json!(7)).contains("7 of a head's 7 features cannot rotate in pairs"));
        assert!(message("rope_scaling", json!(3)).contains("rope_scaling is 3, expected an object"));
    }
}
