//! Columns of B unpacked for the micro-kernel: two by two, as the rows where both have an entry, and where one has.

use super::{BLOCK, PASS_BLOCKS, TASK_COLUMNS};
use crate::simd::Isa;

/// Entries of two columns of B in 64 rows. Bit p of a mask stands for row p of the block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Masks {
    /// Rows where both columns have an entry. Their values stand first: those of the first column, then those of the
    /// second.
    pub both: u64,
    /// Rows where only the first has one; the values follow.
    pub first: u64,
    /// Rows where only the second has one; the values follow.
    pub second: u64,
}

impl Masks {
    /// Of how many rows, from the block's first on, both columns have all and no other.
    pub fn dense(&self) -> Option<usize> {
        let gapless = self.both & self.both.wrapping_add(1) == 0;
        (self.first == 0 && self.second == 0 && gapless).then_some(self.both.count_ones() as usize)
    }
}

/// A pass of a task's columns.
pub(super) struct Pairs {
    masks: Vec<Masks>,
    values: Vec<f32>,
    /// For each block, where its masks and its values start; and where the next would.
    starts: [(usize, usize); PASS_BLOCKS + 1],
    blocks: usize,
    /// Where the next pair's masks and values go.
    end: (usize, usize),
}

/// The vector stores of [`split_avx512`] write whole registers.
const SLACK: usize = 16;
const MASKS: usize = TASK_COLUMNS / 2 * PASS_BLOCKS;
const VALUES: usize = TASK_COLUMNS * BLOCK * PASS_BLOCKS + SLACK;

impl Pairs {
    /// Bytes of memory.
    pub const BYTES: usize = MASKS * size_of::<Masks>() + VALUES * 4;

    pub fn new() -> Pairs {
        Pairs {
            masks: vec![Masks::default(); MASKS],
            values: vec![0.0; VALUES],
            starts: [(0, 0); PASS_BLOCKS + 1],
            blocks: 0,
            end: (0, 0),
        }
    }

    pub fn clear(&mut self) {
        (self.blocks, self.end) = (0, (0, 0));
    }

    /// Appends `columns` columns of 64 rows each, as [`Columns::read`](super::Columns::read) writes them, to the block that is
    /// being filled. Only its last columns may be odd in number.
    pub fn push(&mut self, isa: Isa, columns: usize, by_columns: &mut [f32]) {
        let (mut pair, mut value) = self.end;
        if columns % 2 == 1 {
            by_columns[columns * BLOCK..][..BLOCK].fill(0.0);
        }
        for two in by_columns.chunks_exact(2 * BLOCK).take(columns.div_ceil(2)) {
            let (masks, written) = split(isa, two, &mut self.values[value..]);
            self.masks[pair] = masks;
            pair += 1;
            value += written;
        }
        self.end = (pair, value);
    }

    /// Ends a block: what is appended next belongs to the one after it.
    pub fn end_block(&mut self) {
        self.blocks += 1;
        self.starts[self.blocks] = self.end;
    }

    /// The masks of block `index`, a pair of columns each, and the values of all of them in order.
    pub fn block(&self, index: usize) -> (&[Masks], &[f32]) {
        let ((pair, value), (pairs_end, values_end)) = (self.starts[index], self.starts[index + 1]);
        (&self.masks[pair..pairs_end], &self.values[value..values_end])
    }
}

/// Splits two columns of 64 into lists; returns the masks and how many values were written.
fn split(isa: Isa, two: &[f32], values: &mut [f32]) -> (Masks, usize) {
    let (first, second) = two.split_at(BLOCK);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        assert!(first.len() == BLOCK && second.len() == BLOCK && values.len() >= 2 * BLOCK + SLACK);
        // SAFETY: the machine has AVX-512F; both columns hold 64 elements and `values` all of them and a register more.
        return unsafe { split_avx512(first.as_ptr(), second.as_ptr(), values.as_mut_ptr()) };
    }
    let _ = isa; // Where there is no x86, nothing asks for it.
    let (of_first, of_second) = (entries(first), entries(second));
    let masks = Masks { both: of_first & of_second, first: of_first & !of_second, second: of_second & !of_first };
    let mut written = 0;
    let lists = [(masks.both, first), (masks.both, second), (masks.first, first), (masks.second, second)];
    for (mut mask, column) in lists {
        while mask != 0 {
            values[written] = column[mask.trailing_zeros() as usize];
            written += 1;
            mask &= mask - 1;
        }
    }
    (masks, written)
}

/// Bit p is set where `column[p]` is not zero.
fn entries(column: &[f32]) -> u64 {
    column.iter().enumerate().fold(0, |mask, (p, x)| mask | u64::from(*x != 0.0) << p)
}

/// # Safety
/// On a machine with AVX-512F; `first` and `second` hold 64 elements, `values` has room for 128 and a register more.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn split_avx512(first: *const f32, second: *const f32, values: *mut f32) -> (Masks, usize) {
    use std::arch::x86_64::*;
    let (mut x, mut y) = ([_mm512_setzero_ps(); 4], [_mm512_setzero_ps(); 4]);
    let (mut of_first, mut of_second) = ([0u16; 4], [0u16; 4]);
    for q in 0..4 {
        // SAFETY: both columns hold 64 elements.
        unsafe {
            x[q] = _mm512_loadu_ps(first.add(16 * q));
            y[q] = _mm512_loadu_ps(second.add(16 * q));
        }
        of_first[q] = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(x[q], _mm512_setzero_ps());
        of_second[q] = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(y[q], _mm512_setzero_ps());
    }
    if (of_first, of_second) == ([u16::MAX; 4], [u16::MAX; 4]) {
        for (at, vector) in x.iter().chain(&y).enumerate() {
            // SAFETY: there is room for 128 values.
            unsafe { _mm512_storeu_ps(values.add(16 * at), *vector) };
        }
        return (Masks { both: u64::MAX, first: 0, second: 0 }, 2 * BLOCK);
    }
    let mut written = 0;
    let mut compress = |column: &[__m512; 4], mask: [u16; 4]| {
        let mut word = 0;
        for q in 0..4 {
            // SAFETY: at most 128 values are written in all, and one register may reach past them.
            unsafe { _mm512_storeu_ps(values.add(written), _mm512_maskz_compress_ps(mask[q], column[q])) };
            written += mask[q].count_ones() as usize;
            word |= u64::from(mask[q]) << (16 * q);
        }
        word
    };
    let each = |f: fn(u16, u16) -> u16| std::array::from_fn(|q| f(of_first[q], of_second[q]));
    let both = compress(&x, each(|x, y| x & y));
    compress(&y, each(|x, y| x & y));
    let first = compress(&x, each(|x, y| x & !y));
    let second = compress(&y, each(|x, y| y & !x));
    (Masks { both, first, second }, written)
}
