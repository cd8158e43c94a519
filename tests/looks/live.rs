//! `--log` and `--tensorboard`.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_fails, assert_succeeds, program, text};

/// A protobuf message as (field, bytes of the value): varints and fixed numbers as their eight or fewer bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                all.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            wire => panic!("wire type {wire}"),
        };
        let (value, rest) = bytes.split_at(length);
        bytes = rest;
        all.push((key >> 3, value.to_vec()));
    }
    all
}

/// CRC-32C bit by bit, as RFC 3720 defines it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// The scalars (tag, step, value) of an event file; its checksums must be right.
fn scalars(path: &Path) -> Vec<(String, u64, f32)> {
    let file = std::fs::read(path).unwrap();
    let mut bytes = &file[..];
    let mut all = Vec::new();
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let check = |bytes: &[u8], stored: u32| {
        assert_eq!(crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8), stored, "the checksum");
    };
    let mut first = true;
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(12);
        check(&head[..8], number(&head[8..]));
        let (data, rest) = rest.split_at(u64::from_le_bytes(head[..8].try_into().unwrap()) as usize);
        check(data, number(rest));
        bytes = &rest[4..];
        let event = fields(data);
        let field = |fields: &[(u64, Vec<u8>)], wanted| fields.iter().find(|f| f.0 == wanted).map(|f| f.1.clone());
        if std::mem::take(&mut first) {
            assert_eq!(field(&event, 3).as_deref(), Some(&b"brain.Event:2"[..]));
        }
        let step = u64::from_le_bytes(field(&event, 2).unwrap().try_into().unwrap());
        for (_, value) in fields(&field(&event, 5).unwrap_or_default()) {
            let value = fields(&value);
            let tag = String::from_utf8(field(&value, 1).unwrap()).unwrap();
            all.push((tag, step, f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap())));
        }
    }
    all
}

#[test]
fn the_log_and_the_event_files_say_what_the_report_says() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    let (log, board, report) = (at("run.jsonl"), at("a/board"), at("run.json"));
    #[rustfmt::skip]
    let args = [
        "retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval), "--steps", "5", "--cycles", "2",
        "--batch", "2", "--accumulate", "1", "--eval-windows", "8", "--log", text(&log), "--tensorboard", text(&board),
        "--report", text(&report), "--token-cache", "off", "--quiet",
    ];
    assert_succeeds(&program(&args).output().unwrap());
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    let events: Vec<Value> =
        std::fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<&Value> = events.iter().filter(|event| event["event"] == "step").collect();
    let reported = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 10);
    for (step, reported) in steps.iter().zip(reported) {
        for field in ["cycle", "step", "loss", "lr", "grad_norm", "seconds"] {
            assert_eq!(step[field], reported[field], "{field}");
        }
    }
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["status"]), (&"end".into(), &"done".into()));
    assert_eq!(events[0]["config"], report["config"]);
    assert_eq!(events[0]["command"], report["command"]);

    let files: Vec<_> = std::fs::read_dir(&board).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let scalars = scalars(&files[0]);
    let losses: Vec<(u64, f32)> =
        scalars.iter().filter(|(tag, ..)| tag == "train/loss").map(|(_, step, loss)| (*step, *loss)).collect();
    let expected: Vec<(u64, f32)> =
        (1..).zip(reported).map(|(step, record)| (step, record["loss"].as_f64().unwrap() as f32)).collect();
    assert_eq!(losses, expected, "steps go on over cycles");
    let retrained: Vec<f32> =
        scalars.iter().filter(|(tag, ..)| tag == "perplexity/retrained").map(|(.., value)| *value).collect();
    let expected: Vec<f32> =
        report["cycles"].as_array().unwrap().iter().map(|c| c["retrained"].as_f64().unwrap() as f32).collect();
    assert_eq!(retrained, expected);
}

#[test]
fn what_cannot_be_written_is_told_before_the_run() {
    let model = Fixture::get().model();
    let train = Fixture::get().train();
    let base = ["retrain", "--model", text(&model), "--train", text(&train), "--steps", "1", "--token-cache", "off"];
    let fails = |flags: &[&str], code: i32, parts: &[&str]| {
        assert_fails(&program(&[&base[..], flags].concat()).output().unwrap(), code, parts);
    };
    fails(&["--log", "/nowhere/run.jsonl"], 2, &["--log", "/nowhere"]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    fails(&["--tensorboard", text(&file)], 1, &["--tensorboard", "file"]);
}
