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

use super::{check_source, widen};
use crate::device::{Buffer, Category, DType, Device, Element};
use crate::error::{Error, Result};

/// Rows and columns of a tile.
const TILE: usize = 32;
/// Values of a tile.
const VALUES: usize = TILE * TILE / 2;
/// Words of places of a tile.
const WORDS: usize = 32;
/// Entries of a group.
pub(super) const GROUP: usize = 4;
/// Places 0 and 1, in each group of a word.
const FIRST_TWO: u32 = 0x4444_4444;

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
        Grid { rows, cols }.tiles() * (VALUES * 2 + WORDS * 4)
    }

    /// Whether entries of this type can be packed so.
    pub(super) fn holds(dtype: DType) -> bool {
        matches!(dtype, DType::BF16 | DType::F16)
    }

    /// The entries of `source` that `mask` keeps, at most two a group, packed on the host; both are first downloaded where they
    /// are on a GPU.
    pub(super) fn pack(
        device: &Device,
        source: &Buffer,
        rows: usize,
        cols: usize,
        mask: &Buffer,
    ) -> Result<TwoFourWeight> {
        check_source(source, rows, cols)?;
        let grid = Grid { rows, cols };
        let mut packed = TwoFourWeight {
            rows,
            cols,
            values: device.alloc(Category::Weights, source.dtype(), grid.tiles() * VALUES)?,
            places: device.alloc(Category::Weights, DType::U32, grid.tiles() * WORDS)?,
        };
        if !device.is_meta() {
            let mask = mask.download::<u64>()?;
            let (values, places) = match source.dtype() {
                DType::F16 => grid.gather(&mask, &source.download::<f16>()?)?,
                _ => grid.gather(&mask, &source.download::<bf16>()?)?,
            };
            packed.values.write(&values)?;
            packed.places.write(bytemuck::cast_slice(&places))?;
        }
        Ok(packed)
    }

    /// The weight of such parts.
    pub(super) fn from_parts(rows: usize, cols: usize, places: Buffer, values: Buffer) -> TwoFourWeight {
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

    fn grid(&self) -> Grid {
        Grid { rows: self.rows, cols: self.cols }
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.values.size_bytes() + self.places.size_bytes()
    }

    /// Entries (`row`, `cols`) of a weight in host memory.
    pub(super) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let places = self.places.as_slice::<u32>();
        for (col, out) in cols.zip(out) {
            let group = self.grid().group(row, col / GROUP);
            let half = group.places(places).iter().position(|place| *place == col % GROUP);
            *out = 0.0;
            if let Some(half) = half {
                let at = group.value + half;
                widen(&self.values, at..at + 1, std::slice::from_mut(out));
            }
        }
    }

    /// All entries in their own element type, row-major.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let places = self.places.download::<u32>()?;
        Ok(match self.values.dtype() {
            DType::F16 => self.grid().scatter(&places, &self.values.download::<f16>()?),
            _ => self.grid().scatter(&places, &self.values.download::<bf16>()?),
        })
    }

    /// The stored entries as a flat bitmap over the row-major entries.
    pub(super) fn mask(&self) -> Result<Vec<u64>> {
        let places = self.places.download::<u32>()?;
        let mut mask = vec![0u64; (self.rows * self.cols).div_ceil(64)];
        self.grid().each_group(|first, group| {
            for place in group.places(&places) {
                mask[(first + place) / 64] |= 1 << ((first + place) % 64);
            }
        });
        Ok(mask)
    }
}

/// The places of a group that are stored: those kept, and the first free ones up to two.
fn two_of(kept: usize) -> [usize; 2] {
    let free = (0..GROUP).filter(|place| kept >> place & 1 == 0);
    let stored = free.take(2 - kept.count_ones() as usize).fold(kept, |stored, place| stored | 1 << place);
    [stored.trailing_zeros() as usize, stored.ilog2() as usize]
}

/// The tiles of a matrix.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    cols: usize,
}

/// Where a group's two values are, and their places.
struct Group {
    /// Index of the first value; the other is the next.
    value: usize,
    /// Word of `places`, and the lowest of four bits there.
    word: usize,
    shift: usize,
}

impl Group {
    fn places(&self, places: &[u32]) -> [usize; 2] {
        let bits = places[self.word] as usize >> self.shift;
        [bits % 4, bits / 4 % 4]
    }
}

impl Grid {
    fn wide(self) -> usize {
        self.cols.div_ceil(TILE)
    }

    fn tiles(self) -> usize {
        self.rows.div_ceil(TILE) * self.wide()
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
    fn each_group(self, mut visit: impl FnMut(usize, Group)) {
        for row in 0..self.rows {
            for group in 0..self.cols / GROUP {
                visit(row * self.cols + group * GROUP, self.group(row, group));
            }
        }
    }

    /// The values' bytes, and the places.
    fn gather<T: Element>(self, mask: &[u64], source: &[T]) -> Result<(Vec<u8>, Vec<u32>)> {
        let mut values = vec![T::zeroed(); self.tiles() * VALUES];
        let mut places = vec![FIRST_TWO; self.tiles() * WORDS];
        let mut full = None;
        self.each_group(|first, group| {
            // A group begins at a multiple of four, as words do: it lies in one.
            let kept = (mask[first / 64] >> (first % 64)) as usize % 16;
            if kept.count_ones() > 2 {
                full.get_or_insert(first);
                return;
            }
            let [lower, upper] = two_of(kept);
            for (half, place) in [lower, upper].into_iter().enumerate() {
                if kept >> place & 1 == 1 {
                    values[group.value + half] = source[first + place];
                }
            }
            let word = &mut places[group.word];
            *word = *word & !(15 << group.shift) | ((lower + upper * 4) as u32) << group.shift;
        });
        if let Some(first) = full {
            let (row, col) = (first / self.cols, first % self.cols);
            let reason = format!("the mask keeps more than two of row {row}, columns {col} to {}", col + GROUP - 1);
            return Err(Error::Domain { op: "pack", reason });
        }
        Ok((bytemuck::cast_slice(&values).to_vec(), places))
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
