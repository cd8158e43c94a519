//! Weight files, what they hold, and their index.

use serde_json::json;

use crate::case::{Case, EVAL, INSPECT, PRETRAIN, PRUNE, RETRAIN, table};
use crate::folder::Spoil::{self, *};
use crate::folder::{CONFIG, INDEX, WEIGHTS, safetensors, tensor};

/// `model.safetensors` with a header of one tensor `a`, and so many zeros behind it.
fn one(dtype: &str, shape: &str, offsets: &str, data: usize) -> Vec<Spoil> {
    vec![safetensors(tensor(dtype, shape, offsets), data)]
}

/// The same with a header as it stands.
fn header(text: &str, data: usize) -> Vec<Spoil> {
    vec![safetensors(text, data)]
}

/// Bytes in the place of the whole file.
fn bytes(bytes: &[u8]) -> Vec<Spoil> {
    vec![Bytes(WEIGHTS, bytes.to_vec())]
}

/// Two tensors of one f32 each, at these offsets.
fn two(first: &str, second: &str, data: usize) -> Vec<Spoil> {
    let entry =
        |name: &str, offsets: &str| format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}"#);
    header(&format!("{{{},{}}}", entry("a", first), entry("b", second)), data)
}

pub fn files() -> Vec<Case> {
    let max = u64::MAX;
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    table(
        INSPECT,
        1,
        vec![
            ("no bytes", bytes(b""), "has only 0 bytes: it is truncated; copy or download it again"),
            ("fewer bytes than a length", bytes(b"1234567"), "has only 7 bytes: it is truncated"),
            ("cut by one byte", vec![Shorter(WEIGHTS, 1)], "111359 follow: it is truncated"),
            ("cut in the middle", vec![Shorter(WEIGHTS, 50_000)], "it is truncated; download it again"),
            ("cut in the header", vec![Shorter(WEIGHTS, 113_000)], "it is truncated (copy or download it again)"),
            ("one byte too many", one("F32", "[1]", "[0,4]", 5), "5 follow: it has bytes that belong to no tensor"),
            ("a header of no bytes", header("", 0), "invalid JSON in header: EOF"),
            (
                "a header of 2⁶⁴ − 1 bytes",
                bytes(&max.to_le_bytes()),
                "is not a safetensors file: its first 8 bytes give its header 18446744073709551615 bytes",
            ),
            ("a header of 2⁶³ bytes", bytes(&(1u64 << 63).to_le_bytes()), "is not a safetensors file"),
            (
                "a header longer than the file",
                bytes(&1000u64.to_le_bytes()),
                "its header should have 1000 bytes, but the file has only 8",
            ),
            ("a header that is no JSON", header("not json", 0), "invalid JSON in header"),
            ("a header that is not UTF-8", vec![safetensors(b"\xff\xfe{}", 0)], "invalid UTF-8 in header"),
            ("a header that is a list", header("[]", 0), "invalid type: sequence"),
            ("a header that is null", header("null", 0), "invalid type: null"),
            ("a header nested 100,000 deep", header(&deep, 0), "recursion limit exceeded"),
            (
                "metadata that are no strings",
                header(r#"{"__metadata__":{"a":1}}"#, 0),
                "integer `1`, expected a string",
            ),
            ("offsets that overlap", two("[0,4]", "[2,6]", 6), "invalid offset for tensor `b`"),
            ("offsets with a hole between", two("[0,4]", "[8,12]", 12), "invalid offset for tensor `b`"),
            (
                "offsets past the end",
                one("F32", "[2]", "[0,8]", 4),
                "describes 8 bytes of tensors, but 4 follow: it is truncated",
            ),
            ("offsets that run backwards", one("F32", "[1]", "[4,0]", 4), "invalid offset for tensor `a`"),
            ("offsets that begin late", one("F32", "[1]", "[4,8]", 8), "invalid offset for tensor `a`"),
            ("offsets below zero", one("F32", "[1]", "[-4,0]", 4), "integer `-4`, expected usize"),
            (
                "offsets at the end of 64 bits",
                one("F32", "[1]", "[18446744073709551611,18446744073709551615]", 4),
                "invalid offset for tensor `a`",
            ),
            (
                "offsets beyond 64 bits",
                one("F32", "[1]", "[18446744073709551612,18446744073709551616]", 4),
                "expected usize",
            ),
            ("three offsets", one("F32", "[1]", "[0,4,8]", 4), "invalid length 3, expected 2"),
            (
                "a shape whose bytes overflow",
                one("F32", "[9223372036854775808,2]", "[0,4]", 4),
                "overflow computing buffer size",
            ),
            (
                "a shape that overflows to nothing",
                one("F32", "[4294967296,4294967296]", "[0,0]", 0),
                "overflow computing buffer size",
            ),
            ("a dimension beyond 64 bits", one("F32", "[18446744073709551616]", "[0,4]", 4), "expected usize"),
            ("a dimension below zero", one("F32", "[-1]", "[0,4]", 4), "integer `-1`, expected usize"),
            ("a dimension of 1.0", one("F32", "[1.0]", "[0,4]", 4), "floating point `1.0`, expected usize"),
            ("a shape of more than its bytes", one("F32", "[3]", "[0,4]", 4), "invalid shape, data type, or offset"),
            (
                "a shape with a newline in its name",
                header("{\"a\\nerror: b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,4]}}", 4),
                "invalid shape",
            ),
            ("no shape", header(r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4), "missing field `shape`"),
            ("an element type that is none", one("Q9", "[1]", "[0,4]", 4), "unknown variant `Q9`"),
            ("an element type of half a byte, cut", one("F4", "[3]", "[0,1]", 1), "not end up at a byte boundary"),
            (
                "a name twice, the same bytes",
                header(&format!("{{{0},{0}}}", r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 4),
                "its header has tensor a twice; only one of them can be meant",
            ),
            ("a web page", bytes(b"<!DOCTYPE html><html><body>404</body></html>"), "is not a safetensors file"),
            ("a pickle in a zip", bytes(&[&b"PK\x03\x04"[..], &[0; 100]].concat()), "or not a safetensors file"),
            (
                "a Git LFS pointer",
                bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
                "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`",
            ),
            ("a folder", vec![Folder(WEIGHTS)], "is not a regular file"),
            ("a pipe that nobody writes to", vec![Pipe(WEIGHTS)], "is not a regular file"),
            ("a link to an endless device", vec![Link(WEIGHTS, "/dev/zero")], "is not a regular file"),
            ("a link to nothing", vec![Link(WEIGHTS, "nowhere")], "cannot open model/model.safetensors: No such file"),
            ("a link to itself", vec![Link(WEIGHTS, "model.safetensors")], "Too many levels of symbolic links"),
            (
                "no file",
                vec![Gone(WEIGHTS)],
                "no weights: looked for model.safetensors and model.safetensors.index.json",
            ),
            (
                "weights that can run code",
                vec![Renamed(WEIGHTS, "model/pytorch_model.bin")],
                "there is only pytorch_model.bin, which can run code when read",
            ),
            (
                "weights under another name",
                vec![Renamed(WEIGHTS, "model/weights.safetensors")],
                "under other names: rename the file, or add the index",
            ),
            (
                "a name twice, other bytes",
                header(
                    r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                    8,
                ),
                "invalid offset for tensor `a`",
            ),
        ],
    )
}

const FC1: &str = "model.decoder.layers.1.fc1.weight";
const EMBEDDING: &str = "model.decoder.embed_tokens.weight";

/// The header of model.safetensors with the entry of `FC1` changed.
fn entry(edit: fn(&mut serde_json::Value)) -> Vec<Spoil> {
    vec![Header(WEIGHTS, edit)]
}

pub fn tensors() -> Vec<Case> {
    let nan = || vec![Value(WEIGHTS, FC1, f32::NAN)];
    let infinite = || vec![Value(WEIGHTS, FC1, f32::INFINITY)];
    let mut cases = table(
        EVAL,
        1,
        vec![
            (
                "integers for weights",
                entry(|h| h[FC1]["dtype"] = json!("I32")),
                "tensor model.decoder.layers.1.fc1.weight is I32; weights must be F32, F16 or BF16",
            ),
            ("doubles for weights", entry(|h| h[FC1]["dtype"] = json!("F64")), "invalid shape, data type, or offset"),
            (
                "a shape turned over",
                entry(|h| h[FC1]["shape"] = json!([32, 64])),
                "has shape [32, 64], but config.json makes it [64, 32]",
            ),
            ("a dimension too many", entry(|h| h[FC1]["shape"] = json!([64, 32, 1])), "has shape [64, 32, 1]"),
            ("a vector for a matrix", entry(|h| h[FC1]["shape"] = json!([2048])), "has shape [2048]"),
            (
                "a tensor misspelt",
                entry(|h| {
                    let entry = h.as_object_mut().unwrap().shift_remove(FC1).unwrap();
                    h["model.decoder.layers.1.fc1.wieght"] = entry;
                }),
                "no tensor named model.decoder.layers.1.fc1.weight; the closest names are model.decoder.layers.0.fc1.weight",
            ),
            (
                "a NaN among the weights",
                nan(),
                "the perplexity is not a number: model.decoder.layers.1.fc1.weight in model/model.safetensors holds a value that is not finite",
            ),
            (
                "an infinity in the embedding",
                vec![
                    Value(WEIGHTS, EMBEDDING, f32::INFINITY),
                    Value(WEIGHTS, "model.decoder.final_layer_norm.weight", f32::NAN),
                ],
                "the perplexity is not a number: model.decoder.embed_tokens.weight in",
            ),
            (
                "weights that overflow",
                vec![Value(WEIGHTS, FC1, f32::MAX), Value(WEIGHTS, "model.decoder.layers.1.fc2.weight", f32::MAX)],
                "the perplexity is not a number: all weights are finite, and activations overflow",
            ),
        ],
    );
    cases.extend(table(
        PRUNE,
        1,
        vec![
            (
                "a NaN among the weights",
                nan(),
                "model.decoder.layers.1.fc1.weight: entry [0, 0] is NaN; the model is damaged",
            ),
            (
                "an infinity among the weights",
                infinite(),
                "model.decoder.layers.1.fc1.weight: entry [0, 0] is inf; the model is damaged",
            ),
            (
                "the model folder missing",
                vec![Gone("model")],
                "model: no such folder; name a model folder with config.json",
            ),
            ("the model folder a file", vec![Bytes("model", b"x".to_vec())], "model: is not valid JSON"),
        ],
    ));
    cases.extend(table(
        RETRAIN,
        1,
        vec![
            (
                "a NaN among the weights",
                nan(),
                "model.decoder.layers.1.fc1.weight: entry [0, 0] is NaN; the model is damaged",
            ),
            (
                "a NaN that is not pruned",
                vec![Value(WEIGHTS, "model.decoder.final_layer_norm.bias", f32::NAN)],
                "; model.decoder.final_layer_norm.bias of the model holds a value that is not finite",
            ),
        ],
    ));
    let calibrated = "--criterion wanda --calibrate train.txt";
    cases.push(Case::new(PRUNE, "a NaN, calibrated", nan(), "fc1.weight: entry [0, 0] is NaN", 1).with(calibrated));
    let calibrated = "--criterion sparsegpt --calibrate train.txt";
    cases.push(Case::new(PRUNE, "an infinity, calibrated", infinite(), "entry [0, 0] is inf", 1).with(calibrated));
    let overflow = vec![Fields(CONFIG, json!({"init_std": 1e38}))];
    cases.push(Case::new(PRETRAIN, "a deviation that overflows", overflow, "not finite", 1));
    cases
}

/// The weights as a shard `a.safetensors`, and this index.
fn index(text: &str) -> Vec<Spoil> {
    vec![Renamed(WEIGHTS, "model/a.safetensors"), Bytes(INDEX, text.as_bytes().to_vec())]
}

/// An index in which tensor `a` is in this file.
fn place(file: &str) -> Vec<Spoil> {
    index(&json!({"metadata": {}, "weight_map": {"a": file}}).to_string())
}

/// Something else on top.
fn and(mut spoilt: Vec<Spoil>, more: Spoil) -> Vec<Spoil> {
    spoilt.push(more);
    spoilt
}

pub fn indices() -> Vec<Case> {
    let plain = "which is not a plain file name; weight files must lie in the model folder itself";
    let deep = |n| format!("{{\"weight_map\":{{\"a\":{}", "[".repeat(n));
    table(
        INSPECT,
        1,
        vec![
            ("no bytes", index(""), "model.safetensors.index.json: is not valid JSON: EOF"),
            ("half an object", index("{"), "is not valid JSON: EOF while parsing an object"),
            ("a list", index("[]"), "must hold a JSON object"),
            ("no map", index("{}"), "has no object \"weight_map\""),
            ("a map that is null", index(r#"{"weight_map":null}"#), "has no object \"weight_map\""),
            ("a map that is a list", index(r#"{"weight_map":[]}"#), "has no object \"weight_map\""),
            ("a map of nothing", index(r#"{"weight_map":{}}"#), "its \"weight_map\" names no tensors"),
            ("nested 100,000 deep", index(&deep(100_000)), "recursion limit exceeded"),
            ("a number that no double holds", index(r#"{"weight_map":{"a":1e999}}"#), "number out of range"),
            ("NaN", index(r#"{"weight_map":NaN}"#), "is not valid JSON: expected value"),
            ("a byte-order mark", index("\u{feff}{}"), "is not valid JSON: expected value at line 1 column 1"),
            ("more after the end", index("{} x"), "trailing characters"),
            (
                "not UTF-8",
                vec![
                    Renamed(WEIGHTS, "model/a.safetensors"),
                    Bytes(INDEX, b"{\"weight_map\":{\"\xff\":\"a\"}}".to_vec()),
                ],
                "invalid unicode",
            ),
            (
                "larger than any",
                vec![Renamed(WEIGHTS, "model/a.safetensors"), Zeros(INDEX, (64 << 20) + 1)],
                "has more than 67108864 bytes, which no such file needs",
            ),
            ("a pipe", vec![Renamed(WEIGHTS, "model/a.safetensors"), Pipe(INDEX)], "is not a regular file"),
            ("a place that is a number", index(r#"{"weight_map":{"a":1}}"#), plain),
            ("a place that is null", index(r#"{"weight_map":{"a":null}}"#), plain),
            ("a place with no name", place(""), plain),
            ("the folder itself", place("."), plain),
            ("the folder above", place(".."), plain),
            (
                "a file above",
                place("../model.safetensors"),
                "tensor a is said to be in \"../model.safetensors\", which is not a plain file name",
            ),
            ("a file above, by a way round", place("a/../../b.safetensors"), plain),
            ("a file anywhere", place("/etc/passwd"), plain),
            ("a file of Windows'", place("..\\model.safetensors"), plain),
            ("a drive of Windows'", place("c:model.safetensors"), plain),
            ("a name with a zero byte", place("a\0b"), plain),
            ("a name with a newline", place("a\nb"), "model/a\\nb: no such file"),
            ("a name of 5,000 letters", place(&"x".repeat(5000)), "xxx…"),
            (
                "a tensor with a newline",
                index(r#"{"weight_map":{"a\nerror: b":"b.safetensors"}}"#),
                "needs it for a\\nerror: b; download it",
            ),
            (
                "a shard that is missing",
                place("b.safetensors"),
                "model/b.safetensors: no such file, but model.safetensors.index.json needs it for a; download it",
            ),
            (
                "a shard without the tensor",
                place("a.safetensors"),
                "model/a.safetensors: no tensor a, though model/model.safetensors.index.json says it is there",
            ),
            ("the configuration as a shard", place("config.json"), "model/config.json: is not a safetensors file"),
            ("the index as its own shard", place("model.safetensors.index.json"), "is not a safetensors file"),
            (
                "a shard that is a link to nothing",
                and(place("b.safetensors"), Link("model/b.safetensors", "nowhere")),
                "cannot open model/b.safetensors",
            ),
            (
                "a tensor in two shards",
                and(
                    index(
                        r#"{"weight_map":{"model.decoder.embed_tokens.weight":"a.safetensors","x":"b.safetensors"}}"#,
                    ),
                    Link("model/b.safetensors", "a.safetensors"),
                ),
                "is both in model/a.safetensors and in model/b.safetensors",
            ),
        ],
    )
}
