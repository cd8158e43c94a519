//! Weights of which two of every four entries of a row are kept, in 16 bits, as the sparse tensor cores of GPUs take them.
//!
//! Every four entries from a multiple of four on are a group. Of each two are stored: those that the mask keeps, and zeros in
//! the first free places where it keeps fewer. What is stored counts as kept. The matrix is cut into tiles of 32×32 entries,
//! row-major, filled up with zeros past its edges, and a tile into two fragments of 16 rows. Two arrays:
//!
//! * `values` — 512 a tile, in the file's element type: of fragment f, lane l of 32, register i of 4 and half h of 2 at
//!   ((f·32 + l)·4 + i)·2 + h. The lane's row is l/4, and 8 more in registers 1 and 3; its group begins at column 4·(l%4), and 16
//!   more in registers 2 and 3. h = 0 is the group's first entry that is stored, h = 1 its second.
//! * `places` — u32, 32 a tile, two bits for each value: bits 4·t + 2·h of word l are the place in its group, 0 to 3, of entry h
//!   of the group that begins at column 16·(l%2) + 4·t of row 16·(l%4/2) + l/4; from bit 16 on those of the row 8 below.
//!
//! These are the fragments of PTX's `mma.sp.m16n8k32`, one a tile's upper half and, with selector 1, one its lower. 8 bits an
//! entry for values and 1 for places are 9, whatever is kept.

use std::ops::Range;

use half::{bf16, f16};

use super::widen;
use crate::device::{Buffer, DType, Element};
use crate::error::Result;

/// Rows and columns of a tile.
const TILE: usize = 32;
/// Values of a tile.
const VALUES: usize = TILE * TILE / 2;
/// Words of places of a tile.
const WORDS: usize = 32;
/// Entries of a group.
#[doc(hidden)]
pub const GROUP: usize = 4;

/// A `[rows, cols]` weight of which two entries of each group are stored.
#[derive(Debug)]
pub struct TwoFourWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    values: Buffer,
    places: Buffer,
}

impl TwoFourWeight {
    /// Bytes of the packed form.
    pub fn bytes_for(rows: usize, cols: usize) -> usize {
        let groups = Groups { rows, cols };
        groups.values() * 2 + groups.words() * 4
    }

    /// Whether entries of this type can be packed so.
    pub(crate) fn holds(dtype: DType) -> bool {
        matches!(dtype, DType::BF16 | DType::F16)
    }

    /// The weight that [`pack_two_four`](crate::ops::pack_two_four) made of its parts.
    pub(crate) fn from_parts(rows: usize, cols: usize, values: Buffer, places: Buffer) -> TwoFourWeight {
        TwoFourWeight { rows, cols, values, places }
    }

    /// The stored entries.
    pub fn values(&self) -> &Buffer {
        &self.values
    }

    /// Where in their groups they are, u32.
    pub fn places(&self) -> &Buffer {
        &self.places
    }

    /// How many entries are stored, but for those past the edges.
    pub(super) fn stored(&self) -> usize {
        self.rows * self.cols / 2
    }

    fn groups(&self) -> Groups {
        Groups { rows: self.rows, cols: self.cols }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.values.size_bytes() + self.places.size_bytes()
    }

    /// Entries (`row`, `cols`) of a weight in host memory.
    pub(super) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let places = self.places.as_slice::<u32>();
        for (col, out) in cols.zip(out) {
            let group = self.groups().group(row, col / GROUP);
            let half = group.places(places).iter().position(|place| *place == col % GROUP);
            *out = 0.0;
            if let Some(half) = half {
                let at = group.value + half;
                widen(&self.values, at..at + 1, std::slice::from_mut(out));
            }
        }
    }

    /// True where an entry of a weight in host memory is stored.
    pub(super) fn is_kept(&self, row: usize, col: usize) -> bool {
        self.groups().group(row, col / GROUP).places(self.places.as_slice::<u32>()).contains(&(col % GROUP))
    }

    /// All entries in their own element type, row-major.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let places = self.places.download::<u32>()?;
        Ok(match self.values.dtype() {
            DType::F16 => self.groups().scatter(&places, &self.values.download::<f16>()?),
            _ => self.groups().scatter(&places, &self.values.download::<bf16>()?),
        })
    }

    /// The stored entries as a flat bitmap over the row-major entries.
    pub(super) fn mask(&self) -> Result<Vec<u64>> {
        let places = self.places.download::<u32>()?;
        let mut mask = vec![0u64; (self.rows * self.cols).div_ceil(64)];
        self.groups().each_group(|first, group| {
            for place in group.places(&places) {
                mask[(first + place) / 64] |= 1 << ((first + place) % 64);
            }
        });
        Ok(mask)
    }
}

/// The groups of a matrix.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Rows of the matrix.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
}

/// Where a group's two values are, and their places.
#[doc(hidden)]
#[derive(Debug)]
pub struct Group {
    /// Index of the first value; the other is the next.
    pub value: usize,
    /// Word of `places`.
    pub word: usize,
    /// The lowest of the group's four bits in it.
    pub shift: usize,
}

impl Group {
    fn places(&self, places: &[u32]) -> [usize; 2] {
        let bits = places[self.word] as usize >> self.shift;
        [bits % 4, bits / 4 % 4]
    }
}

impl Groups {
    /// Tiles beside each other.
    pub fn wide(self) -> usize {
        self.cols.div_ceil(TILE)
    }

    /// Tiles below each other.
    pub fn high(self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Values of all tiles.
    pub fn values(self) -> usize {
        self.high() * self.wide() * VALUES
    }

    /// Words of places of all tiles.
    pub fn words(self) -> usize {
        self.high() * self.wide() * WORDS
    }

    /// Group `group` of a row.
    fn group(self, row: usize, group: usize) -> Group {
        const OF_TILE: usize = TILE / GROUP;
        let tile = row / TILE * self.wide() + group / OF_TILE;
        let (row, group) = (row % TILE, group % OF_TILE);
        let (fragment, below, row) = (row / 16, row / 8 % 2, row % 8);
        let (right, group) = (group / 4, group % 4);
        let register = right * 2 + below;
        Group {
            value: tile * VALUES + ((fragment * 32 + row * 4 + group) * 4 + register) * 2,
            word: tile * WORDS + row * 4 + fragment * 2 + right,
            shift: below * 16 + group * 4,
        }
    }

    /// visit(i, group): the group's first entry is entry i of the row-major matrix.
    pub fn each_group(self, mut visit: impl FnMut(usize, Group)) {
        for row in 0..self.rows {
            for group in 0..self.cols / GROUP {
                visit(row * self.cols + group * GROUP, self.group(row, group));
            }
        }
    }

    /// The bytes of all entries, row-major.
    fn scatter<T: Element>(self, places: &[u32], values: &[T]) -> Vec<u8> {
        let mut out = vec![T::zeroed(); self.rows * self.cols];
        self.each_group(|first, group| {
            for (half, place) in group.places(places).into_iter().enumerate() {
                out[first + place] = values[group.value + half];
            }
        });
        bytemuck::cast_slice(&out).to_vec()
    }
}
