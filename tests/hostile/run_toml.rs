//! Files of flags.

use crate::case::{Case, RETRAIN};
use crate::folder::Spoil::{self, *};

const FILE: &str = "run.toml";

fn with(name: impl Into<String>, spoil: Spoil, says: &str, code: i32) -> Case {
    Case::new(RETRAIN, name, vec![spoil], says, code).with("--config run.toml")
}

pub fn cases() -> Vec<Case> {
    // What stands in the file, what is said of it.
    let texts: Vec<(String, &str)> = vec![
        ("rank".into(), "run.toml:1: key with no value"),
        ("= 1".into(), "run.toml:1: unquoted keys cannot be empty"),
        ("rank = ".into(), "run.toml:1: string values must be quoted"),
        ("seed = 1\nrank = 2\nrank = 3".into(), "run.toml:3: duplicate key"),
        ("seed = 99999999999999999999".into(), "run.toml:1:"),
        ("\0".into(), "run.toml:1:"),
        (format!("rank = {}", "[".repeat(10_000)), "run.toml:1:"),
        (format!("{}b = 1", "a.".repeat(10_000)), "run.toml:1:"),
        ("rank = []".into(), "run.toml: rank is [], expected a value, or a list of values"),
        ("rank = [[1]]".into(), "run.toml: rank is [[1]], expected a value"),
        ("rank = { a = 1 }".into(), "run.toml: rank is { a = 1 }, expected a value"),
        ("rank = true".into(), "run.toml: rank is true, expected a value"),
        ("rank = 1979-05-27".into(), "run.toml: rank is 1979-05-27, expected a value"),
        ("rank = -1".into(), "invalid value '-1' for '--rank <R>': expected a whole number of at least 1"),
        ("rank = 0".into(), "invalid value '0' for '--rank <R>'"),
        ("rank = 1.5".into(), "invalid value '1.5' for '--rank <R>'"),
        ("rank = \"--seed\"".into(), "invalid value '--seed' for '--rank <R>'"),
        ("lr = nan".into(), "invalid value 'NaN' for '--lr <RATE>': expected a number of at least 0"),
        ("lr = inf".into(), "invalid value 'inf' for '--lr <RATE>'"),
        ("lr = \"a\\nerror: b\"".into(), "invalid value 'a error: b' for '--lr <RATE>'"),
        ("resume = 1".into(), "run.toml: resume is 1, expected true or false"),
        ("resume = \"true\"".into(), "run.toml: resume is \"true\", expected true or false"),
        ("stepz = 3".into(), "run.toml: unknown key 'stepz' for retrain; did you mean 'steps'?"),
        ("\"a\\nb\" = 1".into(), "run.toml: unknown key 'a\\nb' for retrain"),
        ("[retrain]\nseed = 1".into(), "run.toml: unknown key 'retrain' for retrain"),
        ("config = \"a\"".into(), "run.toml: unknown key 'config' for retrain"),
        ("sparsity = 0.5\npattern = \"2:4\"".into(), "'--pattern <N:M>' cannot be used with '--sparsity <SHARE>'"),
        (
            "parts = [\"all\"]".into(),
            "invalid value 'all' for '--parts <PART,…>' [possible values: biases, norms, head, lora, mask-lora, scale-lora, lora-prune]",
        ),
        ("parts = \"\"".into(), "a value is required for '--parts <PART,…>' but none was supplied"),
        ("seq_len = 33".into(), "--seq-len 33 is longer than the model's context of 32 tokens"),
    ];
    let mut cases: Vec<Case> = texts
        .into_iter()
        .map(|(text, says)| {
            let name: String = text.chars().take(40).collect();
            with(name, Bytes(FILE, text.into_bytes()), says, 2)
        })
        .collect();
    let unreadable = "--config run.toml: cannot be read: ";
    cases.extend([
        with(
            "not UTF-8",
            Bytes(FILE, b"seed = 1\xff".to_vec()),
            &format!("{unreadable}stream did not contain valid UTF-8"),
            2,
        ),
        with("larger than any", Zeros(FILE, 2 << 30), &format!("{unreadable}it has more than 8388608 bytes"), 2),
        with("a folder", Folder(FILE), &format!("{unreadable}it is not a regular file"), 2),
        with("a pipe", Pipe(FILE), &format!("{unreadable}it is not a regular file"), 2),
        with("an endless device", Link(FILE, "/dev/zero"), &format!("{unreadable}it is not a regular file"), 2),
        with("no file", Gone(FILE), &format!("{unreadable}No such file"), 2),
        with("a layer that is none", Bytes(FILE, b"targets = \",\"".to_vec()), "no layer is called ''", 1),
    ]);
    cases
}
