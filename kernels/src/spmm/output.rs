//! C: where the sums of a product go.

use std::ops::Range;

use crate::simd::{Isa, transpose_into};
use crate::strips::{SharedStrips, Strip};

/// Where C `[m, n]` goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// An activation of m tokens and n features.
    Strips(&'a mut [f32]),
    /// Row-major, of rows this many elements apart.
    Rows(&'a mut [f32], usize),
    /// Cᵀ `[n, m]` row-major, of rows this many elements apart.
    Transposed(&'a mut [f32], usize),
}

/// C, shared between tasks that write disjoint parts.
#[derive(Clone, Copy)]
pub(super) enum SharedOut<'a> {
    Strips(SharedStrips<'a>),
    Matrix { data: *mut f32, stride: usize, transposed: bool },
}
// SAFETY: every user writes elements that no other task touches.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    pub fn new(c: Output<'a>, m: usize, n: usize) -> SharedOut<'a> {
        let (data, stride, transposed) = match c {
            Output::Strips(data) => return SharedOut::Strips(SharedStrips::new(data, m, n)),
            Output::Rows(data, stride) => (data, stride, false),
            Output::Transposed(data, stride) => (data, stride, true),
        };
        let (rows, width) = if transposed { (n, m) } else { (m, n) };
        assert!(stride >= width && data.len() >= (rows - 1) * stride + width, "C is too short");
        SharedOut::Matrix { data: data.as_mut_ptr(), stride, transposed }
    }

    /// Writes, or adds, the sums of some columns, `[columns, width]`, of which `strip.width` stand for rows of C.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    pub unsafe fn put(
        self,
        isa: Isa,
        columns: Range<usize>,
        strip: Strip,
        sums: &[f32],
        width: usize,
        accumulate: bool,
    ) {
        if let SharedOut::Matrix { data, stride, transposed: false } = self {
            // SAFETY: the caller's.
            unsafe {
                let out = data.add(strip.first * stride + columns.start);
                transpose_into(isa, (columns.len(), strip.width), sums, width, out, stride, accumulate);
            }
            return;
        }
        for (column, sums) in columns.zip(sums.chunks_exact(width)) {
            // SAFETY: the caller's; a column of C is a row of Cᵀ, and of a strip.
            let out = unsafe {
                match self {
                    SharedOut::Strips(c) => c.rows(strip, column..column + 1),
                    SharedOut::Matrix { data, stride, .. } => {
                        std::slice::from_raw_parts_mut(data.add(column * stride + strip.first), strip.width)
                    }
                }
            };
            let sums = &sums[..strip.width];
            if accumulate {
                out.iter_mut().zip(sums).for_each(|(out, x)| *out += x);
            } else {
                out.copy_from_slice(sums);
            }
        }
    }
}
