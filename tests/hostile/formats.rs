//! Packed weight files.

use crate::case::{Case, EVAL, INSPECT, PRUNE, flags, table};
use crate::folder::Spoil::{self, *};
use crate::folder::{CONFIG, WEIGHTS};

const PACKED: &str = "model/model-packed.safetensors";

/// A packed file in the place of the weights: the entries of its header, each with as many zeros as it asks for.
fn file(format: &str, tensors: &[(&str, &str, &str, usize)]) -> Vec<Spoil> {
    let mut header = format!(r#"{{"__metadata__":{{"format":"{format}"}}"#);
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes;
        header += &format!(r#","{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{at},{end}]}}"#);
        at = end;
    }
    header += "}";
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; at]].concat();
    vec![Gone(WEIGHTS), Bytes(PACKED, bytes)]
}

/// The same of this version.
fn packed(tensors: &[(&str, &str, &str, usize)]) -> Vec<Spoil> {
    file("perp-engine-packed-1", tensors)
}

pub fn files() -> Vec<Case> {
    let (shape, bits) = (("a.shape", "U64", "[2]", 16), ("a.bits", "U64", "[0,0]", 0));
    let (starts, values) = (("a.starts", "U32", "[0,0]", 0), ("a.values", "F16", "[0]", 0));
    let mut cut = packed(&[shape, bits, starts, values]);
    cut.push(Shorter(PACKED, 1));
    table(
        INSPECT,
        1,
        vec![
            ("weights under the packed name", vec![Renamed(WEIGHTS, PACKED)], "give its format as \"pt\""),
            ("a later version", file("perp-engine-packed-2", &[]), "give its format as \"perp-engine-packed-2\""),
            ("a mask alone", packed(&[bits]), "the packed matrix a has no .shape"),
            ("a matrix without starts", packed(&[shape, bits, values]), "the packed matrix a has no .starts"),
            ("a matrix without values", packed(&[shape, bits, starts]), "the packed matrix a has no .values"),
            ("values alone", packed(&[values]), "a.values is part of a packed matrix that has no .bits"),
            (
                "a mask of bytes",
                packed(&[shape, ("a.bits", "U8", "[0,0]", 0), starts, values]),
                "a.bits is U8, not U64; copy or download it again",
            ),
            (
                "starts of 64 bits",
                packed(&[shape, bits, ("a.starts", "U64", "[0,0]", 0), values]),
                "a.starts is U64, not U32",
            ),
            (
                "values of integers",
                packed(&[shape, bits, starts, ("a.values", "I8", "[0]", 0)]),
                "tensor a.values is I8; weights must be F32, F16 or BF16",
            ),
            (
                "three dimensions",
                packed(&[("a.shape", "U64", "[3]", 24), bits, starts, values]),
                "a.shape holds no rows and columns",
            ),
            (
                "more values than entries",
                packed(&[shape, bits, starts, ("a.values", "F16", "[3]", 6)]),
                "a is said to be 0×0, but its parts have the shapes [0, 0], [0, 0] and [3]",
            ),
            (
                "a mask of another shape",
                packed(&[shape, ("a.bits", "U64", "[1,1]", 8), starts, values]),
                "a is said to be 0×0, but its parts have the shapes [1, 1]",
            ),
            (
                "a matrix packed and dense",
                packed(&[shape, bits, starts, values, ("a", "F16", "[0,0]", 0)]),
                "the parts of a packed matrix",
            ),
            ("cut by one byte", cut, "it is truncated"),
        ],
    )
}

pub fn models() -> Vec<Case> {
    let lacking = table(
        EVAL,
        1,
        vec![
            ("a packed file of nothing", packed(&[]), "no tensor named"),
            (
                "no configuration",
                vec![Gone(CONFIG)],
                "model/config.json: no such file; a model folder has a config.json beside its weights",
            ),
        ],
    );
    let formats = flags(PRUNE, 2, vec![("--out-format safetensors", "[possible values: hf, packed]")]);
    lacking.into_iter().chain(formats).collect()
}
