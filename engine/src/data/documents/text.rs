//! A file that is one document.

use std::path::Path;

use super::super::error::{Error, Result};
use super::Document;
use super::form::Compression;
use super::source::Source;

/// The longest document, in bytes: a limit on what one bad or tightly packed file can make us hold. A tokenizer takes some
/// fifty times as much while it works.
pub const TEXT_LIMIT: usize = 256 << 20;

/// The mark that some editors put in front of UTF-8 text.
pub const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads it.
pub fn read(path: &Path, compression: Compression) -> Result<Document> {
    let mut source = Source::open(path, compression)?;
    let mut bytes = Vec::new();
    source.read_all(TEXT_LIMIT as u64 + 1, &mut bytes)?;
    if bytes.len() > TEXT_LIMIT {
        return Err(Error::TooLong { document: path.display().to_string(), limit: TEXT_LIMIT });
    }
    let file_bytes = source.file_bytes(bytes.len() as u64);
    let mut text = String::from_utf8(bytes)
        .map_err(|e| Error::Utf8 { path: path.into(), offset: e.utf8_error().valid_up_to() })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    if text.trim().is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(Document { source: path.display().to_string(), text, file_bytes })
}
