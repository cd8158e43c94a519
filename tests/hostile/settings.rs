//! Files that users write beside flags: sweeps, sparsities of layers; and reports, which runs write.

use crate::case::{Case, PRUNE, REPORT, SWEEP, table};
use crate::folder::Spoil::{self, *};

const FILE: &str = "sweep.toml";
const RUN: &str = "run.json";

fn text(text: impl Into<Vec<u8>>) -> Vec<Spoil> {
    vec![Bytes(FILE, text.into())]
}

pub fn sweeps() -> Vec<Case> {
    let wide = |axes: usize| -> String {
        let names = ["seed", "steps", "rank", "batch", "lr", "alpha", "warmup", "clip", "cycles", "seq-len"];
        let values = (1..=100).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
        names[..axes].iter().fold("[grid]\n".into(), |all, name| format!("{all}{name} = [{values}]\n"))
    };
    let irregular = "sweep.toml: cannot be read: it is not a regular file";
    table(
        SWEEP,
        2,
        vec![
            ("no file", vec![], "sweep.toml: cannot be read: No such file"),
            ("a folder", vec![Folder(FILE)], irregular),
            ("a pipe", vec![Pipe(FILE)], irregular),
            ("an endless device", vec![Link(FILE, "/dev/zero")], irregular),
            ("larger than any", vec![Zeros(FILE, 2 << 30)], "it has more than 8388608 bytes, which no such file needs"),
            ("not UTF-8", text(b"title = \"\xff\""), "stream did not contain valid UTF-8"),
            ("half a table", text("[run"), "sweep.toml:1:"),
            ("nested 10,000 deep", text(format!("[grid]\nlr = {}", "[".repeat(10_000))), "sweep.toml:"),
            ("no grid, but its name misspelt", text("[grit]\nlr = [1]"), "unknown field `grit`"),
            ("a flag that is none", text("[grid]\nspeed = [1]"), "retrain has no flag --speed"),
            ("an axis of nothing", text("[grid]\nlr = []"), "lr is an empty list: no run would be left"),
            ("a table for a value", text("[grid]\nlr = [{}]"), "sweep.toml:"),
            (
                "a million runs",
                text(wide(3)),
                "the sweep has 1000000 runs, and no more than 10000 are taken: give its axes fewer values",
            ),
            ("runs past counting", text(wide(10)), "the sweep has 18446744073709551615 runs, and no more than 10000"),
        ],
    )
}

pub fn sparsities() -> Vec<Case> {
    let case = |name: &str, file: &'static str, spoil: fn(&'static str) -> Spoil, says: &str| {
        Case::new(PRUNE, name, vec![spoil(file)], format!("--allocation {file}: {says}"), 2)
            .with(&format!("--allocation {file}"))
    };
    let (json, toml) = ("sparsities.json", "sparsities.toml");
    let irregular = "cannot be read: it is not a regular file";
    vec![
        case("no file", json, Gone, "cannot be read: No such file"),
        case("a folder", json, Folder, irregular),
        case("a pipe", toml, Pipe, irregular),
        case("an endless device", json, |file| Link(file, "/dev/zero"), irregular),
        case("larger than any", json, |file| Zeros(file, 2 << 30), "cannot be read: it has more than 8388608 bytes"),
        case("no bytes", json, |file| Bytes(file, vec![]), "is no JSON: EOF"),
        case("nested 100,000 deep", json, |file| Bytes(file, vec![b'['; 100_000]), "is no JSON: recursion limit"),
        case("half a table", toml, |file| Bytes(file, b"[layers".to_vec()), "line 1:"),
        case("a share of 1", json, |file| Bytes(file, b"[1.0, 0.5]".to_vec()), "layer 0: its sparsity is 1.0"),
        case("a share below zero", json, |file| Bytes(file, b"[-1e-9, 0.5]".to_vec()), "layer 0: its sparsity is"),
        case("a layer too many", json, |file| Bytes(file, b"[0.5, 0.5, 0.5]".to_vec()), "\"layers\" lists 3"),
    ]
}

pub fn reports() -> Vec<Case> {
    let other = "run.json: is no report of retrain or pretrain";
    let irregular = "run.json: is no report: name a .json file that retrain --report wrote";
    let bytes = |bytes: &[u8]| vec![Bytes(RUN, bytes.to_vec())];
    table(
        REPORT,
        1,
        vec![
            ("no file", vec![], "run.json: cannot be read: No such file"),
            ("a folder", vec![Folder(RUN)], irregular),
            ("a pipe", vec![Pipe(RUN)], irregular),
            ("larger than any", vec![Zeros(RUN, 2 << 30)], irregular),
            ("a gigabyte of nothing", vec![Zeros(RUN, 1 << 30)], other),
            ("no bytes", bytes(b""), other),
            ("a list", bytes(b"[]"), other),
            ("no fields", bytes(b"{}"), other),
            ("nested 100,000 deep", bytes(&[b'['; 100_000]), other),
        ],
    )
}
