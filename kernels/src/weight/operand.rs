//! Weights of every kind as operands of products.

use std::ops::Range;

use half::{bf16, f16};

use super::{Adapted, FrozenWeight};
use crate::device::{Buffer, DType};
use crate::simd::{Isa, LANES, Widen, transpose};
use crate::spmm::{BLOCK, COLUMNS, Columns};

/// A weight as a product's operand.
#[derive(Clone, Copy, Debug)]
pub enum WeightRef<'a> {
    /// A frozen weight.
    Frozen(&'a FrozenWeight),
    /// A trainable one: dense f32 `[rows, cols]`.
    Trainable {
        /// The entries.
        value: &'a Buffer,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Which entries may be other than zero, where not all may: as [`FrozenWeight::pruned`] has it.
        mask: Option<&'a Buffer>,
    },
    /// A frozen weight with an adapter inside.
    Adapted(Adapted<'a>),
}

impl<'a> WeightRef<'a> {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            WeightRef::Frozen(w) => w.rows(),
            WeightRef::Trainable { rows, .. } => *rows,
            WeightRef::Adapted(w) => w.weight.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            WeightRef::Frozen(w) => w.cols(),
            WeightRef::Trainable { cols, .. } => *cols,
            WeightRef::Adapted(w) => w.weight.cols(),
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        match self {
            WeightRef::Frozen(w) => w.size_bytes(),
            WeightRef::Trainable { value, .. } => value.size_bytes(),
            WeightRef::Adapted(w) => w.size_bytes(),
        }
    }

    /// Writes entries (`row`, `cols`) as f32.
    pub fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        match self {
            WeightRef::Frozen(w) => w.read(row, cols, out),
            WeightRef::Trainable { value, cols: width, .. } => {
                out[..cols.len()].copy_from_slice(&value.f32()[row * width..][cols]);
            }
            WeightRef::Adapted(w) => w.read(row, cols, out),
        }
    }

    /// Writes entries (`rows`, `cols`), at most 64 by 64, as f32: row by row, 64 places each, zeros past `cols`. `spare` is
    /// scratch of 64 by 64.
    fn read_block(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], spare: &mut [f32]) {
        match self {
            WeightRef::Frozen(w) => w.read_block(isa, rows, cols, out),
            WeightRef::Trainable { .. } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(BLOCK)) {
                    self.read(row, cols.clone(), &mut out[..cols.len()]);
                    out[cols.len()..].fill(0.0);
                }
            }
            WeightRef::Adapted(w) => w.read_block(isa, rows, cols, out, spare),
        }
    }

    /// Writes entries (`rows`, `cols`), at most 64 by 64, as f32, column by column: 64 places each, zeros past `rows`. `spare` is
    /// scratch of 64 by 64.
    fn read_turned(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], spare: &mut [f32]) {
        let (values, width) = match self {
            WeightRef::Frozen(FrozenWeight::Sparse(w)) if w.read_turned(isa, rows.clone(), cols.clone(), out) => return,
            WeightRef::Frozen(FrozenWeight::Dense(w)) => (&w.values, w.cols),
            WeightRef::Trainable { value, cols, .. } => (*value, *cols),
            _ => {
                self.read_block(isa, rows.clone(), cols.clone(), spare, out);
                let columns = cols.len().next_multiple_of(LANES);
                return turn(isa, (rows.len(), columns), spare, COLUMNS, out);
            }
        };
        let (shape, first) = ((rows.len(), cols.len()), rows.start * width + cols.start);
        match values.dtype() {
            DType::F16 => turn(isa, shape, &values.as_slice::<f16>()[first..], width, out),
            DType::BF16 => turn(isa, shape, &values.as_slice::<bf16>()[first..], width, out),
            _ => turn(isa, shape, &values.f32()[first..], width, out),
        }
    }

    /// Floating-point operations of a product with `n` rows. On the CPU only stored entries are multiplied; blocks are, on a
    /// GPU, as if they were dense. What is adapted is formed first.
    pub fn product_flops(&self, n: usize) -> usize {
        match self {
            WeightRef::Frozen(w) => 2 * n * w.multiplied(),
            WeightRef::Trainable { rows, cols, .. } => 2 * n * rows * cols,
            WeightRef::Adapted(w) => 2 * n * w.weight.multiplied() + w.flops(),
        }
    }

    /// Those of x·Wᵀ: sparse tensor cores skip the zeros of 2:4 weights, in this direction alone.
    pub fn forward_flops(&self, n: usize) -> usize {
        match self {
            WeightRef::Frozen(FrozenWeight::TwoFour(_)) => self.product_flops(n) / 2,
            _ => self.product_flops(n),
        }
    }

    /// Wᵀ `[in, out]` as the B operand of Y = X·Wᵀ.
    pub fn transposed(self) -> WeightColumns<'a> {
        WeightColumns { weight: self, transposed: true }
    }

    /// W `[out, in]` as the B operand of dX = dY·W.
    pub fn straight(self) -> WeightColumns<'a> {
        WeightColumns { weight: self, transposed: false }
    }
}

/// A weight, read as a product needs it.
#[derive(Clone, Copy, Debug)]
pub struct WeightColumns<'a> {
    weight: WeightRef<'a>,
    transposed: bool,
}

impl Columns for WeightColumns<'_> {
    fn read(&self, isa: Isa, k: Range<usize>, n: Range<usize>, out: &mut [f32], spare: &mut [f32]) {
        if self.transposed {
            self.weight.read_block(isa, n, k, out, spare);
        } else {
            self.weight.read_turned(isa, k, n, out, spare);
        }
    }
    fn density(&self) -> f64 {
        match self.weight {
            WeightRef::Frozen(weight) | WeightRef::Adapted(Adapted { weight, .. }) => weight.density(),
            WeightRef::Trainable { mask: None, .. } => 1.0,
            WeightRef::Trainable { rows, cols, mask: Some(mask), .. } => {
                let kept: u32 = mask.as_slice::<u64>().iter().map(|word| word.count_ones()).sum();
                f64::from(kept) / (rows * cols).max(1) as f64
            }
        }
    }
    fn parts(&self) -> usize {
        match self.weight {
            WeightRef::Frozen(weight) => match weight.dtype() {
                DType::BF16 => 1,
                DType::F16 => 2,
                _ => 3,
            },
            WeightRef::Trainable { .. } | WeightRef::Adapted(_) => 3,
        }
    }
    fn prefetch(&self, k: Range<usize>, n: Range<usize>) {
        let (rows, cols) = if self.transposed { (n, k) } else { (k, n) };
        let (values, width) = match self.weight {
            WeightRef::Trainable { value, cols, .. } => (value, cols),
            WeightRef::Frozen(weight) | WeightRef::Adapted(Adapted { weight, .. }) => match weight {
                FrozenWeight::Dense(w) => (&w.values, w.cols),
                FrozenWeight::Sparse(w) => return w.prefetch(rows, cols),
                FrozenWeight::Blocks(_) | FrozenWeight::TwoFour(_) => return,
            },
        };
        let (bytes, size) = (values.bytes(), values.dtype().size());
        for row in rows {
            let at = row * width;
            crate::simd::prefetch(&bytes[(at + cols.start) * size..(at + cols.end) * size]);
        }
    }
}

/// The columns of a block of at most 64 rows, 64 places each, zeros past the rows.
fn turn<T: Widen>(isa: Isa, (rows, cols): (usize, usize), block: &[T], stride: usize, out: &mut [f32]) {
    if rows < BLOCK {
        out.fill(0.0);
    }
    transpose(isa, (rows, cols), block, stride, out, BLOCK);
}
