//! Text files, packed or not.

use engine::data::{Document, read_documents};

use super::bounded::within;
use super::scratch;

/// Heap for a line of .jsonl as long as one may be, and for what is made of it.
const LINES: usize = 256 << 20;

/// Reads all documents; the bytes of the file are counted to the last.
fn read(name: &str, bytes: &[u8], memory: usize) {
    let path = scratch::file(name, bytes);
    within(memory, || {
        let Ok(documents) = read_documents(&[path]) else { return };
        let mut seen = 0;
        for document in documents {
            match document {
                Ok(Document { source, file_bytes, .. }) => {
                    assert!(source.contains(name));
                    seen += file_bytes;
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        assert!(seen <= bytes.len() as u64, "{seen} of {} bytes", bytes.len());
    });
}

/// One document.
pub fn text(bytes: &[u8]) {
    read("a.txt", bytes, LINES);
}

/// A document a line.
pub fn json_lines(bytes: &[u8]) {
    read("a.jsonl", bytes, LINES);
}

/// The same behind gzip.
pub fn gzip(bytes: &[u8]) {
    read("a.jsonl.gz", bytes, LINES);
}

/// The same behind zstd.
pub fn zstd(bytes: &[u8]) {
    read("a.jsonl.zst", bytes, LINES);
}

/// Rows of Parquet.
pub fn parquet(bytes: &[u8]) {
    read("a.parquet", bytes, LINES);
}
