//! What a file holds, by its name.

use std::path::Path;

use super::super::error::{Error, Result};

/// How a file's text is divided into documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// One.
    Text,
    /// One a line.
    JsonLines,
    /// One a row.
    Parquet,
}

/// How a file's bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one member or several.
    Gzip,
    /// Zstandard, one frame or several.
    Zstd,
}

/// Whether a file's name says that it is text of a form that can be read.
pub fn is_text(path: &Path) -> bool {
    Form::of(path).is_ok()
}

/// Both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub content: Content,
    pub compression: Compression,
}

impl Form {
    /// The form that a file's extensions name, in any case.
    pub fn of(path: &Path) -> Result<Form> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let (stem, compression) = match name.rsplit_once('.') {
            Some((stem, "gz")) => (stem, Compression::Gzip),
            Some((stem, "zst")) => (stem, Compression::Zstd),
            _ => (name.as_str(), Compression::None),
        };
        let content = match stem.rsplit_once('.').map(|(_, extension)| extension) {
            Some("txt") => Content::Text,
            Some("jsonl" | "json") => Content::JsonLines,
            // Parquet packs its own pages.
            Some("parquet") if compression == Compression::None => Content::Parquet,
            _ => return Err(Error::Extension { path: path.into() }),
        };
        Ok(Form { content, compression })
    }
}
