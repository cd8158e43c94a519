//! The same attention out of [matrix tiles](crate::simd::amx), where [16 bits](Precision::Bits16) of each factor will do: three
//! products of parts for one of f32. With the six that f32 needs it was no faster than f32 vectors.
//!
//! Everything goes in blocks of 32×32 numbers: of keys or features by features, of keys by queries. A block is cut into its
//! parts either as the left operand of a product, row by row, or as the right one, by pairs of rows; blocks that follow each
//! other along what is summed are one operand. As activations lie feature by feature, tokens beside each other, three of the
//! operands that a product may ask for lie as they must, and the others are turned over block by block before they are cut.
//! Scores are transposed here too: a tile has keys as rows and queries as columns.

mod backward;
mod forward;

use std::ops::Range;

pub(super) use backward::{backward, slot_len as backward_slot_len};
pub(super) use forward::{forward, shared_len, slot_len as forward_slot_len};

use super::{Head, Panel, carve};
use crate::ops::attention::{Attention, Precision};
use crate::simd::amx::{self, Ahead, Configured, DEPTH, SIDE, TILE};
use crate::simd::{Isa, LANES, transpose};

/// Parts of either operand: 16 bits of a number.
const PARTS: usize = 2;
/// Rows and columns of a block.
const BLOCK: usize = 2 * SIDE;
/// Numbers of a block.
const NUMBERS: usize = BLOCK * BLOCK;
/// bf16 of a block's parts.
const CUT: usize = PARTS * 2 * TILE;
/// f32 of the room that they take, and of a cache line, on which each block begins.
const ROOM: usize = CUT / 2;
const LINE: usize = 16;

const ISA: Isa = Isa::Amx;

/// Whether tiles are the faster way: heads and sequences of fewer would be mostly zeros around them.
pub(super) fn pay(isa: Isa, attention: &Attention) -> bool {
    let allowed = isa == Isa::Amx && attention.precision == Precision::Bits16;
    allowed && attention.head_dim >= SIDE && attention.tokens >= BLOCK
}

/// Blocks of `n` tokens or features.
fn blocks(n: usize) -> usize {
    n.div_ceil(BLOCK)
}

/// Blocks that keys of a tile, which start where a block does, lie in.
fn blocks_of(keys: &Range<usize>) -> Range<usize> {
    keys.start / BLOCK..blocks(keys.end)
}

/// What of `scratch` begins on a cache line.
fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut scratch[skip..]
}

/// Takes the room of `count` cut blocks off `scratch`.
fn carve_blocks<'a>(scratch: &mut &'a mut [f32], count: usize) -> &'a mut [u16] {
    bytemuck::cast_slice_mut(carve(scratch, count * ROOM))
}

/// Some of the blocks that follow each other in `cut`.
fn of(cut: &[u16], range: Range<usize>) -> &[u16] {
    &cut[range.start * CUT..range.end * CUT]
}

/// The place of one block.
fn at(cut: &mut [u16], block: usize) -> &mut [u16] {
    &mut cut[block * CUT..][..CUT]
}

/// Takes a panel `[features, 32]` off `scratch`, whole blocks of `features`, all zeros.
fn carve_panel<'a>(scratch: &mut &'a mut [f32], features: usize) -> &'a mut [f32] {
    let panel = carve(scratch, blocks(features) * NUMBERS);
    panel.fill(0.0);
    panel
}

/// The block `[32, 32]` turned over.
fn turned(block: &[f32]) -> [f32; NUMBERS] {
    let mut turned = [0.0; NUMBERS];
    transpose(ISA, (BLOCK, BLOCK), block, BLOCK, &mut turned, BLOCK);
    turned
}

/// Cuts a block as the left operand of a product.
fn cut_left(block: &[f32], to: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn cut(block: &[f32; NUMBERS], to: &mut [u16; CUT]) {
        use std::arch::x86_64::_mm512_loadu_ps;
        for (row, numbers) in block.chunks_exact(BLOCK).enumerate() {
            // SAFETY: the numbers are two vectors; row after row fills the two tiles of a part, and parts are as far apart.
            unsafe {
                let (left, right) = (_mm512_loadu_ps(numbers.as_ptr()), _mm512_loadu_ps(numbers.as_ptr().add(LANES)));
                amx::cut_row(PARTS, left, right, to.as_mut_ptr().add(row * DEPTH), 2 * TILE);
            }
        }
    }
    let (block, to) = (block.try_into().expect("a block"), to.try_into().expect("a block's parts"));
    // SAFETY: tiles are asked for only where the machine has them, or a test their model, and so AVX-512.
    unsafe { cut(block, to) }
}

/// Cuts a block as the right operand of a product. Numbers that have no parts become NaN.
fn cut_right(block: &[f32], to: &mut [u16]) {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn cut(block: &[f32; NUMBERS], to: &mut [u16; CUT]) {
        use std::arch::x86_64::_mm512_loadu_ps;
        for (pair, numbers) in block.chunks_exact(2 * BLOCK).enumerate() {
            for tile in 0..2 {
                // SAFETY: two rows of two vectors each; pair after pair fills a tile, and parts are two tiles apart.
                unsafe {
                    let even = _mm512_loadu_ps(numbers.as_ptr().add(tile * LANES));
                    let odd = _mm512_loadu_ps(numbers.as_ptr().add(BLOCK + tile * LANES));
                    let to = to.as_mut_ptr().add(tile * TILE + pair * DEPTH);
                    amx::cut_pair(PARTS, even, odd, to, 2 * TILE);
                }
            }
        }
    }
    let (block, to) = (block.try_into().expect("a block"), to.try_into().expect("a block's parts"));
    // SAFETY: tiles are asked for only where the machine has them, or a test their model, and so AVX-512.
    unsafe { cut(block, to) }
}

/// What multiplies blocks on this thread.
struct Unit(Configured);

impl Unit {
    fn new() -> Unit {
        // SAFETY: attention comes here only where the machine has tiles, and no task holds another.
        Unit(unsafe { Configured::new() })
    }

    /// c `[32, 32]` (+)= left · right, both as many blocks along what is summed.
    fn multiply(&self, left: &[u16], right: &[u16], c: &mut [f32], add: bool) {
        #[repr(align(64))]
        struct Zeros([f32; NUMBERS]);
        static ZEROS: Zeros = Zeros([0.0; NUMBERS]);
        let steps = left.len() / CUT;
        assert!(steps > 0 && left.len() == steps * CUT && right.len() == left.len() && c.len() == NUMBERS);
        let operands = (left.as_ptr(), right.as_ptr());
        let from = if add { c.as_ptr() } else { ZEROS.0.as_ptr() };
        let ahead = Ahead { c: c.as_ptr(), operand: left.as_ptr() };
        // SAFETY: the operands have all tiles of their steps, and C 32 rows of 32, as was just checked.
        unsafe { amx::multiply(&self.0, (PARTS, 2), steps, operands, (from, BLOCK), (c.as_mut_ptr(), BLOCK), ahead) }
    }
}

/// K or V of one head, cut.
struct Keys<'a> {
    /// Block after block of keys, each `[32, hd]` as left operands.
    by_keys: &'a mut [u16],
    /// Block after block of features, each `[32, T]` as left operands.
    by_features: &'a mut [u16],
}

impl Keys<'_> {
    /// Cuts all tokens of a head, either way that there is room for. `panel` is a [panel](carve_panel).
    fn cut(self, head: Head<'_>, tokens: usize, panel: &mut [f32]) {
        let (features, of_tokens) = (blocks(head.dim), blocks(tokens));
        for block in 0..of_tokens {
            let first = block * BLOCK;
            head.pack_columns(ISA, first..tokens.min(first + BLOCK), 1.0, BLOCK, panel);
            for (feature, numbers) in panel.chunks_exact(NUMBERS).enumerate() {
                if !self.by_keys.is_empty() {
                    cut_left(&turned(numbers), at(self.by_keys, block * features + feature));
                }
                if !self.by_features.is_empty() {
                    cut_left(numbers, at(self.by_features, feature * of_tokens + block));
                }
            }
        }
    }
}

/// A panel of at most 32 queries.
fn panel(attention: &Attention, index: usize) -> Panel {
    Panel::new(attention, index, BLOCK)
}
