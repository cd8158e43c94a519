//! Adapters.

use serde_json::{Value, json};

use crate::case::{ADAPTED, Case, MERGE, RETRAIN, flags, table};
use crate::folder::Spoil::{self, *};

const CONFIG: &str = "adapter/adapter_config.json";
const WEIGHTS: &str = "adapter/adapter_model.safetensors";
const A: &str = "base_model.model.lm_head.lora_A.weight";

fn fields(fields: Value) -> Vec<Spoil> {
    vec![Fields(CONFIG, fields)]
}

fn bytes(bytes: impl AsRef<[u8]>) -> Vec<Spoil> {
    vec![Bytes(CONFIG, bytes.as_ref().to_vec())]
}

fn entry(edit: fn(&mut Value)) -> Vec<Spoil> {
    vec![Header(WEIGHTS, edit)]
}

fn rename(header: &mut Value, to: &str) {
    let entry = header.as_object_mut().unwrap().shift_remove(A).unwrap();
    header[to] = entry;
}

pub fn cases() -> Vec<Case> {
    let rank = "adapter/adapter_config.json: \"r\" must be a positive integer";
    table(
        ADAPTED,
        1,
        vec![
            ("no bytes", bytes(""), "adapter/adapter_config.json: is not valid JSON"),
            ("a list", bytes("[]"), "adapter/adapter_config.json: must hold a JSON object"),
            ("nested 1,000 deep", bytes(format!("{{\"x\":{}", "[".repeat(1000))), "recursion limit exceeded"),
            ("NaN", bytes(r#"{"peft_type":"LORA","r":16,"lora_alpha":NaN}"#), "is not valid JSON"),
            ("larger than any", vec![Zeros(CONFIG, (8 << 20) + 1)], "has more than 8388608 bytes"),
            ("no kind", fields(json!({"peft_type": null})), "has no \"peft_type\"; is it a PEFT adapter?"),
            (
                "another kind",
                fields(json!({"peft_type": "IA3"})),
                "\"peft_type\" is \"IA3\"; only \"LORA\" is supported",
            ),
            ("a rank of 0", fields(json!({"r": 0})), rank),
            ("a rank below zero", fields(json!({"r": -1})), rank),
            ("a rank of 1e30", fields(json!({"r": 1e30})), rank),
            ("a rank in words", fields(json!({"r": "16"})), rank),
            (
                "a rank of 2⁶⁴ − 1",
                fields(json!({"r": u64::MAX})),
                "with rank 18446744073709551615 (adapter_config.json) it must be [rank, in]",
            ),
            ("another rank", fields(json!({"r": 4})), "lora_A.weight has shape [16, 32]; with rank 4"),
            (
                "a rank by an expression",
                fields(json!({"rank_pattern": {".*": 1}})),
                "\"rank_pattern\" has the regular expression \".*\"",
            ),
            (
                "a rank of 0 for one",
                fields(json!({"rank_pattern": {"q_proj": 0}})),
                "\"rank_pattern\" has 0 for \"q_proj\"",
            ),
            ("an alpha in words", fields(json!({"lora_alpha": "x"})), "\"lora_alpha\" must be a number"),
            (
                "an alpha of 1e308",
                fields(json!({"lora_alpha": 1e308})),
                "\"lora_alpha\" must be a number that f32 can hold",
            ),
            (
                "an alpha of 1e308 for one",
                fields(json!({"alpha_pattern": {"q_proj": 1e308}})),
                "\"alpha_pattern\" has 1e+308 for \"q_proj\"",
            ),
            (
                "an alpha of null for one",
                fields(json!({"alpha_pattern": {"q_proj": null}})),
                "\"alpha_pattern\" has null for \"q_proj\"",
            ),
            (
                "targets that are numbers",
                fields(json!({"target_modules": [1]})),
                "\"target_modules\" must be a name or a list of names",
            ),
            ("DoRA", fields(json!({"use_dora": true})), "\"use_dora\" is true, which is not supported"),
            (
                "aLoRA",
                fields(json!({"alora_invocation_tokens": [5, 7]})),
                "\"alora_invocation_tokens\" is [5,7]: an adapter (aLoRA) that is off until these tokens, which is not supported",
            ),
            (
                "BD-LoRA",
                fields(json!({"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}})),
                "\"use_bdlora\" is {\"target_modules_bd_a\":[\"q_proj\"],\"nblocks\":2}: an adapter (BD-LoRA) of block-diagonal",
            ),
            (
                "a router among adapters",
                fields(json!({"arrow_config": {"top_k": 3}})),
                "\"arrow_config\" is {\"top_k\":3}: a router (Arrow) among other adapters, which is not supported",
            ),
            (
                "KaSA",
                fields(json!({"kasa_config": {"beta": 1e-4}})),
                "\"kasa_config\" is {\"beta\":0.0001}: an adapter (KaSA) with a diagonal between B and A",
            ),
            ("KaSA by its defaults", fields(json!({"kasa_config": {}})), "\"kasa_config\" is {}: an adapter (KaSA)"),
            (
                "rank-stabilised LoRA, as a word",
                fields(json!({"use_rslora": "yes"})),
                "\"use_rslora\" is \"yes\", expected true or false",
            ),
            ("biases", fields(json!({"bias": "all"})), "\"bias\" is \"all\"; only \"none\" is supported"),
            (
                "PiSSA",
                fields(json!({"init_lora_weights": "pissa"})),
                "convert the adapter to plain LoRA with PEFT first",
            ),
            (
                "LoRA-GA",
                fields(json!({"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "stable"}})),
                "\"init_lora_weights\" is \"lora_ga\": convert the adapter to plain LoRA with PEFT first",
            ),
            (
                "no configuration",
                vec![Gone(CONFIG)],
                "adapter/adapter_config.json: no such file; an adapter folder has",
            ),
            ("no folder", vec![Gone("adapter")], "adapter/adapter_config.json: no such file"),
            ("no weights", vec![Gone(WEIGHTS)], "adapter/adapter_model.safetensors: no such file"),
            (
                "weights that can run code",
                vec![Renamed(WEIGHTS, "adapter/adapter_model.bin")],
                "there is only adapter_model.bin, which can run code when read",
            ),
            ("weights cut by one byte", vec![Shorter(WEIGHTS, 1)], "it is truncated; download it again"),
            ("weights in a pipe", vec![Pipe(WEIGHTS)], "adapter/adapter_model.safetensors: no such file"),
            (
                "a matrix without its partner",
                entry(|h| rename(h, "x.lora_A.weight")),
                "module lm_head has only one of lora_A and lora_B",
            ),
            ("a tensor of no adapter", entry(|h| rename(h, "foo")), "tensor foo is not part of a plain LoRA adapter"),
            (
                "integers for a matrix",
                entry(|h| h[A]["dtype"] = json!("I32")),
                "is I32; weights must be F32, F16 or BF16",
            ),
            ("a matrix turned over", entry(|h| h[A]["shape"] = json!([32, 16])), "has shape [32, 16]; with rank 16"),
            ("a vector for a matrix", entry(|h| h[A]["shape"] = json!([512])), "has shape [512]; with rank 16"),
            (
                "a NaN",
                vec![Spoil::Value(WEIGHTS, A, f32::NAN)],
                "the perplexity is not a number: base_model.model.lm_head.lora_A.weight in adapter/adapter_model.safetensors holds a value that is not finite",
            ),
            (
                "modules that the model has not",
                entry(|h| {
                    let pairs: Vec<(String, Value)> = h
                        .as_object_mut()
                        .unwrap()
                        .iter()
                        .map(|(k, v)| (k.replace("lm_head", "lm_tail"), v.clone()))
                        .collect();
                    *h = Value::Object(pairs.into_iter().collect());
                }),
                "adapter adapter: the model has no module lm_tail: it belongs to another model",
            ),
        ],
    )
}

/// What only merging finds.
pub fn merging() -> Vec<Case> {
    let mut cases = table(
        MERGE,
        1,
        vec![
            ("another rank", fields(json!({"r": 4})), "lora_A.weight has shape [16, 32]; with rank 4"),
            (
                "a number that is none",
                vec![Spoil::Value(WEIGHTS, A, f32::NAN)],
                "lm_head.weight: merge: entry (0, 0) becomes NaN, which f32 does not hold",
            ),
            (
                "a module of another model",
                entry(|header| {
                    for part in ["A", "B"] {
                        let of = |module: &str| format!("base_model.model.{module}.lora_{part}.weight");
                        let moved = header.as_object_mut().unwrap().shift_remove(&of("lm_head")).unwrap();
                        header[of("model.decoder.layers.9.fc1")] = moved;
                    }
                }),
                "adapter adapter: the model has no module model.decoder.layers.9.fc1: it belongs to another model",
            ),
            ("no adapter", vec![Gone(CONFIG)], "adapter/adapter_config.json: no such file; an adapter folder has"),
        ],
    );
    cases.extend(flags(
        MERGE,
        2,
        vec![
            ("--form subtract", "invalid value 'subtract' for '--form <FORM>'"),
            ("--dtype i8", "invalid value 'i8' for '--dtype <TYPE>'"),
        ],
    ));
    cases.extend(flags(
        MERGE,
        1,
        vec![("--out model", "model: holds a model already, and models are never written over")],
    ));
    cases
}

/// `retrain` that is to start from an adapter.
pub fn starting() -> Vec<Case> {
    let mut cases = flags(
        RETRAIN,
        2,
        vec![
            ("--adapter adapter --method norms", "--adapter adapter has LoRA on model.decoder.layers.0.self_attn."),
            ("--adapter adapter --method full", "which full does not train: choose --method perp"),
            (
                "--adapter adapter --method mask-lora",
                "is LORA, and mask-lora trains MASK_LORA: an adapter trains on in the form",
            ),
            ("--adapter adapter --method scale-lora", "is LORA, and scale-lora trains SCALE_LORA"),
            ("--adapter adapter --parts lora", "--adapter adapter has LoRA on the head, which lora does not train"),
            ("--adapter adapter --targets fc1", "which --targets leaves out: name it there"),
            ("--adapter adapter --cycles 2", "--adapter adapter goes with one cycle"),
        ],
    );
    let start = |title, spoil, says| Case::new(RETRAIN, title, spoil, says, 1).with("--adapter adapter");
    cases.push(start("no adapter to start from", vec![Gone("adapter")], "adapter/adapter_config.json: no such file"));
    cases.push(start(
        "DoRA to start from",
        fields(json!({"use_dora": true})),
        "\"use_dora\" is true, which is not supported",
    ));
    cases.push(start(
        "another model's adapter to start from",
        entry(|header| {
            for name in header.as_object().unwrap().keys().cloned().collect::<Vec<_>>() {
                if name.contains("layers.1") {
                    let entry = header.as_object_mut().unwrap().shift_remove(&name).unwrap();
                    header[name.replace("layers.1", "layers.7")] = entry;
                }
            }
        }),
        "layers.7.self_attn.",
    ));
    cases
}
