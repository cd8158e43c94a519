//! Models whose weights lie in their files in a form of another program: recognised by their configuration, and refused by name.

use std::path::Path;

use serde_json::Value;

use super::error::{Error, Result};

/// The method of llm-compressor and vLLM.
const COMPRESSED_TENSORS: &str = "compressed-tensors";
/// Its format that stores every entry, zeros among them: what `save_compressed=False` writes, and what pruning alone needs.
const DENSE: &str = "dense";

/// Fails where config.json says that weights are quantised, or stored without their zeros.
///
/// compressed-tensors keeps the format of quantised weights in `quantization_config.format` and that of sparse ones in
/// `quantization_config.sparsity_config.format`; older versions have `compression_config`, or `sparsity_config` by itself.
pub(super) fn refuse(folder: &Path, config: &Value) -> Result<()> {
    let of = |key: &str| config.get(key).filter(|value| value.is_object());
    let quantized = of("quantization_config").or_else(|| of("compression_config"));
    let text = |value: Option<&Value>, key: &str| value.and_then(|value| value.get(key)?.as_str().map(str::to_owned));
    let bad = |reason: String| Err(Error::Json { path: folder.join("config.json"), reason });
    let method = text(quantized, "quant_method").unwrap_or_else(|| COMPRESSED_TENSORS.into());
    if method != COMPRESSED_TENSORS {
        return bad(format!(
            "its weights are quantised by {method:?}; weights must be F32, F16 or BF16: take the model that was quantised"
        ));
    }
    let sparsity = quantized.and_then(|quantized| quantized.get("sparsity_config")).or_else(|| of("sparsity_config"));
    let stored = [text(quantized, "format"), text(sparsity, "format")];
    match stored.into_iter().flatten().find(|format| format != DENSE) {
        None => Ok(()),
        Some(format) => bad(format!(
            "its weights are stored in the format {format:?} of compressed-tensors; store them dense, zeros as zeros: load the model \
             with transformers and compressed-tensors, and write it with save_pretrained(…, save_compressed=False)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn says(config: Value) -> String {
        refuse(Path::new("model"), &config).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn dense_weights_are_taken_whatever_pruned_them() {
        for config in [
            json!({}),
            json!({"quantization_config": null}),
            json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "dense",
                "sparsity_config": {"format": "dense", "sparsity_structure": "2:4", "global_sparsity": 0.5}}}),
            json!({"sparsity_config": {"format": "dense"}}),
        ] {
            assert_eq!(says(config.clone()), "", "{config}");
        }
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        let bitmask = json!({"format": "sparse-bitmask", "sparsity_structure": "unstructured"});
        for (config, name) in [
            (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "quantised by \"gptq\""),
            (
                json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}),
                "pack-quantized",
            ),
            (
                json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": bitmask}}),
                "sparse-bitmask",
            ),
            (json!({"compression_config": {"format": "dense", "sparsity_config": bitmask}}), "sparse-bitmask"),
            (json!({"sparsity_config": bitmask}), "sparse-bitmask"),
        ] {
            let says = says(config.clone());
            assert!(says.starts_with("model/config.json: ") && says.contains(name), "{config}: {says}");
        }
    }
}
