//! Text to train and to evaluate on, as it stands in files.

use crate::case::{Case, EVAL, PRUNE, RETRAIN, table};
use crate::folder::Spoil::{self, *};

const TEXT: &str = "eval.txt";
const LINES: &str = "eval.jsonl";

fn text(bytes: impl AsRef<[u8]>) -> Vec<Spoil> {
    vec![Bytes(TEXT, bytes.as_ref().to_vec())]
}

/// The evaluation text under another name, in the table of `--eval`.
pub fn named(rows: Vec<(&'static str, &'static str, Vec<u8>, &'static str)>) -> Vec<Case> {
    let case = |(name, file, bytes, says)| {
        Case::new(EVAL, name, vec![Bytes(file, bytes)], says, 1).with(&format!("--eval {file}"))
    };
    rows.into_iter().map(case).collect()
}

pub fn cases() -> Vec<Case> {
    let empty = "eval.txt: the file holds no text";
    let irregular = "cannot read eval.txt: it is not a regular file";
    let mut cases = table(
        EVAL,
        1,
        vec![
            ("no bytes", text(""), empty),
            ("nothing but spaces", text(" \n\t"), empty),
            ("nothing but a byte-order mark", text("\u{feff}"), empty),
            ("UTF-16", text(b"\xff\xfeh\0e\0l\0l\0o\0"), "eval.txt: not UTF-8 at byte 0; convert the file to UTF-8"),
            ("Latin-1", text(b"caf\xe9"), "eval.txt: not UTF-8 at byte 3"),
            ("half a character at the end", text(b"caf\xc3"), "eval.txt: not UTF-8 at byte 3"),
            ("half a surrogate pair", text(b"\xed\xa0\x80"), "eval.txt: not UTF-8 at byte 0"),
            ("a character beyond Unicode", text(b"\xf4\x90\x80\x80"), "eval.txt: not UTF-8 at byte 0"),
            ("a compressed file", text(b"\x1f\x8b\x08\0"), "eval.txt: not UTF-8 at byte 1"),
            (
                "shorter than a window",
                text("short"),
                "tokens, but one window takes 32: give more text or a shorter sequence length",
            ),
            (
                "a folder",
                vec![Folder(TEXT)],
                "eval.txt: is a folder, not a regular file; name its files, such as 'eval.txt/*.jsonl'",
            ),
            ("a pipe", vec![Pipe(TEXT)], irregular),
            ("an endless device", vec![Link(TEXT, "/dev/zero")], irregular),
            ("a link to nothing", vec![Link(TEXT, "nowhere")], "cannot read eval.txt: No such file"),
            ("no file", vec![Gone(TEXT)], "cannot read eval.txt: No such file"),
        ],
    );
    cases.push(
        Case::new(
            EVAL,
            "a folder under a folder's name",
            vec![Folder("novels")],
            "novels: is a folder, not a regular file; name its files, such as 'novels/*.jsonl'",
            1,
        )
        .with("--eval novels"),
    );
    let row = "not a JSON object with a string \"text\"";
    let deep = [&b"{\"a\":"[..], &vec![b'['; 100_000], b"\n"].concat();
    cases.extend(named(vec![
        ("no lines", LINES, b"".to_vec(), "eval.jsonl: the file holds no text"),
        ("blank lines", LINES, b"\n\n".to_vec(), "eval.jsonl: the file holds no text"),
        ("a line without text", LINES, b"{\"text\":\"\"}\n".to_vec(), "eval.jsonl: the file holds no text"),
        (
            "a text that is a number",
            LINES,
            b"{\"text\":\"one\"}\n{\"text\":1}\n".to_vec(),
            "eval.jsonl:2: not a JSON object with a string \"text\": invalid type: integer `1`",
        ),
        ("a text that is null", LINES, b"{\"text\":null}\n".to_vec(), row),
        (
            "no text",
            LINES,
            b"{\"txt\":\"two\"}\n".to_vec(),
            "eval.jsonl:1: not a JSON object with a string \"text\": missing field `text`",
        ),
        ("a list", LINES, b"[]\n".to_vec(), row),
        ("a string", LINES, b"\"x\"\n".to_vec(), row),
        ("two texts", LINES, b"{\"text\":\"a\",\"text\":\"b\"}\n".to_vec(), "duplicate field `text`"),
        ("a text that is not UTF-8", LINES, b"{\"text\":\"\xff\"}\n".to_vec(), "invalid unicode"),
        ("a text with half a surrogate pair", LINES, b"{\"text\":\"\\ud800\"}\n".to_vec(), row),
        ("nested 100,000 deep", LINES, deep, "eval.jsonl:1: not a JSON object"),
        (
            "two objects in a line",
            LINES,
            b"{\"text\":\"a\"} {\"text\":\"b\"}\n".to_vec(),
            "trailing characters at column 14",
        ),
        ("UTF-16 lines", LINES, b"\xff\xfe{\0".to_vec(), row),
        ("a text over two lines", LINES, b"{\"text\":\"a\nb\"}\n".to_vec(), "eval.jsonl:1: not a JSON object"),
        ("text that is no JSON", LINES, b"Once upon a time\n".to_vec(), row),
        ("a kind of file that is none", "eval.csv", b"a,b".to_vec(), "eval.csv: not a supported kind of text"),
        ("a file without an extension", "eval", b"a".to_vec(), "eval: not a supported kind of text"),
    ]));
    let line = |bytes: u64| vec![Zeros(LINES, bytes)];
    let long = "eval.jsonl:1: the line is longer than 64 MiB; is it a file of JSON lines?";
    cases.push(Case::new(EVAL, "a line just past the limit", line((64 << 20) + 1), long, 1).with("--eval eval.jsonl"));
    cases.push(Case::new(EVAL, "a line of a gigabyte", line(1 << 30), long, 1).with("--eval eval.jsonl"));
    let short = || vec![Bytes("train.txt", b"Too short.".to_vec())];
    cases.push(Case::new(RETRAIN, "shorter than a training window", short(), "but one window takes 32", 1));
    let says = "calibration takes windows of 32 tokens within one document, but none of 1 documents is so long";
    for criterion in ["wanda", "sparsegpt"] {
        let flags = format!("--criterion {criterion} --calibrate train.txt");
        cases.push(Case::new(PRUNE, "shorter than a calibration window", short(), says, 1).with(&flags));
    }
    cases
}
