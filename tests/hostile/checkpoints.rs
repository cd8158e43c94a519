//! Checkpoints of a run, most of them with the checksum that goes with what they say. Where the newest is of no use and there
//! is none before it, the run ends and nothing is thrown away. And logs, which a run that goes on reads.

use serde_json::{Value, json};

use crate::case::{Case, RESUME, RETRAIN, flags, table};
use crate::folder::NEWEST;
use crate::folder::Spoil::{self, *};

/// Changes what the run says of itself.
fn run(header: &mut Value, edit: fn(&mut Value)) {
    let text = header["__metadata__"]["run"].as_str().unwrap();
    let mut run: Value = serde_json::from_str(text).unwrap();
    edit(&mut run);
    header["__metadata__"]["run"] = run.to_string().into();
}

fn bytes(bytes: impl AsRef<[u8]>) -> Vec<Spoil> {
    vec![Bytes(NEWEST, bytes.as_ref().to_vec())]
}

/// A parameter that every run of the table trains.
const VALUE: &str = "value.model.decoder.final_layer_norm.bias";

const LOG: &str = "run.jsonl";
/// What is said of it.
const LOGGED: &str = "--log run.jsonl: cannot be written: ";

pub fn cases() -> Vec<Case> {
    let torn = "run/step-00000002.safetensors: is torn";
    let mut cases = table(
        RESUME,
        1,
        vec![
            ("no bytes", bytes(""), torn),
            ("fewer bytes than a checksum", bytes("short"), "is torn: it has only 5 bytes"),
            ("cut by one byte", vec![Shorter(NEWEST, 1)], "is torn or altered: its checksum is not that of its bytes"),
            (
                "altered",
                vec![Spoil::Value(NEWEST, VALUE, 0.125)],
                "is torn or altered: its checksum is not that of its bytes",
            ),
            ("weights of a model", vec![Link(NEWEST, "../model/model.safetensors")], torn),
            (
                "a format to come",
                vec![Sealed(|h| h["__metadata__"]["format"] = json!("9"))],
                "has the format 9; this version reads format 1",
            ),
            (
                "a run that is no JSON",
                vec![Sealed(|h| h["__metadata__"]["run"] = json!("{"))],
                "does not say what run it is of",
            ),
            (
                "a run nested 1,000 deep",
                vec![Sealed(|h| h["__metadata__"]["run"] = json!("[".repeat(1000)))],
                "does not say what run it is of",
            ),
            (
                "no step",
                vec![Sealed(|h| run(h, |r| drop(r.as_object_mut().unwrap().shift_remove("step"))))],
                "does not say its state: missing field `step`",
            ),
            ("a step below zero", vec![Sealed(|h| run(h, |r| r["step"] = json!(-1)))], "does not say its state"),
            (
                "a step that the run has not",
                vec![Sealed(|h| run(h, |r| r["step"] = json!(u64::MAX)))],
                "is of step 18446744073709551615, and this run has 2",
            ),
            ("cycle 0", vec![Sealed(|h| run(h, |r| r["cycle"] = json!(0)))], "is of cycle 0, and this run has 1"),
            (
                "cycle 2⁶⁴ − 1",
                vec![Sealed(|h| run(h, |r| r["cycle"] = json!(u64::MAX)))],
                "is of cycle 18446744073709551615, and this run has 1",
            ),
            (
                "a window that the text has not",
                vec![Sealed(|h| run(h, |r| r["sampler"]["index"] = json!(u64::MAX)))],
                "window 18446744073709551615 of an epoch is asked for",
            ),
            (
                "measurements in words",
                vec![Sealed(|h| run(h, |r| r["measured"] = json!("fine")))],
                "does not say what was measured",
            ),
            (
                "steps of another shape",
                vec![Sealed(|h| h["steps"]["shape"] = json!([7, 2]))],
                "steps is F64 [7, 2], and this run needs F64 [7, 7]",
            ),
            (
                "no steps",
                vec![Sealed(|h| {
                    let entry = h.as_object_mut().unwrap().shift_remove("steps").unwrap();
                    h["stepz"] = entry;
                })],
                "has no tensor steps: it is of another run",
            ),
            (
                "a parameter of another type",
                vec![Sealed(|h| h[VALUE]["dtype"] = json!("I32"))],
                "is I32 [32], and this run needs F32 [32]: it is of another run",
            ),
            (
                "a parameter of another shape",
                vec![Sealed(|h| h[VALUE]["shape"] = json!([4, 8]))],
                "is F32 [4, 8], and this run needs F32 [32]",
            ),
            (
                "a parameter that is missing",
                vec![Sealed(|h| {
                    let entry = h.as_object_mut().unwrap().shift_remove(VALUE).unwrap();
                    h["value.other"] = entry;
                })],
                "has no tensor value.model.decoder.final_layer_norm.bias: it is of another run",
            ),
            (
                "offsets past the end",
                vec![Sealed(|h| h[VALUE]["data_offsets"] = json!([0, u64::MAX]))],
                "is not a valid safetensors file",
            ),
            ("a pipe", vec![Pipe(NEWEST)], "is not a regular file"),
            ("a folder", vec![Folder(NEWEST)], "is not a regular file"),
            ("a link to nothing", vec![Link(NEWEST, "nowhere")], "cannot open run/step-00000002.safetensors"),
            (
                "a file for a folder",
                vec![Gone("run"), Bytes("run", b"x".to_vec())],
                "run: is not a folder, and checkpoints need one; name another",
            ),
            ("a folder in the lock's place", vec![Folder("run/lock")], "cannot create run/lock: Is a directory"),
            (
                "a folder in the place of what is half-written",
                vec![Folder("run/.step-00000003.partial")],
                "cannot remove run/.step-00000003.partial",
            ),
        ],
    );
    let another = || vec![Folder("out"), Bytes("out/config.json", b"{}".to_vec())];
    let with = |spoil: Spoil| another().into_iter().chain([spoil]).collect();
    cases.extend(table(
        RESUME,
        1,
        vec![
            ("another model in the place of the run's", another(), "and this is not the model that it wrote"),
            (
                "a model that no run told of",
                with(Gone("run/result.json")),
                "holds a model already, and models are never written over",
            ),
            (
                "a result that is no JSON",
                with(Bytes("run/result.json", b"{".to_vec())),
                "run/result.json: is not valid JSON",
            ),
            (
                "a result without a model",
                with(Bytes("run/result.json", b"{}".to_vec())),
                "run/result.json: missing field `model`",
            ),
            ("a result that is a pipe", with(Pipe("run/result.json")), "run/result.json: is not a regular file"),
            (
                "a pipe in the model",
                with(Pipe("out/model.safetensors")),
                "out/model.safetensors: is not a regular file",
            ),
            ("a file in the place of the model", vec![Bytes("out", b"x".to_vec())], "exists and is not a folder"),
        ],
    ));
    cases.extend(table(
        RESUME,
        2,
        vec![
            (
                "a run of another configuration",
                vec![Sealed(|h| run(h, |r| r["configuration"]["lr"] = json!(1.0)))],
                "is of another run: lr is 0.0005 here and 1.0 there",
            ),
            (
                "a configuration with more",
                vec![Sealed(|h| run(h, |r| r["configuration"]["x\nerror: y"] = json!("z")))],
                "x\\nerror: y is null here and z there",
            ),
            (
                "a run of another text",
                vec![Bytes("train.txt", vec![b'a'; 10_000])],
                "is of another run: training text is",
            ),
            (
                "a run of another model",
                vec![Spoil::Value("model/model.safetensors", "model.decoder.final_layer_norm.bias", 0.125)],
                "is of another run: base model is",
            ),
        ],
    ));
    // A log is read where the run goes on.
    let log = |name, spoil, says| Case::new(RESUME, name, vec![spoil], says, 1).with("--log run.jsonl");
    let (irregular, large) = ("it is not a regular file", "which no log of a run has; name another file");
    cases.extend([
        log("a log that is a pipe", Pipe(LOG), format!("{LOGGED}{irregular}")),
        log("a log that is an endless device", Link(LOG, "/dev/zero"), format!("{LOGGED}{irregular}")),
        log(
            "a log larger than any",
            Zeros(LOG, (1 << 30) + 1),
            format!("{LOGGED}it has more than 1073741824 bytes, {large}"),
        ),
        log(
            "a log of a line of a gigabyte",
            Zeros(LOG, 1 << 30),
            format!("{LOGGED}it has a line of more than 8388608 bytes, {large}"),
        ),
    ]);
    cases.push(
        Case::new(RESUME, "a log that is a folder", vec![Folder(LOG)], "--log run.jsonl: is a folder", 2)
            .with("--log run.jsonl"),
    );
    // A file would take the place of these.
    for (name, spoil) in
        [("a new log that is a pipe", Pipe(LOG)), ("a new log that is a device", Link(LOG, "/dev/null"))]
    {
        cases.push(Case::new(RETRAIN, name, vec![spoil], format!("{LOGGED}{irregular}"), 1).with("--log run.jsonl"));
    }
    cases.extend(flags(
        RESUME,
        2,
        vec![
            (
                "--steps 3",
                "steps is 3 here and 2 there; go on with that run's flags, or name a new --checkpoints folder",
            ),
            ("--method full", "method is full here and perp there"),
        ],
    ));
    cases
}
