//! Documents out of files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{Error, Result};

/// The longest line of a .jsonl file, in bytes: a limit on what one bad file can make us hold.
const LINE_LIMIT: usize = 64 << 20;

/// The mark that some editors put in front of UTF-8 text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// A text, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its file, and for .jsonl its line: `c4.jsonl:17`.
    pub source: String,
    /// Its text. May be empty: a corpus such as WikiText has empty rows, which count when rows are joined.
    pub text: String,
    /// The bytes that it took in its file; over all documents they add up to the files' sizes.
    pub file_bytes: u64,
}

/// The documents of files, in the files' order. Ends after the first error.
#[derive(Debug)]
pub struct Documents {
    files: VecDeque<PathBuf>,
    lines: Option<JsonLines>,
    total_bytes: u64,
}

/// Prepares to read text files: .txt is one document, .jsonl one document a line, in its field `text`. A .txt file is
/// read whole when its turn comes, .jsonl line by line.
///
/// # Errors
/// At once, before anything is read: [`Error::NoFiles`], [`Error::Io`] for a file that is not there,
/// [`Error::Extension`], [`Error::Empty`]. While reading: [`Error::Utf8`], [`Error::Line`], [`Error::Empty`].
pub fn read_documents<P: AsRef<Path>>(paths: &[P]) -> Result<Documents> {
    if paths.is_empty() {
        return Err(Error::NoFiles);
    }
    let mut total_bytes = 0;
    for path in paths.iter().map(AsRef::as_ref) {
        kind_of(path)?;
        let metadata = std::fs::metadata(path).map_err(io(path))?;
        if !metadata.is_file() {
            return Err(io(path)(std::io::Error::other("it is not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(Error::Empty { path: path.into() });
        }
        total_bytes += metadata.len();
    }
    Ok(Documents { files: paths.iter().map(|p| p.as_ref().into()).collect(), lines: None, total_bytes })
}

impl Documents {
    /// The files' sizes together, in bytes: the whole of a progress bar that counts [`Document::file_bytes`].
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn advance(&mut self) -> Option<Result<Document>> {
        loop {
            if let Some(lines) = &mut self.lines {
                if let Some(document) = lines.next().transpose() {
                    return Some(document);
                }
                self.lines = None;
            }
            let path = self.files.pop_front()?;
            match kind_of(&path).and_then(|kind| match kind {
                Kind::Text => read_text(&path).map(Some),
                Kind::JsonLines => {
                    self.lines = Some(JsonLines::open(path)?);
                    Ok(None)
                }
            }) {
                Ok(None) => {}
                Ok(Some(document)) => return Some(Ok(document)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        let item = self.advance();
        if matches!(item, Some(Err(_))) {
            self.files.clear();
            self.lines = None;
        }
        item
    }
}

enum Kind {
    Text,
    JsonLines,
}

fn kind_of(path: &Path) -> Result<Kind> {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("txt") => Ok(Kind::Text),
        Some("jsonl") => Ok(Kind::JsonLines),
        _ => Err(Error::Extension { path: path.into() }),
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

fn read_text(path: &Path) -> Result<Document> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let file_bytes = bytes.len() as u64;
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

/// A line of a .jsonl file; other fields are left alone.
#[derive(Deserialize)]
struct Row {
    text: String,
}

#[derive(Debug)]
struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
    /// True once a line had text.
    any_text: bool,
}

impl JsonLines {
    fn open(path: PathBuf) -> Result<JsonLines> {
        let file = File::open(&path).map_err(io(&path))?;
        Ok(JsonLines { path, reader: BufReader::with_capacity(1 << 20, file), line: 0, any_text: false })
    }

    /// The next document; blank lines are passed over and their bytes counted with the document after them.
    fn next(&mut self) -> Result<Option<Document>> {
        let mut bytes = Vec::new();
        let mut file_bytes = 0;
        loop {
            bytes.clear();
            let limit = LINE_LIMIT as u64 + 1;
            let read = (&mut self.reader).take(limit).read_until(b'\n', &mut bytes).map_err(io(&self.path))?;
            if read == 0 {
                return if self.any_text { Ok(None) } else { Err(Error::Empty { path: self.path.clone() }) };
            }
            self.line += 1;
            file_bytes += read as u64;
            if bytes.len() > LINE_LIMIT {
                return Err(self.bad(format!("the line is longer than {} MiB; is it a .jsonl file?", LINE_LIMIT >> 20)));
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
            return Ok(Some(Document { source, text: row.text, file_bytes }));
        }
    }

    fn bad(&self, reason: String) -> Error {
        Error::Line { path: self.path.clone(), line: self.line, reason }
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
