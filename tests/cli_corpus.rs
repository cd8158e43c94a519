//! A corpus that is larger than the memory it is read in.
#![cfg(target_os = "linux")] // where a limit of data counts what a process has for itself, and files that it maps do not

mod cli_support;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use cli_support::{Fixture, assert_succeeds, text};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

/// Bytes of text, unpacked.
const CORPUS: usize = 64 << 20;
/// Bytes that the process may have for all it does: the text alone, beside the program, would not fit.
const DATA: u64 = 96 << 20;

/// Bytes of one document, and that the process may have for it: the tokenizer library once took a GiB.
const DOCUMENT: usize = 8 << 20;
const DOCUMENT_DATA: u64 = 160 << 20;

#[test]
fn a_corpus_larger_than_memory_is_trained_on() {
    let fixture = Fixture::get();
    let dir = tempfile::TempDir::new().unwrap();
    let corpus = dir.path().join("corpus.jsonl.gz");
    let novel = std::fs::read_to_string(fixture.train()).unwrap();
    let mut file = GzBuilder::new().write(std::fs::File::create(&corpus).unwrap(), Compression::fast());
    let (mut written, mut documents) = (0, 0);
    for paragraph in novel.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()).cycle() {
        let line = json!({"text": format!("{paragraph} {documents}")}).to_string();
        writeln!(file, "{line}").unwrap();
        (written, documents) = (written + line.len(), documents + 1);
        if written >= CORPUS {
            break;
        }
    }
    file.finish().unwrap();
    trains_with_data_of(DATA, &corpus);
}

#[test]
fn a_long_document_is_tokenised_in_little_memory() {
    let dir = tempfile::TempDir::new().unwrap();
    let corpus = dir.path().join("long.txt");
    let novel = std::fs::read_to_string(Fixture::get().train()).unwrap();
    std::fs::write(&corpus, novel.repeat(DOCUMENT.div_ceil(novel.len()))).unwrap();
    trains_with_data_of(DOCUMENT_DATA, &corpus);
}

fn trains_with_data_of(bytes: u64, corpus: &Path) {
    let fixture = Fixture::get();
    let dir = tempfile::TempDir::new().unwrap();
    let (report, eval) = (dir.path().join("run.json"), fixture.eval());
    let mut command = Command::new(env!("CARGO_BIN_EXE_perp-engine"));
    #[rustfmt::skip]
    command.env("CUDA_VISIBLE_DEVICES", "").args([
        "retrain", "--model", text(&fixture.model()), "--train", text(corpus), "--eval", text(&eval), "--eval-windows", "1",
        "--steps", "1", "--batch", "1", "--accumulate", "1", "--token-cache", "off", "--threads", "2", "--quiet", "--report", text(&report),
    ]);
    // SAFETY: setrlimit is a plain system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            match libc::setrlimit(libc::RLIMIT_DATA, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    assert_succeeds(&command.output().unwrap());
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report["steps"].as_array().unwrap().len(), 1);
}
