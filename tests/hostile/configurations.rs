//! config.json.

use serde_json::{Value, json};

use crate::case::{Case, EVAL, PRETRAIN, PROFILE, RETRAIN, table};
use crate::folder::CONFIG;
use crate::folder::Spoil::{self, *};

/// The configuration with these fields.
fn fields(fields: Value) -> Vec<Spoil> {
    vec![Fields(CONFIG, fields)]
}

fn bytes(bytes: impl AsRef<[u8]>) -> Vec<Spoil> {
    vec![Bytes(CONFIG, bytes.as_ref().to_vec())]
}

/// A small Llama's configuration with these fields.
fn llama(fields: Value) -> Vec<Spoil> {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 2, "max_position_embeddings": 32,
    });
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    bytes(config.to_string())
}

fn rope(scaling: Value) -> Vec<Spoil> {
    llama(json!({"rope_scaling": scaling}))
}

pub fn cases() -> Vec<Case> {
    let size = "expected a whole number from 1 to 2097152";
    let qwen = |more: (&str, Value)| {
        let mut all = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4});
        all[more.0] = more.1;
        llama(all)
    };
    let mut cases = table(
        EVAL,
        1,
        vec![
            ("no bytes", bytes(""), "model/config.json: is not valid JSON: EOF"),
            ("half an object", bytes("{"), "is not valid JSON: EOF while parsing an object"),
            ("a list", bytes("[1]"), "must hold a JSON object"),
            (
                "weights of GPTQ",
                fields(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}})),
                "model/config.json: its weights are quantised by \"gptq\"; weights must be F32, F16 or BF16",
            ),
            (
                "quantised weights of compressed-tensors",
                fields(
                    json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}),
                ),
                "its weights are stored in the format \"pack-quantized\" of compressed-tensors; store them dense",
            ),
            (
                "sparse weights of compressed-tensors, stored without their zeros",
                fields(json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "dense",
                    "sparsity_config": {"format": "sparse-bitmask"}}})),
                "its weights are stored in the format \"sparse-bitmask\" of compressed-tensors; store them dense",
            ),
            (
                "a format of compressed-tensors with a newline",
                fields(json!({"sparsity_config": {"format": "a\nerror: b"}})),
                "the format \"a\\nerror: b\" of compressed-tensors",
            ),
            ("nested a million deep", bytes("[".repeat(1_000_000)), "recursion limit exceeded"),
            ("a comment", bytes("// ours\n{}"), "is not valid JSON: expected value"),
            ("UTF-16", bytes(b"\xff\xfe{\0}\0"), "is not valid JSON"),
            ("NaN", bytes(r#"{"model_type":NaN}"#), "is not valid JSON: expected value"),
            ("a number that no double holds", bytes(r#"{"model_type":"opt","init_std":1e999}"#), "number out of range"),
            (
                "an integer of a thousand digits",
                bytes(format!(r#"{{"hidden_size":{}}}"#, "9".repeat(1000))),
                "number out of range",
            ),
            ("half a surrogate pair", bytes(r#"{"model_type":"\ud800"}"#), "is not valid JSON"),
            (
                "larger than any",
                vec![Zeros(CONFIG, (8 << 20) + 1)],
                "has more than 8388608 bytes, which no such file needs",
            ),
            ("a folder", vec![Folder(CONFIG)], "model/config.json: is not a regular file"),
            ("a pipe", vec![Pipe(CONFIG)], "model/config.json: is not a regular file"),
            ("a link to an endless device", vec![Link(CONFIG, "/dev/zero")], "is not a regular file"),
            ("no file", vec![Gone(CONFIG)], "model/config.json: no such file; a model folder has a config.json"),
            ("no model type", bytes("{}"), "model_type is missing: this is not a transformers configuration"),
            ("a model type that is a number", fields(json!({"model_type": 1})), "model_type is missing"),
            (
                "another model type",
                fields(json!({"model_type": "mamba"})),
                "model_type 'mamba' is not supported; supported are opt, llama, mistral and qwen2",
            ),
            (
                "a model type with a newline",
                fields(json!({"model_type": "a\nerror: b"})),
                "model_type 'a\\nerror: b' is not supported",
            ),
            ("no width", fields(json!({"hidden_size": null})), "config.json: hidden_size is missing"),
            ("a width of 0", fields(json!({"hidden_size": 0})), size),
            (
                "a width below zero",
                fields(json!({"hidden_size": -32})),
                "hidden_size is -32, expected a whole number from 1",
            ),
            (
                "a width of 2⁶⁴ − 1",
                fields(json!({"hidden_size": u64::MAX})),
                "hidden_size is 18446744073709551615, expected",
            ),
            ("a width of 1e308", fields(json!({"hidden_size": 1e308})), "hidden_size is 1e+308, expected"),
            ("a width and a half", fields(json!({"hidden_size": 32.5})), "hidden_size is 32.5, expected"),
            ("a width in words", fields(json!({"hidden_size": "x".repeat(100_000)})), "hidden_size is \"xxx"),
            (
                "a width of the largest size",
                fields(json!({"hidden_size": 1 << 21})),
                "has shape [34, 32], but config.json makes it [34, 2097152]",
            ),
            ("no vocabulary", fields(json!({"vocab_size": 0})), "vocab_size is 0, expected"),
            (
                "another vocabulary",
                fields(json!({"vocab_size": 301})),
                "has shape [300, 32], but config.json makes it [301, 32]",
            ),
            ("no layers", fields(json!({"num_hidden_layers": 0})), "num_hidden_layers is 0, expected"),
            (
                "two million layers",
                fields(json!({"num_hidden_layers": 1 << 21})),
                "num_hidden_layers is 2097152, expected a whole number from 1 to 4096",
            ),
            ("a layer too many", fields(json!({"num_hidden_layers": 3})), "no tensor named model.decoder.layers.2."),
            ("a list of heads", fields(json!({"num_attention_heads": [2]})), "num_attention_heads is [2], expected"),
            (
                "heads that do not divide",
                fields(json!({"num_attention_heads": 5})),
                "num_attention_heads 5 does not divide hidden_size 32",
            ),
            ("a context of 0", fields(json!({"max_position_embeddings": 0})), "max_position_embeddings is 0, expected"),
            (
                "biases by a word",
                fields(json!({"enable_bias": "yes"})),
                "enable_bias is \"yes\", expected true or false",
            ),
            (
                "another activation",
                fields(json!({"activation_function": "mish"})),
                "activation_function 'mish' is not supported; supported are relu, gelu",
            ),
            (
                "an activation that is a number",
                fields(json!({"activation_function": 3})),
                "activation_function is 3, expected a string",
            ),
            ("a deviation of 0", fields(json!({"init_std": 0})), "init_std is 0, expected a number above 0"),
        ],
    );
    cases.extend(table(
        PROFILE,
        1,
        vec![
            (
                "shared heads that do not divide",
                llama(json!({"num_key_value_heads": 3})),
                "num_key_value_heads 3 does not divide num_attention_heads 2",
            ),
            ("heads of an odd width", llama(json!({"head_dim": 7})), "7 of a head's 7 features cannot rotate in pairs"),
            (
                "an activation of another family",
                llama(json!({"hidden_act": "gelu"})),
                "hidden_act 'gelu' is not supported; supported is silu",
            ),
            ("no epsilon", llama(json!({"rms_norm_eps": 0})), "rms_norm_eps is 0, expected a number above 0"),
            ("a rotation of base 0", llama(json!({"rope_theta": 0})), "rope_theta is 0, expected a number above 0"),
            (
                "a rotation of a base below zero",
                llama(json!({"rope_theta": -1})),
                "rope_theta is -1, expected a number above 0",
            ),
            (
                "no feature that rotates",
                llama(json!({"partial_rotary_factor": 1e-9})),
                "0 of a head's 16 features cannot rotate in pairs",
            ),
            (
                "more features than there are",
                llama(json!({"partial_rotary_factor": 2})),
                "32 of a head's 16 features cannot rotate in pairs",
            ),
            ("a scaling that is a list", rope(json!([])), "rope_scaling is [], expected an object"),
            (
                "a scaling of another kind",
                rope(json!({"rope_type": "longrope"})),
                "rope_type 'longrope' is not supported",
            ),
            ("a scaling without its factor", rope(json!({"rope_type": "linear"})), "factor is missing"),
            (
                "a scaling that overflows",
                rope(json!({"rope_type": "linear", "factor": 1e-320})),
                "the rotary frequencies that rope_theta and rope_scaling give are not finite numbers",
            ),
            (
                "fewer kinds of layers than layers",
                qwen(("layer_types", json!(["full_attention"]))),
                "layer_types names 1 layers, expected 2",
            ),
            (
                "kinds of layers that are none",
                qwen(("layer_types", json!(["x", "y"]))),
                "layer_types has \"x\", expected sliding_attention or full_attention",
            ),
            (
                "a window from a layer below zero",
                qwen(("max_window_layers", json!(-1))),
                "max_window_layers is -1, expected a whole number of at least 0",
            ),
            (
                "a window of nothing",
                llama(json!({"model_type": "mistral", "sliding_window": 0})),
                "sliding_window is 0, expected",
            ),
            (
                "two million layers",
                llama(json!({"num_hidden_layers": 1 << 21})),
                "expected a whole number from 1 to 4096",
            ),
        ],
    ));
    cases.extend(table(
        RETRAIN,
        1,
        vec![
            (
                "a feed-forward width of the largest size",
                fields(json!({"ffn_dim": 1 << 21})),
                "the plan does not fit: a step needs",
            ),
            (
                "a context of the largest size",
                fields(json!({"max_position_embeddings": 1 << 21})),
                "the plan does not fit: the hidden states alone of",
            ),
        ],
    ));
    let vast = fields(json!({"vocab_size": u64::MAX}));
    let gone = vec![Gone("model/tokenizer.json")];
    let says = "cannot train a tokenizer: a vocabulary of 18446744073709551615 is too large";
    cases.push(Case::new(PRETRAIN, "a vocabulary of 2⁶⁴ − 1", gone.into_iter().chain(vast).collect(), says, 1));
    cases
}
