//! What can be wrong with training or evaluation text.

use std::path::PathBuf;

use crate::checkpoint;

/// The result of reading or cutting text.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure that names the file, and the line where there is one. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file was named.
    #[error("no text was given; name one or more files of text (.txt, .jsonl, .parquet)")]
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
    #[error(
        "{}: not a supported kind of text; .txt (one document), .jsonl and .json (a document a line), each also with .gz or .zst, \
         and .parquet (a document a row) are",
        path.display()
    )]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// A folder where a file must be.
    #[error("{}: is a folder, not a regular file; name its files, such as '{}/*.jsonl'", path.display(), path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A pattern without a file.
    #[error("{pattern}: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A compressed or Parquet file that cannot be unpacked, or holds something else.
    #[error("{}: {reason}; get or make the file anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A Parquet file of other columns or rows.
    #[error("{}: {reason}", path.display())]
    Rows {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which row where it is in one.
        reason: String,
    },
    /// A document too long to be held.
    #[error("{document}: the text is longer than {} MiB; divide it into documents, such as lines of a .jsonl file", limit >> 20)]
    TooLong {
        /// Its file.
        document: String,
        /// The most bytes, unpacked.
        limit: usize,
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
    /// Evaluation text too long to be tokenised as one.
    #[error(
        "{document}: with it the evaluation text, which is tokenised as one, is longer than {} MiB; evaluate on fewer files",
        limit >> 20
    )]
    Joined {
        /// The first document that is too much.
        document: String,
        /// The most bytes.
        limit: usize,
    },
    /// A file that changed between its hash and its tokens.
    #[error("{}: changed while it was read; run again when nobody writes it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// No room for the tokens.
    #[error(
        "cannot write the tokens: {0}; free space, or name another folder for them: --token-cache DIR, or --token-cache off and \
         TMPDIR"
    )]
    Tokens(std::io::Error),
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
