//! tokenizer.json and what may stand for it.

use serde_json::{Value, json};

use crate::case::{Case, EVAL, table};
use crate::folder::Spoil::{self, *};

const JSON: &str = "model/tokenizer.json";
const VOCAB: &str = "model/vocab.json";
const MERGES: &str = "model/merges.txt";
const SETTINGS: &str = "model/tokenizer_config.json";

fn bytes(bytes: impl AsRef<[u8]>) -> Vec<Spoil> {
    vec![Bytes(JSON, bytes.as_ref().to_vec())]
}

fn fields(fields: Value) -> Vec<Spoil> {
    vec![Fields(JSON, fields)]
}

fn bpe(more: Value) -> Vec<Spoil> {
    let mut model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []});
    for (field, value) in more.as_object().unwrap() {
        model[field] = value.clone();
    }
    fields(json!({"model": model, "added_tokens": [], "post_processor": null}))
}

fn split(expression: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// vocab.json and merges.txt in the place of tokenizer.json.
fn two(vocab: &str, merges: &str) -> Vec<Spoil> {
    vec![Gone(JSON), Bytes(VOCAB, vocab.as_bytes().to_vec()), Bytes(MERGES, merges.as_bytes().to_vec())]
}

pub fn cases() -> Vec<Case> {
    let invalid = "model/tokenizer.json: is not a valid tokenizer";
    let none = "model: no tokenizer: looked for tokenizer.json, and for vocab.json with merges.txt";
    let grown = replace(json!({"String": "e"}), &"e".repeat(1000));
    let template = json!({
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    });
    table(
        EVAL,
        1,
        vec![
            ("no bytes", bytes(""), invalid),
            ("null", bytes("null"), invalid),
            ("nested a million deep", bytes("[".repeat(1_000_000)), invalid),
            ("cut in the middle", vec![Shorter(JSON, 3000)], invalid),
            ("cut by two bytes", vec![Shorter(JSON, 2)], invalid),
            ("not UTF-8", bytes(b"{\"\xff\":1}"), invalid),
            ("no model", fields(json!({"model": null})), invalid),
            ("a model of another kind", bpe(json!({"type": "X"})), invalid),
            ("an id below zero", bpe(json!({"vocab": {"a": -1}})), "integer `-1`, expected u32"),
            (
                "an id that the model has not",
                bpe(json!({"vocab": {"a": 0, "e": 299_999}})),
                "token 299999 is outside the vocabulary of 300: the tokenizer is another model's",
            ),
            ("a merge of one symbol", bpe(json!({"merges": ["a"]})), "Merges text file invalid at line 1"),
            ("a merge of unknown symbols", bpe(json!({"merges": ["zzz yyy"]})), "Token `zzz` out of vocabulary"),
            ("no token at all", bpe(json!({"vocab": {}})), "the text has 0 tokens, but one window takes 32"),
            (
                "an unknown token that is unknown",
                bpe(json!({"unk_token": "<nope>"})),
                "eval.txt: the tokenizer failed: Unk token `<nope>` not found",
            ),
            ("dropout of 2", bpe(json!({"dropout": 2.0})), "Dropout should be between 0 and 1"),
            ("an expression that is none", fields(json!({"pre_tokenizer": split("(")})), invalid),
            ("a splitter of another kind", fields(json!({"pre_tokenizer": {"type": "X"}})), invalid),
            ("padding of another kind", fields(json!({"padding": {"strategy": "X"}})), invalid),
            (
                "a template over a token that is nowhere",
                fields(json!({"post_processor": template})),
                "eval.txt: the tokenizer failed: the tokenizer library broke down over it",
            ),
            (
                "letters that become a thousand, twice",
                fields(json!({"normalizer": {"type": "Sequence", "normalizers": [grown, grown]}})),
                "its normalizer could make a text 1000000 times as long",
            ),
            (
                "text put between any two letters",
                fields(json!({"normalizer": replace(json!({"Regex": ""}), &"e".repeat(2000))})),
                "could make a text 2001 times as long",
            ),
            (
                "a long text in front",
                fields(json!({"normalizer": {"type": "Prepend", "prepend": "e".repeat(2000)}})),
                "could make a text 2001 times as long",
            ),
            ("a folder", vec![Folder(JSON)], none),
            ("a pipe", vec![Pipe(JSON)], none),
            ("a link to nothing", vec![Link(JSON, "nowhere")], none),
            ("no file", vec![Gone(JSON)], none),
            (
                "a model of SentencePiece's alone",
                vec![Renamed(JSON, "model/tokenizer.model")],
                "there is only tokenizer.model",
            ),
            ("settings cut", vec![Bytes(SETTINGS, b"{".to_vec())], "model/tokenizer_config.json: is not valid JSON"),
            (
                "settings in a list",
                vec![Bytes(SETTINGS, b"[]".to_vec())],
                "model/tokenizer_config.json: must hold a JSON object",
            ),
            ("a vocabulary that is a list", two("[]", ""), "model/vocab.json: must map tokens to ids"),
            ("a vocabulary with an id below zero", two(r#"{"a":-1}"#, ""), "model/vocab.json: must map tokens to ids"),
            (
                "a merge of three symbols",
                two(r#"{"a":0}"#, "a b c"),
                "model/merges.txt: line 1: \"a b c\" is not two symbols",
            ),
            ("a merge that is nowhere", two(r#"{"a":0}"#, "x y"), "model/merges.txt: is not a valid tokenizer"),
        ],
    )
}
