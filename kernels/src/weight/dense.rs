//! Dense frozen weights: the file's entries as they are.

use std::ops::Range;
use std::sync::OnceLock;

use super::{check_source, widen};
use crate::device::Buffer;
use crate::error::Result;

/// A row-major `[rows, cols]` weight in f32, f16 or bf16, often a part of a mapped file.
#[derive(Debug)]
pub struct DenseWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) values: Buffer,
    /// How many entries are zero, once that was asked.
    pub(super) zeros: OnceLock<usize>,
}

impl DenseWeight {
    pub(super) fn new(values: Buffer, rows: usize, cols: usize) -> Result<DenseWeight> {
        check_source(&values, rows, cols)?;
        Ok(DenseWeight { rows, cols, values, zeros: OnceLock::new() })
    }

    /// The entries.
    pub fn values(&self) -> &Buffer {
        &self.values
    }

    pub(super) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let start = row * self.cols;
        widen(&self.values, start + cols.start..start + cols.end, &mut out[..cols.len()]);
    }
}
