//! Files in, windows out; every bad input with its message.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

mod cache;
mod forms;
mod packing;

use crate::checkpoint::{BpeSettings, Tokenizer, train_bpe};

fn files(contents: &[(&str, &[u8])]) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let paths = contents
        .iter()
        .map(|(name, bytes)| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect();
    (dir, paths)
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Document>> {
    read_documents(paths)?.collect()
}

fn texts(contents: &[(&str, &[u8])]) -> Result<Vec<String>> {
    let (_dir, paths) = files(contents);
    Ok(read_all(&paths)?.into_iter().map(|d| d.text).collect())
}

#[track_caller]
fn assert_message<T>(result: Result<T>, parts: &[&str]) {
    let text = result.err().expect("must fail").to_string();
    assert!(!text.contains('\n'), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn tokenizer() -> Tokenizer {
    let settings = BpeSettings {
        vocab_size: 270,
        special_tokens: vec!["</s>".into()],
        bos: Some("</s>".into()),
        ..BpeSettings::default()
    };
    train_bpe(["a document, and another document"].iter(), &settings).unwrap()
}

fn document(text: &str) -> Document {
    Document { source: "here".into(), text: text.into(), file_bytes: text.len() as u64 }
}

#[test]
fn a_txt_file_is_one_document_and_a_jsonl_file_one_a_line() {
    let jsonl =
        b"{\"text\": \"one\\nline\", \"url\": \"x\"}\n\n{\"text\": \"\"}\r\n{\"meta\": {}, \"text\": \"\xc3\xa9\"}";
    let (_dir, paths) = files(&[("a.txt", b"first\nsecond\n"), ("b.jsonl", jsonl), ("c.TXT", b"\xef\xbb\xbflast")]);
    let documents = read_all(&paths).unwrap();
    let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["first\nsecond\n", "one\nline", "", "é", "last"]);
    let sources: Vec<&str> =
        documents.iter().map(|d| Path::new(&d.source).file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(sources, ["a.txt", "b.jsonl:1", "b.jsonl:3", "b.jsonl:4", "c.TXT"]);
    let bytes: u64 = documents.iter().map(|d| d.file_bytes).sum();
    assert_eq!(bytes, read_documents(&paths).unwrap().total_bytes());
}

#[test]
fn bad_files_are_named() {
    assert_message(read_documents::<&str>(&[]), &["no text was given", ".jsonl"]);
    assert_message(read_documents(&["no/such.txt"]), &["cannot read no/such.txt"]);
    assert_message(texts(&[("a.pdf", b"x")]), &["a.pdf", ".txt", ".jsonl", ".parquet", ".zst"]);
    assert_message(texts(&[("noextension", b"x")]), &["noextension", "not a supported kind"]);
    assert_message(texts(&[("a.txt", b"")]), &["a.txt", "no text"]);
    assert_message(texts(&[("a.txt", b" \n ")]), &["a.txt", "no text"]);
    assert_message(texts(&[("a.jsonl", b"\n\n")]), &["a.jsonl", "no text"]);
    assert_message(texts(&[("a.jsonl", b"{\"text\": \"\"}\n")]), &["a.jsonl", "no text"]);
    assert_message(texts(&[("a.txt", b"abc\xffdef")]), &["a.txt", "not UTF-8 at byte 3"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d.txt")).unwrap();
    assert_message(read_documents(&[dir.path().join("d.txt")]), &["d.txt", "not a regular file"]);
}

#[test]
fn bad_lines_are_named_by_their_number() {
    let good = b"{\"text\": \"x\"}\n";
    for (bad, part) in [
        (&b"{\"content\": \"x\"}"[..], "missing field `text`"),
        (b"{\"text\": 3}", "expected a string"),
        (b"{\"text\": \"x\"", "column"),
        (b"\"x\"", "JSON object"),
        (b"{\"text\": \"\xff\"}", "a.jsonl:2"),
    ] {
        assert_message(texts(&[("a.jsonl", &[good, bad, b"\n", good].concat())]), &["a.jsonl:2", part]);
    }
    let long = [good, &vec![b' '; (64 << 20) + 1][..]].concat();
    assert_message(texts(&[("a.jsonl", &long)]), &["a.jsonl:2", "longer than 64 MiB"]);
}

#[test]
fn reading_ends_after_an_error() {
    let (_dir, paths) = files(&[("a.jsonl", b"{}\n{\"text\": \"x\"}"), ("b.txt", b"y")]);
    let mut documents = read_documents(&paths).unwrap();
    assert!(documents.next().unwrap().is_err());
    assert!(documents.next().is_none());
}

#[test]
fn a_stream_is_every_document_with_its_bos_in_order() {
    let tokenizer = tokenizer();
    let texts: Vec<String> = (0..100).map(|i| format!("document number {i}")).chain([String::new()]).collect();
    let expected: Vec<u32> = texts[..100].iter().flat_map(|t| tokenizer.encode(t).unwrap()).collect();
    let seen = Mutex::new(Vec::new());
    let stream =
        TokenStream::build(texts.iter().map(|t| Ok(document(t))), &tokenizer, |p| seen.lock().unwrap().push(p));
    let stream = stream.unwrap();
    assert_eq!(stream.tokens(), expected);
    assert_eq!(stream.hash(), hash(&expected));
    assert_eq!(stream.documents(), 100);
    for (index, text) in texts[..100].iter().enumerate() {
        assert_eq!(stream.document(index), tokenizer.encode(text).unwrap());
    }
    assert_eq!(expected.iter().filter(|&&id| id == 0).count(), 100, "one BOS a document, none for the empty one");

    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 101);
    assert!(seen.windows(2).all(|w| w[0].documents < w[1].documents && w[0].file_bytes <= w[1].file_bytes));
    let bytes: usize = texts.iter().map(String::len).sum();
    let last = Progress { documents: 101, file_bytes: bytes as u64, tokens: expected.len() as u64 };
    assert_eq!(seen[100], last);
}

#[test]
fn an_error_among_the_documents_ends_the_stream() {
    let documents = [Ok(document("x")), Err(Error::NoFiles)];
    assert_message(TokenStream::build(documents, &tokenizer(), |_| ()), &["no text was given"]);
}

#[test]
fn evaluation_joins_rows_and_tokenises_once() {
    let tokenizer = tokenizer();
    let rows = || ["", "a", "", "b c"].map(|t| Ok(document(t)));
    assert_eq!(join(rows(), Joining::PARAGRAPHS).unwrap().text, "\n\na\n\n\n\nb c");
    let two = Joining { separator: " ", documents: Some(2) };
    assert_eq!(join(rows(), two).unwrap().text, " a");
    let stream = TokenStream::build([join(rows(), Joining::PARAGRAPHS)], &tokenizer, |_| ()).unwrap();
    assert_eq!(stream.tokens(), tokenizer.encode("\n\na\n\n\n\nb c").unwrap());
    assert_message(join([], Joining::PARAGRAPHS), &["no text was given"]);
    let long = "x".repeat(200 << 20);
    let rows =
        [("a", &long), ("b", &long)].map(|(source, text)| Ok(Document { source: source.into(), ..document(text) }));
    assert_message(join(rows, Joining::PARAGRAPHS), &["b: ", "longer than 256 MiB", "fewer files"]);
}

#[test]
fn text_shorter_than_a_window_says_what_it_has_and_needs() {
    assert_message(windows(&[1; 99], 100), &["99 tokens", "takes 100", "more text"]);
    assert_message(windows(&[1; 9], 1), &["at least 2"]);
    assert_message(windows(&[1; 9], 0), &["at least 2"]);
}

proptest! {
    #[test]
    fn windows_are_the_stream_without_its_tail(n in 2usize..500, length in 2usize..60) {
        let tokens: Vec<u32> = (0..n as u32).collect();
        match windows(&tokens, length) {
            Err(_) => prop_assert!(n < length),
            Ok(cut) => {
                prop_assert_eq!(cut.len(), n / length);
                for (i, window) in cut.enumerate() {
                    prop_assert_eq!(window[0] as usize, i * length);
                    prop_assert_eq!(window.len(), length);
                }
            }
        }
    }

    #[test]
    fn every_epoch_takes_each_window_once(n in 1usize..200, batch in 1usize..17, seed: u64) {
        let mut sampler = TrainSampler::new(n, seed).unwrap();
        let mut drawn = Vec::new();
        while drawn.len() < 3 * n {
            drawn.extend(sampler.next_batch(batch));
        }
        for epoch in drawn.chunks_exact(n) {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sample_is_of_different_windows_and_belongs_to_its_seed(n in 0usize..300, count in 0usize..120, seed: u64) {
        let drawn = sample(n, count, seed);
        prop_assert_eq!(drawn.len(), count.min(n));
        prop_assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn.iter().all(|window| *window < n));
        prop_assert_eq!(drawn, sample(n, count, seed));
    }

    #[test]
    fn a_saved_position_goes_on_where_it_was(n in 1usize..50, before in 0usize..120, seed: u64) {
        let mut sampler = TrainSampler::new(n, seed).unwrap();
        sampler.next_batch(before);
        let saved = serde_json::to_string(&sampler.position()).unwrap();
        let mut resumed = TrainSampler::resume(n, seed, serde_json::from_str(&saved).unwrap()).unwrap();
        prop_assert_eq!(resumed.next_batch(2 * n + 1), sampler.next_batch(2 * n + 1));
    }
}

#[test]
fn epochs_and_seeds_differ_and_a_seed_repeats() {
    let draw = |seed| TrainSampler::new(64, seed).unwrap().next_batch(128);
    let one = draw(1);
    assert_eq!(one, draw(1));
    assert_ne!(one, draw(2));
    assert_ne!(one[..64], one[64..]);
    assert_ne!(one[..64], (0..64).collect::<Vec<_>>());
}

/// Each of 10 windows is in a sample of 4 with probability 0.4: 1,600 of 4,000 times, give or take √(4000·0.4·0.6) = 31. Six
/// times that is a chance of 2e-9.
#[test]
fn a_sample_prefers_no_window() {
    let mut counts = [0; 10];
    (0..4000).flat_map(|seed| sample(10, 4, seed)).for_each(|window| counts[window] += 1);
    assert!(counts.iter().all(|count| (1600i32 - count).abs() < 6 * 31), "{counts:?}");
}

#[test]
fn a_position_outside_the_text_is_refused() {
    let position = SamplerPosition { epoch: 3, index: 10 };
    assert_message(TrainSampler::resume(10, 0, position), &["window 10", "10 windows", "same text"]);
    assert_message(TrainSampler::new(0, 0), &["0 windows"]);
}
