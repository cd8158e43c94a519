//! A frozen weight with an adapter inside: W + s·M⊙(B·A), or W⊙(B·A).
//!
//! M is 1 where W has an entry: at the stored entries of a packed weight, a stored zero among them, and at the nonzeros of a
//! dense one. So what is multiplied has W's zeros whatever A and B are, and merging the adapter into W keeps each of them
//! (Zimmer et al. 2023, "PERP", MaskLoRA and ScaleLoRA).
//!
//! The sum over the rank cannot be split from the product as plain LoRA's can, so the entries are formed where a product
//! unpacks them: on the CPU 64 by 64 in cache, for as long as all tokens pass, r multiply-adds an entry and call, beside one for
//! each token; on a GPU in shared memory, for 256 tokens. [`merge`] forms them with the CPU's operations in the CPU's order.

use std::ops::Range;

use rayon::prelude::*;

use super::FrozenWeight;
use crate::device::{Backend, Buffer, DType};
use crate::error::{Error, Result, expect_buffer};
use crate::simd::{F32x16, Isa, LANES, madd};
use crate::simd_fn;
use crate::spmm::{BLOCK, COLUMNS};

/// What the product p of B's row and A's column makes of a kept entry w.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// w + s·p, s = α/r.
    Add {
        /// s.
        scale: f32,
    },
    /// w·p.
    Scale,
}

/// W and the adapter in it.
#[derive(Clone, Copy, Debug)]
pub struct Adapted<'a> {
    /// W `[out, in]`.
    pub weight: &'a FrozenWeight,
    /// A, f32 `[rank, in]`.
    pub a: &'a Buffer,
    /// B, f32 `[out, rank]`.
    pub b: &'a Buffer,
    /// r.
    pub rank: usize,
    /// What becomes of W.
    pub form: Form,
}

impl Adapted<'_> {
    /// Checks the adapter's operands, for `op`.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        expect_buffer(op, "A", self.a, DType::F32, self.rank * self.weight.cols())?;
        expect_buffer(op, "B", self.b, DType::F32, self.weight.rows() * self.rank)
    }

    /// Checks them for an `op` that only the CPU has kernels for.
    pub(crate) fn check_on_cpu(&self, op: &'static str) -> Result<()> {
        if self.weight.device().backend() == Backend::Cuda {
            let what = "an adapter inside a weight (masked or scaled)".into();
            return Err(Error::Unsupported { op, what, device: "cuda" });
        }
        self.check(op)
    }

    /// Bytes of W, A and B.
    pub(super) fn size_bytes(&self) -> usize {
        self.weight.size_bytes() + self.a.size_bytes() + self.b.size_bytes()
    }

    /// Operations of the CPU to form every entry once: of all places, for vectors of them are formed together. A GPU forms them
    /// as often as its products read them, and counts that with these.
    pub(crate) fn flops(&self) -> usize {
        match self.weight.device().backend() {
            Backend::Cpu => 2 * (self.rank + 1) * self.weight.rows() * self.weight.cols(),
            Backend::Cuda => 0,
        }
    }

    /// Writes which entries (`rows`, `cols`), at most 64 columns, are kept: a word a row, bit j for column `cols.start + j`.
    /// `block` holds the entries, 64 places a row.
    pub(crate) fn kept(&self, rows: Range<usize>, cols: Range<usize>, block: &[f32], masks: &mut [u64]) {
        for ((row, mask), block) in rows.zip(masks).zip(block.chunks_exact(BLOCK)) {
            *mask = self.weight.kept(row, cols.clone()).unwrap_or_else(|| nonzeros(&block[..cols.len()]));
        }
    }

    /// Writes entries (`rows`, `cols`) of W itself, as [`WeightRef`](super::WeightRef) does its own.
    pub(crate) fn read_frozen(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        self.weight.read_block(isa, rows, cols, out);
    }

    /// Writes entries (`rows`, `cols`), at most 64 by 64, 64 places a row and zeros past `cols`.
    pub(super) fn read_block(
        &self,
        isa: Isa,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [f32],
        spare: &mut [f32],
    ) {
        self.weight.read_block(isa, rows.clone(), cols.clone(), out);
        let mut masks = [0; COLUMNS];
        self.kept(rows.clone(), cols.clone(), out, &mut masks);
        let b = &self.b.f32()[rows.start * self.rank..];
        let a = Factor::new(self.a.f32(), self.weight.cols(), self.rank, cols, spare);
        form_rows(isa, &mut out[..rows.len() * BLOCK], &masks, b, a, self.form);
    }

    /// Writes entries (`row`, `cols`) as f32.
    pub(super) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let (mut block, mut spare) = ([0.0; BLOCK], [0.0; BLOCK * COLUMNS]);
        for at in cols.clone().step_by(BLOCK) {
            let part = at..cols.end.min(at + BLOCK);
            self.read_block(Isa::best(), row..row + 1, part.clone(), &mut block, &mut spare);
            out[at - cols.start..][..part.len()].copy_from_slice(&block[..part.len()]);
        }
    }
}

/// Which entries of a weight an adapter may change.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// All: plain LoRA in a dense weight.
    All,
    /// Those that are not zero.
    Nonzero,
    /// Bit i%64 of word i/64 stands for entry i of the row-major matrix.
    Bits(&'a [u64]),
}

impl Kept<'_> {
    /// A word for `block`, at most 64 entries from entry `at` of the matrix.
    fn word(self, at: usize, block: &[f32]) -> u64 {
        let low = |len: usize| if len == BLOCK { u64::MAX } else { (1 << len) - 1 };
        match self {
            Kept::All => low(block.len()),
            Kept::Nonzero => nonzeros(block),
            Kept::Bits(words) => {
                let shift = at % 64;
                let above = words.get(at / 64 + 1).filter(|_| shift > 0).map_or(0, |word| word << (64 - shift));
                (words[at / 64] >> shift | above) & low(block.len())
            }
        }
    }
}

/// Forms every entry of `w`, `[rows, cols]` row-major, in place: what products with an [`Adapted`] weight multiply, bit for
/// bit where they run on this machine's CPU. Entries that are not kept become zero. A is `[rank, cols]`, B `[rows, rank]`.
///
/// # Panics
/// If a slice does not have its shape's number of elements.
pub fn merge(w: &mut [f32], cols: usize, kept: Kept<'_>, (a, b, rank): (&[f32], &[f32], usize), form: Form) {
    /// Rows of a task.
    const ROWS: usize = 16;
    let rows = w.len().checked_div(cols).unwrap_or(0);
    assert!(w.len() == rows * cols && a.len() == rank * cols && b.len() == rows * rank, "W, A and B fit each other");
    w.par_chunks_mut((ROWS * cols).max(1)).enumerate().for_each(|(task, w)| {
        let (first, mut spare) = (task * ROWS, vec![0.0; BLOCK * COLUMNS]);
        let (mut block, mut masks) = ([0.0; ROWS * BLOCK], [0; ROWS]);
        for col in (0..cols).step_by(BLOCK) {
            let width = BLOCK.min(cols - col);
            let lines = w.chunks_exact(cols).zip(block.chunks_exact_mut(BLOCK)).zip(&mut masks).enumerate();
            for (row, ((w, block), mask)) in lines {
                block[..width].copy_from_slice(&w[col..][..width]);
                *mask = kept.word((first + row) * cols + col, &block[..width]);
            }
            let factor = Factor::new(a, cols, rank, col..col + width, &mut spare);
            let rows = w.len() / cols;
            form_rows(Isa::best(), &mut block[..rows * BLOCK], &masks, &b[first * rank..], factor, form);
            for (w, block) in w.chunks_exact_mut(cols).zip(block.chunks_exact(BLOCK)) {
                w[col..][..width].copy_from_slice(&block[..width]);
            }
        }
    });
}

/// Bit j is set where entry j is not zero.
fn nonzeros(entries: &[f32]) -> u64 {
    entries.iter().enumerate().fold(0, |mask, (j, x)| mask | u64::from(*x != 0.0) << j)
}

/// At most 64 columns of A.
#[derive(Clone, Copy)]
struct Factor<'a> {
    data: &'a [f32],
    /// Elements from row to row.
    stride: usize,
    rank: usize,
}

impl<'a> Factor<'a> {
    /// Columns `cols` of A `[rank, width]`. Where `spare` has room its rows are brought together there: apart by a power of
    /// two they would push each other out of the cache.
    fn new(a: &'a [f32], width: usize, rank: usize, cols: Range<usize>, spare: &'a mut [f32]) -> Factor<'a> {
        if rank > spare.len() / BLOCK {
            return Factor { data: &a[cols.start..], stride: width, rank };
        }
        for (row, to) in spare.chunks_exact_mut(BLOCK).take(rank).enumerate() {
            to[..cols.len()].copy_from_slice(&a[row * width..][cols.clone()]);
            to[cols.len()..].fill(0.0);
        }
        Factor { data: spare, stride: BLOCK, rank }
    }

    /// True where every row has [`BLOCK`] columns.
    fn whole(&self) -> bool {
        self.data.len() >= self.rank.saturating_sub(1) * self.stride + BLOCK
    }

    /// Sixteen columns of a row; past A's end zeros. What lies past the columns that were asked for is not kept.
    ///
    /// # Safety
    /// `row` is less than the rank, and `at` at most 48. If `WHOLE`, then [`whole`](Self::whole) is true.
    #[inline(always)]
    unsafe fn vector<const WHOLE: bool>(&self, row: usize, at: usize) -> F32x16 {
        let first = row * self.stride + at;
        if WHOLE {
            // SAFETY: the caller's.
            return F32x16::load(unsafe { self.data.get_unchecked(first..first + LANES) });
        }
        F32x16::load_partial(&self.data[first.min(self.data.len())..], 0.0)
    }
}

simd_fn! {
    /// Forms the rows of `block`, 64 places each, in place. `b` starts with the first row's.
    fn form_rows(block: &mut [f32], masks: &[u64], b: &[f32], a: Factor<'_>, form: Form) {
        /// As many rows as let sums and A's vectors stay in registers.
        const ROWS: usize = 4;
        let mut products = [0.0; ROWS * BLOCK];
        for (group, (block, masks)) in block.chunks_mut(ROWS * BLOCK).zip(masks.chunks(ROWS)).enumerate() {
            let b = &b[group * ROWS * a.rank..];
            if block.len() == ROWS * BLOCK && a.whole() {
                multiply::<ROWS, true, FMA>(b, a, &mut products);
            } else {
                for row in 0..block.len() / BLOCK {
                    multiply::<1, false, FMA>(&b[row * a.rank..], a, &mut products[row * BLOCK..]);
                }
            }
            for ((block, products), mask) in block.chunks_exact_mut(BLOCK).zip(products.chunks_exact(BLOCK)).zip(masks) {
                match form {
                    Form::Add { scale } => form_row(block, products, *mask, |w, p| madd::<FMA>(p, scale, w)),
                    Form::Scale => form_row(block, products, *mask, |w, p| w * p),
                }
            }
        }
    }
}

/// products = B·A for `ROWS` rows of B, two vectors of each at a time. If `WHOLE`, A is [`whole`](Factor::whole).
#[inline(always)]
fn multiply<const ROWS: usize, const WHOLE: bool, const FMA: bool>(b: &[f32], a: Factor<'_>, products: &mut [f32]) {
    assert!(b.len() >= ROWS * a.rank && products.len() >= ROWS * BLOCK && (!WHOLE || a.whole()));
    for at in (0..BLOCK).step_by(2 * LANES) {
        let mut sums = [[F32x16::ZERO; 2]; ROWS];
        for k in 0..a.rank {
            // SAFETY: k is less than the rank, the vectors lie in the block, and A was just seen to be whole if it is said to be.
            let x = unsafe { [a.vector::<WHOLE>(k, at), a.vector::<WHOLE>(k, at + LANES)] };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `b` has `rank` elements for each of ROWS rows.
                let factor = F32x16::splat(unsafe { *b.get_unchecked(row * a.rank + k) });
                for half in 0..2 {
                    sums[half] = x[half].madd::<FMA>(factor, sums[half]);
                }
            }
        }
        for row in 0..ROWS {
            for half in 0..2 {
                sums[row][half].store(&mut products[row * BLOCK + at + half * LANES..]);
            }
        }
    }
}

/// w ← `formed` of w and its product where it is kept, and zero elsewhere.
// Lane by lane, for the compiler to make vectors of: of a loop over vectors it makes single lanes.
#[inline(always)]
fn form_row(block: &mut [f32], products: &[f32], mask: u64, formed: impl Fn(f32, f32) -> f32) {
    for (j, (w, p)) in block.iter_mut().zip(products).enumerate() {
        let x = formed(*w, *p);
        *w = if mask >> j & 1 == 1 { x } else { 0.0 };
    }
}
