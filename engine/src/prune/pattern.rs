//! How many entries go, and within what they are compared.

use std::fmt;
use std::str::FromStr;

use super::{Error, Result};

/// A sparsity pattern.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// ⌊sparsity·n⌋ of a matrix's n entries go.
    Unstructured {
        /// The share of entries that go, in [0, 1).
        sparsity: f64,
    },
    /// In every m consecutive entries of a row, n stay.
    NM {
        /// How many stay.
        n: usize,
        /// Of how many.
        m: usize,
    },
}

impl Pattern {
    /// An unstructured pattern.
    ///
    /// # Errors
    /// A sparsity outside [0, 1).
    pub fn unstructured(sparsity: f64) -> Result<Pattern> {
        if (0.0..1.0).contains(&sparsity) {
            Ok(Pattern::Unstructured { sparsity })
        } else {
            Err(Error::Sparsity(sparsity))
        }
    }

    /// The share of entries that go.
    pub fn sparsity(self) -> f64 {
        match self {
            Pattern::Unstructured { sparsity } => sparsity,
            Pattern::NM { n, m } => 1.0 - n as f64 / m as f64,
        }
    }

    /// How many of `entries` that are compared with each other go: ⌊sparsity·entries⌋, as Python's int(s·n), the product in
    /// f64, cut.
    pub(super) fn removed(self, entries: usize) -> usize {
        match self {
            Pattern::Unstructured { sparsity } => (sparsity * entries as f64) as usize,
            Pattern::NM { n, m } => entries / m * (m - n),
        }
    }

    /// How many entries of a `[rows, cols]` matrix stay where all are compared with each other (or, for n:m, groups).
    ///
    /// # Errors
    /// Rows that cannot be cut into groups of m (names the tensor); a sparsity outside [0, 1).
    pub fn kept(self, rows: usize, cols: usize, tensor: &str) -> Result<usize> {
        match self {
            Pattern::Unstructured { sparsity } if !(0.0..1.0).contains(&sparsity) => Err(Error::Sparsity(sparsity)),
            Pattern::Unstructured { .. } => Ok(rows * cols - self.removed(rows * cols)),
            Pattern::NM { n, m } if cols.is_multiple_of(m) => Ok(rows * cols / m * n),
            Pattern::NM { n, m } => Err(Error::Groups { tensor: tensor.into(), cols, n, m }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured { sparsity } => write!(f, "unstructured {sparsity}"),
            Pattern::NM { n, m } => write!(f, "{n}:{m}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    /// Reads `n:m`.
    fn from_str(text: &str) -> Result<Pattern> {
        let parsed = text.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match parsed {
            Some((n, m)) if 0 < n && n < m && m <= 32 => Ok(Pattern::NM { n, m }),
            _ => Err(Error::Pattern(text.into())),
        }
    }
}
