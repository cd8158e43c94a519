//! Packing on the host, entry by entry: what a GPU's kernels are held against, and what the CPU does, which packs rows for
//! itself and blocks only for tests.

use crate::weight::{MASKS, Tiles};

/// Columns of a block.
const BLOCK: usize = 8;

/// The masks of all blocks, from a flat bitmap over the row-major entries.
pub fn masks(tiles: Tiles, mask: &[u64], bits: &mut [u64]) {
    for (block, bits) in bits.iter_mut().enumerate() {
        let (row, col) = tiles.corner(block);
        let width = tiles.cols.saturating_sub(col).min(BLOCK);
        let rows = (row..tiles.rows.min(row + BLOCK)).filter(|_| width > 0);
        *bits = rows.fold(0, |bits, r| bits | window(mask, r * tiles.cols + col, width) << ((r - row) * BLOCK));
    }
}

/// Where each tile's values start, and their number, which is returned too.
pub fn starts(bits: &[u64], starts: &mut [u32]) -> usize {
    let mut next = 0u32;
    for (start, masks) in starts.iter_mut().zip(bits.chunks(MASKS)) {
        *start = next;
        next += masks.iter().map(|mask| mask.count_ones()).sum::<u32>();
    }
    starts[bits.len() / MASKS] = next;
    next as usize
}

/// The kept entries, of `size` bytes each, in packed order; those that `values` has no room for are left out.
pub fn gather(tiles: Tiles, bits: &[u64], size: usize, source: &[u8], values: &mut [u8]) {
    let mut values = values.chunks_exact_mut(size);
    tiles.each_kept(bits, |_, at| {
        if let Some(value) = values.next() {
            value.copy_from_slice(&source[at * size..][..size]);
        }
    });
}

/// `width` ≤ 8 bits of a bitmap from bit `at`.
fn window(mask: &[u64], at: usize, width: usize) -> u64 {
    let (word, shift) = (at / 64, at % 64);
    let above = if shift + width > 64 { mask[word + 1] << (64 - shift) } else { 0 };
    (mask[word] >> shift | above) & ((1 << width) - 1)
}
