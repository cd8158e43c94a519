//! What is wrong with a PTX text, and where.

use super::tree::Position;

/// The longest line that an error quotes; the rest is cut.
const QUOTED: usize = 160;

/// A PTX text that cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}, column {column}: {what}\n    {text}")]
pub struct Error {
    /// Line, from 1.
    pub line: u32,
    /// Column in bytes, from 1.
    pub column: u32,
    /// The line itself.
    pub text: String,
    /// What is wrong, and where it helps, what would be right.
    pub what: String,
}

impl Error {
    /// An error at a position of `source`.
    pub fn new(source: &str, at: Position, what: impl Into<String>) -> Error {
        let line = source.lines().nth(at.line.saturating_sub(1) as usize).unwrap_or("").trim();
        let mut text: String = line.chars().take(QUOTED).collect();
        if text.len() < line.len() {
            text.push('…');
        }
        Error { line: at.line, column: at.column, text, what: what.into() }
    }
}

/// A refusal before the source is at hand to quote from.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub at: Position,
    pub what: String,
}

impl Refusal {
    pub fn new(at: Position, what: impl Into<String>) -> Refusal {
        Refusal { at, what: what.into() }
    }

    pub fn quote(self, source: &str) -> Error {
        Error::new(source, self.at, self.what)
    }
}
