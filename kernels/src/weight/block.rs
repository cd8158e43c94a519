//! Packed sparse weights as GPUs read them: a mask for every 8×8 entries, and the kept entries behind it.
//!
//! The matrix is cut into tiles of 32×32 entries, row-major: tile t is row t / ⌈cols/32⌉ and column t % ⌈cols/32⌉ of the
//! tiles. A tile is cut into 4×4 blocks of 8×8 entries, row-major: block b is row b / 4 and column b % 4 of its blocks. A
//! panel of either product, 32 deep and some tiles wide, is therefore whole tiles, and one copy serves W and Wᵀ. Places past
//! the matrix's edges are there, and never kept. Three arrays:
//!
//! * `bits` — u64, 16 a tile: word 16·t + b is the mask of block b of tile t. Its bit 8·r + c is set where the entry of the
//!   block's row r and column c is kept. In bytes: mask b of tile t starts at byte 128·t + 8·b, its byte r holds row r, bit c
//!   of that byte column c.
//! * `starts` — u32, one a tile and one more: the index in `values` of the tile's first kept entry; the last is their number.
//! * `values` — the kept entries in the file's element type, without gaps: tile after tile, in a tile block after block, in a
//!   block by rising bits of its mask.
//!
//! A thread group finds its values by counting bits: those of tile t, block b, bit i start at `starts[t]`, plus the ones in
//! the tile's masks before b, plus the ones of mask b below i. [`pack`](crate::ops::pack) makes it. At density d and v bits a value that is d·v + 1 + 1/32 bits an
//! entry, 9.03 for 16 bits at half density, for any pattern of the mask: what a plan accounts needs no mask.

use std::ops::Range;

use half::{bf16, f16};

use super::widen;
use crate::device::{Buffer, DType, Element};
use crate::error::Result;

/// Rows and columns of a tile.
const TILE: usize = 32;
/// Rows and columns of a block.
const BLOCK: usize = 8;
/// Blocks along a side of a tile.
const SIDE: usize = TILE / BLOCK;
/// Masks of a tile.
#[doc(hidden)]
pub const MASKS: usize = SIDE * SIDE;

/// A `[rows, cols]` weight of which only the kept entries are stored, in blocks.
#[derive(Debug)]
pub struct BlockWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    bits: Buffer,
    starts: Buffer,
    pub(super) values: Buffer,
}

impl BlockWeight {
    /// Bytes of the packed form.
    pub fn bytes_for(rows: usize, cols: usize, dtype: DType, kept: usize) -> usize {
        let tiles = Tiles { rows, cols };
        tiles.masks() * 8 + (tiles.count() + 1) * 4 + kept * dtype.size()
    }

    /// The weight that [`pack`](crate::ops::pack) made of its parts.
    pub(crate) fn from_parts(rows: usize, cols: usize, bits: Buffer, starts: Buffer, values: Buffer) -> BlockWeight {
        BlockWeight { rows, cols, bits, starts, values }
    }

    /// The masks of the blocks, u64: 16 a tile.
    pub fn bits(&self) -> &Buffer {
        &self.bits
    }

    /// Where each tile's values start, u32: one a tile, and their number.
    pub fn starts(&self) -> &Buffer {
        &self.starts
    }

    /// The kept entries.
    pub fn values(&self) -> &Buffer {
        &self.values
    }

    fn tiles(&self) -> Tiles {
        Tiles { rows: self.rows, cols: self.cols }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.bits.size_bytes() + self.starts.size_bytes() + self.values.size_bytes()
    }

    /// Entries (`row`, `cols`) of a weight in host memory.
    pub(super) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let (bits, starts, tiles) = (self.bits.as_slice::<u64>(), self.starts.as_slice::<u32>(), self.tiles());
        for (col, out) in cols.zip(out) {
            let (tile, block, bit) = tiles.locate(row, col);
            let masks = &bits[tile * MASKS..][..MASKS];
            *out = 0.0;
            if masks[block] >> bit & 1 == 1 {
                let before: u32 = masks[..block].iter().map(|mask| mask.count_ones()).sum();
                let below = (masks[block] & ((1 << bit) - 1)).count_ones();
                let at = (starts[tile] + before + below) as usize;
                widen(&self.values, at..at + 1, std::slice::from_mut(out));
            }
        }
    }

    /// True where an entry of a weight in host memory is stored.
    pub(super) fn is_kept(&self, row: usize, col: usize) -> bool {
        let (tile, block, bit) = self.tiles().locate(row, col);
        self.bits.as_slice::<u64>()[tile * MASKS + block] >> bit & 1 == 1
    }

    /// All entries in their own element type, row-major.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let bits = self.bits.download::<u64>()?;
        Ok(match self.values.dtype() {
            DType::F16 => self.tiles().scatter(&bits, &self.values.download::<f16>()?),
            DType::BF16 => self.tiles().scatter(&bits, &self.values.download::<bf16>()?),
            _ => self.tiles().scatter(&bits, &self.values.download::<f32>()?),
        })
    }

    /// The kept entries as a flat bitmap over the row-major entries.
    pub(super) fn mask(&self) -> Result<Vec<u64>> {
        let mut mask = vec![0u64; (self.rows * self.cols).div_ceil(64)];
        self.tiles().each_kept(&self.bits.download::<u64>()?, |_, at| mask[at / 64] |= 1 << (at % 64));
        Ok(mask)
    }
}

/// The tiles of a matrix.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    /// Rows of the matrix.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
}

impl Tiles {
    /// Tiles beside each other.
    pub fn wide(self) -> usize {
        self.cols.div_ceil(TILE)
    }

    /// All tiles.
    pub fn count(self) -> usize {
        self.rows.div_ceil(TILE) * self.wide()
    }

    /// Blocks of all tiles.
    pub fn masks(self) -> usize {
        self.count() * MASKS
    }

    /// Tile, block and bit of an entry.
    fn locate(self, row: usize, col: usize) -> (usize, usize, usize) {
        let tile = row / TILE * self.wide() + col / TILE;
        let block = row % TILE / BLOCK * SIDE + col % TILE / BLOCK;
        (tile, block, row % BLOCK * BLOCK + col % BLOCK)
    }

    /// Row and column of the first entry of block `block`, counted through all tiles.
    pub fn corner(self, block: usize) -> (usize, usize) {
        let (tile, block) = (block / MASKS, block % MASKS);
        (tile / self.wide() * TILE + block / SIDE * BLOCK, tile % self.wide() * TILE + block % SIDE * BLOCK)
    }

    /// visit(i, at): the i-th kept entry is entry `at` of the row-major matrix.
    pub fn each_kept(self, bits: &[u64], mut visit: impl FnMut(usize, usize)) {
        let mut i = 0;
        for (block, mask) in bits.iter().enumerate() {
            let (row, col) = self.corner(block);
            let mut rest = *mask;
            while rest != 0 {
                let bit = rest.trailing_zeros() as usize;
                visit(i, (row + bit / BLOCK) * self.cols + col + bit % BLOCK);
                i += 1;
                rest &= rest - 1;
            }
        }
    }

    /// The bytes of all entries, row-major.
    fn scatter<T: Element>(self, bits: &[u64], values: &[T]) -> Vec<u8> {
        let mut out = vec![T::zeroed(); self.rows * self.cols];
        self.each_kept(bits, |i, at| out[at] = values[i]);
        bytemuck::cast_slice(&out).to_vec()
    }
}
