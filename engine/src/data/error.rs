//! What can be wrong with training or evaluation text.

use std::path::PathBuf;

use crate::checkpoint;

/// The result of reading or cutting text.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure that names the file, and the line where there is one. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file was named.
    #[error("no text was given; name one or more .txt or .jsonl files")]
    NoFiles,
    /// The system refused to read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file of a kind that is not supported.
    #[error("{}: not a supported kind of text; .txt (one document) and .jsonl (a document a line) are", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// A file without any text.
    #[error("{}: the file holds no text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A text file in another encoding, or no text at all.
    #[error("{}: not UTF-8 at byte {offset}; convert the file to UTF-8", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that is wrong, counted from 0.
        offset: usize,
    },
    /// A line of a .jsonl file that is not a document.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A document that the tokenizer refused.
    #[error("{document}: {cause}")]
    Tokenizer {
        /// The document's file, and line where it has one.
        document: String,
        /// The tokenizer's error.
        cause: checkpoint::Error,
    },
    /// A text shorter than one window.
    #[error("the text has {tokens} tokens, but one window takes {window}: give more text or a shorter sequence length")]
    TooShort {
        /// Tokens found.
        tokens: usize,
        /// Tokens needed.
        window: usize,
    },
    /// Documents of which none is as long as a window.
    #[error(
        "calibration takes windows of {window} tokens within one document, but none of {documents} documents is so long (the \
         longest tried has {longest} tokens): give longer documents or a shorter sequence length"
    )]
    NoWindow {
        /// Tokens needed.
        window: usize,
        /// Documents given.
        documents: usize,
        /// Tokens of the longest that was tokenised.
        longest: usize,
    },
    /// A window in which nothing is predicted.
    #[error("a sequence length of {0} predicts nothing; it must be at least 2")]
    WindowLength(usize),
    /// A saved position that cannot be one of this stream.
    #[error("window {index} of an epoch is asked for, but the text has {windows} windows; is it the same text?")]
    Position {
        /// The saved index.
        index: usize,
        /// Windows of the stream.
        windows: usize,
    },
}
