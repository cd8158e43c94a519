//! A file of one JSON object a line.

use std::path::PathBuf;

use serde::Deserialize;

use super::super::error::{Error, Result};
use super::form::Compression;
use super::source::Source;
use super::text::BYTE_ORDER_MARK;
use super::{Document, ROW_LIMIT, Rows};

/// A line; other fields are left alone.
#[derive(Deserialize)]
struct Row {
    text: String,
}

pub struct JsonLines {
    path: PathBuf,
    source: Source,
    line: usize,
    /// True once a line had text.
    any_text: bool,
}

impl JsonLines {
    pub fn open(path: PathBuf, compression: Compression) -> Result<JsonLines> {
        let source = Source::open(&path, compression)?;
        Ok(JsonLines { path, source, line: 0, any_text: false })
    }

    fn bad(&self, reason: String) -> Error {
        Error::Line { path: self.path.clone(), line: self.line, reason }
    }
}

impl Rows for JsonLines {
    /// Blank lines are passed over and their bytes counted with the document after them.
    fn next_row(&mut self) -> Result<Option<Document>> {
        let mut bytes = Vec::new();
        let mut taken = 0;
        loop {
            bytes.clear();
            let read = self.source.read_line(ROW_LIMIT as u64 + 1, &mut bytes)?;
            if read == 0 {
                return if self.any_text { Ok(None) } else { Err(Error::Empty { path: self.path.clone() }) };
            }
            self.line += 1;
            taken += read as u64;
            if bytes.len() > ROW_LIMIT {
                return Err(
                    self.bad(format!("the line is longer than {} MiB; is it a file of JSON lines?", ROW_LIMIT >> 20))
                );
            }
            let line = match bytes.strip_prefix(BYTE_ORDER_MARK.as_bytes()) {
                Some(rest) if self.line == 1 => rest,
                _ => &bytes,
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let row: Row = serde_json::from_slice(line)
                .map_err(|e| self.bad(format!("not a JSON object with a string \"text\": {}", column(&e))))?;
            self.any_text |= !row.text.is_empty();
            let source = format!("{}:{}", self.path.display(), self.line);
            return Ok(Some(Document { source, text: row.text, file_bytes: self.source.file_bytes(taken) }));
        }
    }
}

/// The parser counts lines within the line it was given; only its column means something to a reader.
fn column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}
