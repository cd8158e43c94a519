//! Documents out of files, one at a time: however large a corpus is, a document or a batch of rows is all that is held.
//!
//! | form | documents |
//! |---|---|
//! | `.txt` | the file is one |
//! | `.jsonl`, `.json` | one a line, in its field `text` |
//! | `.parquet` | one a row, in its column `text` |
//! | `.gz`, `.zst` behind `.txt`, `.jsonl`, `.json` | the same, compressed; members and frames may follow each other |

mod form;
mod json_lines;
mod parquet;
mod paths;
mod source;
mod text;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use self::form::{Content, Form};
use self::json_lines::JsonLines;
use self::parquet::ParquetRows;
use super::error::{Error, Result};

pub use self::form::is_text;
pub use self::paths::expand_patterns;
pub(super) use self::text::TEXT_LIMIT;

/// The longest line of .jsonl, and the longest text of a Parquet file's row, in bytes unpacked: a limit on what one bad file can
/// make us hold.
const ROW_LIMIT: usize = 64 << 20;

/// A text, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its file, and the line or row where a file has several: `c4.jsonl:17`.
    pub source: String,
    /// Its text. May be empty: a corpus such as WikiText has empty rows, which count when rows are joined.
    pub text: String,
    /// The bytes of its file that were read for it; over all documents they add up to the files' sizes, but for what
    /// stands behind the last.
    pub file_bytes: u64,
}

/// The documents of files, in the files' order. Ends after the first error.
pub struct Documents {
    files: VecDeque<PathBuf>,
    rows: Option<Box<dyn Rows>>,
    total_bytes: u64,
}

/// A file of several documents.
trait Rows: Send {
    /// The next one.
    fn next_row(&mut self) -> Result<Option<Document>>;
}

/// Prepares to read text files of the forms above, each when its turn comes.
///
/// # Errors
/// At once, before anything is read: [`Error::NoFiles`], [`Error::Io`] for a file that is not there,
/// [`Error::Extension`], [`Error::Empty`]. While reading: [`Error::Utf8`], [`Error::Line`], [`Error::Damaged`],
/// [`Error::TooLong`], [`Error::Empty`].
pub fn read_documents<P: AsRef<Path>>(paths: &[P]) -> Result<Documents> {
    if paths.is_empty() {
        return Err(Error::NoFiles);
    }
    let mut total_bytes = 0;
    for path in paths.iter().map(AsRef::as_ref) {
        // Before its name, which need not look like a file's.
        if path.is_dir() {
            return Err(Error::Folder { path: path.into() });
        }
        Form::of(path)?;
        let metadata = std::fs::metadata(path).map_err(io(path))?;
        if !metadata.is_file() {
            return Err(io(path)(std::io::Error::other("it is not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(Error::Empty { path: path.into() });
        }
        total_bytes += metadata.len();
    }
    Ok(Documents { files: paths.iter().map(|p| p.as_ref().into()).collect(), rows: None, total_bytes })
}

impl Documents {
    /// The files' sizes together, in bytes: the whole of a progress bar that counts [`Document::file_bytes`].
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(rows) = &mut self.rows {
                if let Some(document) = rows.next_row()? {
                    return Ok(Some(document));
                }
                self.rows = None;
            }
            let Some(path) = self.files.pop_front() else { return Ok(None) };
            let form = Form::of(&path)?;
            match form.content {
                Content::Text => return text::read(&path, form.compression).map(Some),
                Content::JsonLines => self.rows = Some(Box::new(JsonLines::open(path, form.compression)?)),
                Content::Parquet => self.rows = Some(Box::new(ParquetRows::open(path)?)),
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        let item = self.advance().transpose();
        if matches!(item, Some(Err(_))) {
            self.files.clear();
            self.rows = None;
        }
        item
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// A name for what a file's extensions say of it: the same bytes under another form are other documents.
pub(super) fn form_name(path: &Path) -> Result<String> {
    Form::of(path).map(|form| format!("{form:?}"))
}
