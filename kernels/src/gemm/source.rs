//! Operands of a product: where panels are packed from.

use std::ops::Range;

/// An f32 matrix with any strides; a transpose is a swap of the two.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Strided<'a> {
    /// A row-major matrix whose rows are `stride` elements apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Strided<'a> {
        Strided { data, row_stride: stride, column_stride: 1 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` elements apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Strided<'a> {
        Strided { data, row_stride: 1, column_stride: stride }
    }

    /// Packs `rows` rows from `row` as `[k, mr]`: element (i, p) goes to `out[p·mr + i]`; rows past `rows` are zero.
    pub(super) fn pack_rows(&self, row: usize, rows: usize, k: usize, mr: usize, out: &mut [f32]) {
        if self.column_stride == 1 {
            for i in 0..mr {
                if i < rows {
                    let from = &self.data[(row + i) * self.row_stride..][..k];
                    for (p, x) in from.iter().enumerate() {
                        out[p * mr + i] = *x;
                    }
                } else {
                    out.iter_mut().skip(i).step_by(mr).for_each(|x| *x = 0.0);
                }
            }
        } else {
            for (p, out) in out.chunks_mut(mr).enumerate() {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = if i < rows { self.data[(row + i) * self.row_stride + p * self.column_stride] } else { 0.0 };
                }
            }
        }
    }

    /// Packs rows `k` and columns `n` (at most `nr` of them) as `[k.len(), nr]`, with zeros in the columns past `n`.
    pub(super) fn pack_columns(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [f32]) {
        let width = n.len();
        if self.column_stride == 1 {
            for (p, out) in k.zip(out.chunks_mut(nr)) {
                out[..width].copy_from_slice(&self.data[p * self.row_stride + n.start..][..width]);
                out[width..].fill(0.0);
            }
        } else {
            if width < nr {
                out.fill(0.0);
            }
            for (j, column) in n.enumerate() {
                let from = &self.data[column * self.column_stride..];
                for (p, out) in k.clone().zip(out.iter_mut().skip(j).step_by(nr)) {
                    *out = from[p * self.row_stride];
                }
            }
        }
    }
}
