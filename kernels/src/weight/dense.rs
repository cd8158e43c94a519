//! Dense frozen weights: the file's entries as they are.

use std::ops::Range;

use half::{bf16, f16};

use super::{check_source, widen};
use crate::device::{Buffer, Category, DType, Device, Element};
use crate::error::Result;

/// A row-major `[rows, cols]` weight in f32, f16 or bf16, often a part of a mapped file.
#[derive(Debug)]
pub struct DenseWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) values: Buffer,
}

impl DenseWeight {
    pub(super) fn new(values: Buffer, rows: usize, cols: usize) -> Result<DenseWeight> {
        check_source(&values, rows, cols)?;
        Ok(DenseWeight { rows, cols, values })
    }

    /// A copy of `source` with zeros where `mask` has none.
    pub(super) fn masked(
        device: &Device,
        source: &Buffer,
        rows: usize,
        cols: usize,
        mask: &Buffer,
    ) -> Result<DenseWeight> {
        fn keep<T: Element>(source: &Buffer, mask: &[u64], values: &mut Buffer) {
            let to = values.as_mut_slice::<T>();
            for (i, (to, from)) in to.iter_mut().zip(source.as_slice::<T>()).enumerate() {
                *to = if mask[i / 64] >> (i % 64) & 1 == 1 { *from } else { T::zeroed() };
            }
        }
        check_source(source, rows, cols)?;
        let mut values = device.alloc(Category::Weights, source.dtype(), source.len())?;
        if !device.is_meta() {
            let mask = mask.as_slice::<u64>();
            match source.dtype() {
                DType::F16 => keep::<f16>(source, mask, &mut values),
                DType::BF16 => keep::<bf16>(source, mask, &mut values),
                _ => keep::<f32>(source, mask, &mut values),
            }
        }
        Ok(DenseWeight { rows, cols, values })
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
