//! Where the columns of B come from.

use std::ops::Range;

use super::{BLOCK, COLUMNS};
use crate::simd::{Isa, transpose};
use crate::strips::{Strips, pieces};

/// The B operand of a product: a `[k, n]` matrix that is read a block at a time.
pub trait Columns: Sync {
    /// Writes rows `k` (at most 64) of columns `n` (at most 64) column by column: element (p, j) of the block goes to
    /// `out[j·64 + p]`, and the places past `k` in a column are zero. `spare` is scratch of the same size.
    fn read(&self, isa: Isa, k: Range<usize>, n: Range<usize>, out: &mut [f32], spare: &mut [f32]);

    /// The share of its entries that are not known to be zero.
    fn density(&self) -> f64 {
        1.0
    }

    /// Of how many bf16 its entries are sums: of one (what is bf16), two (f16) or three (f32).
    fn parts(&self) -> usize {
        3
    }

    /// Asks for what [`read`](Self::read) of this block will need, if that is far away and easily named.
    fn prefetch(&self, _k: Range<usize>, _n: Range<usize>) {}
}

/// A dense row-major f32 matrix as the B operand.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// The row-major matrix `data`, its rows `stride` elements apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Matrix<'a> {
        Matrix { data, stride, transposed: false }
    }

    /// The transpose of the row-major matrix `data`, whose rows are `stride` elements apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Matrix<'a> {
        Matrix { data, stride, transposed: true }
    }
}

impl Columns for Matrix<'_> {
    fn read(&self, isa: Isa, k: Range<usize>, n: Range<usize>, out: &mut [f32], _: &mut [f32]) {
        if self.transposed {
            for (column, out) in n.zip(out.chunks_exact_mut(BLOCK)) {
                out[..k.len()].copy_from_slice(&self.data[column * self.stride..][k.clone()]);
                out[k.len()..].fill(0.0);
            }
        } else {
            if k.len() < BLOCK {
                out.fill(0.0);
            }
            let from = &self.data[k.start * self.stride + n.start..];
            transpose(isa, (k.len(), n.len()), from, self.stride, out, BLOCK);
        }
    }
}

/// Tokens as rows of B, features as its columns: how weights' gradients read an activation.
impl Columns for Strips<'_> {
    fn read(&self, _: Isa, k: Range<usize>, n: Range<usize>, out: &mut [f32], _: &mut [f32]) {
        let mut at = 0;
        for piece in pieces(self.tokens(), k) {
            for (feature, out) in n.clone().zip(out.chunks_exact_mut(BLOCK)) {
                out[at..at + piece.lanes.len()].copy_from_slice(self.row(&piece, feature));
            }
            at += piece.lanes.len();
        }
        out.chunks_exact_mut(BLOCK).take(n.len()).for_each(|out| out[at..].fill(0.0));
    }
}

/// Two operands of as many rows side by side: B = (left | right).
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// The first columns.
    pub left: &'a dyn Columns,
    /// How many they are.
    pub left_columns: usize,
    /// The columns after them.
    pub right: &'a dyn Columns,
}

impl Beside<'_> {
    /// The columns `n` of both, each counted from its own first.
    fn split(&self, n: Range<usize>) -> (Range<usize>, Range<usize>) {
        let left = self.left_columns;
        (n.start.min(left)..n.end.min(left), n.start.max(left) - left..n.end.max(left) - left)
    }
}

impl Columns for Beside<'_> {
    fn read(&self, isa: Isa, k: Range<usize>, n: Range<usize>, out: &mut [f32], spare: &mut [f32]) {
        debug_assert!(n.len() <= COLUMNS);
        let (of_left, of_right) = self.split(n);
        if !of_left.is_empty() {
            self.left.read(isa, k.clone(), of_left.clone(), out, spare);
        }
        if !of_right.is_empty() {
            self.right.read(isa, k, of_right, &mut out[of_left.len() * BLOCK..], spare);
        }
    }
    fn density(&self) -> f64 {
        // Only few columns stand on the right: an adapter's.
        self.left.density()
    }
    fn parts(&self) -> usize {
        // An adapter goes no further than the weight of 16 bits that it stands beside.
        self.right.parts().min(2).max(self.left.parts())
    }
    fn prefetch(&self, k: Range<usize>, n: Range<usize>) {
        let (of_left, of_right) = self.split(n);
        self.left.prefetch(k.clone(), of_left);
        self.right.prefetch(k, of_right);
    }
}
