//! Weights that no step changes.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::{
    BlockWeight, DenseWeight, GROUP, PackedRows, SparseWeight, TwoFourWeight, check_packed, download_bytes, elements,
};
use crate::device::{Backend, Buffer, DType, Device};
use crate::error::{Error, Result, expect_len};
use crate::ops::pack;
use crate::ops::pack_two_four::pack_two_four;
use crate::simd::{Isa, widen_bf16, widen_f16};
use crate::spmm::BLOCK;

/// A `[rows, cols]` = `[out, in]` weight that no step changes.
#[derive(Debug)]
pub enum FrozenWeight {
    /// Every entry stored.
    Dense(DenseWeight),
    /// A bitmap and the kept entries, as the CPU reads them.
    Sparse(SparseWeight),
    /// The same, as GPUs read them.
    Blocks(BlockWeight),
    /// Two of every four entries, as GPUs' sparse tensor cores read them.
    TwoFour(TwoFourWeight),
}

impl FrozenWeight {
    /// A dense weight over `source` (f32, f16 or bf16, row-major), which it keeps.
    ///
    /// # Errors
    /// A length or element type that does not fit.
    pub fn dense(source: Buffer, rows: usize, cols: usize) -> Result<FrozenWeight> {
        Ok(FrozenWeight::Dense(DenseWeight::new(source, rows, cols)?))
    }

    /// The entries of `source` that `mask` keeps, packed. `mask` is a flat bitmap over the row-major entries (u64 words,
    /// bit i%64 of word i/64, 1 = kept) with `kept` ones. On Meta only `kept` counts.
    ///
    /// # Errors
    /// A length or element type that does not fit, or no memory.
    pub fn pruned(
        device: &Device,
        source: &Buffer,
        rows: usize,
        cols: usize,
        mask: &Buffer,
        kept: usize,
    ) -> Result<FrozenWeight> {
        expect_len("pack", "mask", mask.len(), (rows * cols).div_ceil(64))?;
        Ok(match device.backend() {
            Backend::Cpu => FrozenWeight::Sparse(SparseWeight::pack(device, source, rows, cols, mask, kept)?),
            Backend::Cuda => FrozenWeight::Blocks(pack::pack(device, source, rows, cols, mask, kept)?),
        })
    }

    /// The same for a mask that keeps `n` of every `m` consecutive entries of a row. On a GPU 2 of 4 in 16 bits take a form
    /// that multiplies in half the time; should the mask keep fewer of a group there, zeros are stored, and count as kept.
    ///
    /// # Errors
    /// As [`FrozenWeight::pruned`], rows that are not whole groups, and a mask that keeps more.
    pub fn pruned_n_of_m(
        device: &Device,
        source: &Buffer,
        rows: usize,
        cols: usize,
        mask: &Buffer,
        n: usize,
        m: usize,
    ) -> Result<FrozenWeight> {
        if m == 0 || !cols.is_multiple_of(m) {
            let reason = format!("rows of {cols} entries are not whole groups of {m}");
            return Err(Error::Domain { op: "pack", reason });
        }
        expect_len("pack", "mask", mask.len(), (rows * cols).div_ceil(64))?;
        let two_four = (n, m) == (2, GROUP) && TwoFourWeight::holds(source.dtype());
        if two_four && device.backend() == Backend::Cuda {
            return Ok(FrozenWeight::TwoFour(pack_two_four(device, source, rows, cols, mask)?));
        }
        FrozenWeight::pruned(device, source, rows, cols, mask, rows * cols / m * n)
    }

    /// A packed weight of the CPU (or Meta) over the arrays of [`PackedRows`], each in a buffer of its own: mapped from a file, they
    /// are multiplied where they stand.
    ///
    /// # Errors
    /// Element types that do not fit, and arrays that contradict each other or the shape.
    pub fn packed(rows: usize, cols: usize, bits: Buffer, starts: Buffer, values: Buffer) -> Result<FrozenWeight> {
        Ok(FrozenWeight::Sparse(SparseWeight::over(rows, cols, bits, starts, values)?))
    }

    /// Its arrays as packed files hold them: of the CPU's packed form what is there, of every other form what is not zero.
    ///
    /// # Errors
    /// The GPU's, and a matrix of 2³² entries or more.
    pub fn to_packed_rows(&self) -> Result<PackedRows<'_>> {
        if let FrozenWeight::Sparse(w) = self {
            return Ok(w.arrays());
        }
        check_packed(self.rows(), self.cols())?;
        Ok(PackedRows::pack(&self.to_bytes()?, self.cols(), self.dtype().size()))
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            FrozenWeight::Dense(w) => w.rows,
            FrozenWeight::Sparse(w) => w.rows,
            FrozenWeight::Blocks(w) => w.rows,
            FrozenWeight::TwoFour(w) => w.rows,
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            FrozenWeight::Dense(w) => w.cols,
            FrozenWeight::Sparse(w) => w.cols,
            FrozenWeight::Blocks(w) => w.cols,
            FrozenWeight::TwoFour(w) => w.cols,
        }
    }

    /// The element type of the stored entries.
    pub fn dtype(&self) -> DType {
        match self {
            FrozenWeight::Dense(w) => w.values.dtype(),
            FrozenWeight::Sparse(w) => w.values.dtype(),
            FrozenWeight::Blocks(w) => w.values.dtype(),
            FrozenWeight::TwoFour(w) => w.values().dtype(),
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        match self {
            FrozenWeight::Dense(w) => w.values.size_bytes(),
            FrozenWeight::Sparse(w) => w.size_bytes(),
            FrozenWeight::Blocks(w) => w.size_bytes(),
            FrozenWeight::TwoFour(w) => w.size_bytes(),
        }
    }

    /// Stored entries: all of a dense weight, the kept ones of a sparse one.
    pub fn stored(&self) -> usize {
        match self {
            FrozenWeight::Dense(w) => w.rows * w.cols,
            FrozenWeight::Sparse(w) => w.values.len(),
            FrozenWeight::Blocks(w) => w.values.len(),
            FrozenWeight::TwoFour(w) => w.stored(),
        }
    }

    /// Of the bytes held, those that are pages of mapped files.
    pub fn mapped_bytes(&self) -> usize {
        let mapped = |buffer: &Buffer| if buffer.is_mapped() { buffer.size_bytes() } else { 0 };
        match self {
            FrozenWeight::Dense(w) => mapped(&w.values),
            FrozenWeight::Sparse(w) => w.buffers().into_iter().map(mapped).sum(),
            // Forms of GPUs, whose memory no file is mapped into.
            FrozenWeight::Blocks(_) | FrozenWeight::TwoFour(_) => 0,
        }
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        match self {
            FrozenWeight::Dense(w) => w.values.device(),
            FrozenWeight::Sparse(w) => w.values.device(),
            FrozenWeight::Blocks(w) => w.values.device(),
            FrozenWeight::TwoFour(w) => w.values().device(),
        }
    }

    /// Writes entries (`row`, `cols`) as f32.
    ///
    /// # Panics
    /// On Meta and on a GPU: that is read as a whole.
    pub fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        match self {
            FrozenWeight::Dense(w) => w.read(row, cols, out),
            FrozenWeight::Sparse(w) => w.read(row, cols, out),
            FrozenWeight::Blocks(w) => w.read(row, cols, out),
            FrozenWeight::TwoFour(w) => w.read(row, cols, out),
        }
    }

    /// Writes all entries as f32, row-major.
    ///
    /// # Errors
    /// The GPU's.
    pub fn read_all(&self, out: &mut [f32]) -> Result<()> {
        if self.device().gpu().is_some() {
            let bytes = self.to_bytes()?;
            match self.dtype() {
                DType::F16 => widen_f16(Isa::best(), &elements::<f16>(&bytes), out),
                DType::BF16 => widen_bf16(&elements::<bf16>(&bytes), out),
                _ => out.copy_from_slice(&elements::<f32>(&bytes)),
            }
            return Ok(());
        }
        for (row, out) in out.chunks_mut(self.cols().max(1)).enumerate() {
            self.read(row, 0..self.cols(), out);
        }
        Ok(())
    }

    /// All entries as f32, row-major.
    ///
    /// # Errors
    /// The GPU's.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        self.read_all(&mut out)?;
        Ok(out)
    }

    /// All entries in their own element type, row-major, little-endian: what a weight file holds. Bits are preserved.
    ///
    /// # Errors
    /// The GPU's.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match self {
            FrozenWeight::Dense(w) => download_bytes(&w.values),
            FrozenWeight::Sparse(w) => Ok(w.to_bytes()),
            FrozenWeight::Blocks(w) => w.to_bytes(),
            FrozenWeight::TwoFour(w) => w.to_bytes(),
        }
    }

    /// The kept entries of a packed weight as a flat bitmap over the row-major entries; nothing of a dense one.
    ///
    /// # Errors
    /// The GPU's.
    pub fn mask(&self) -> Result<Option<Vec<u64>>> {
        Ok(match self {
            FrozenWeight::Dense(_) => None,
            FrozenWeight::Sparse(w) => Some(w.mask()),
            FrozenWeight::Blocks(w) => Some(w.mask()?),
            FrozenWeight::TwoFour(w) => Some(w.mask()?),
        })
    }

    /// Which of at most 64 entries of a row of a packed weight in host memory are stored: bit j stands for column
    /// `cols.start + j`. Nothing of a dense one.
    pub(super) fn kept(&self, row: usize, cols: Range<usize>) -> Option<u64> {
        let each = |kept: &dyn Fn(usize) -> bool| {
            cols.clone().enumerate().fold(0, |mask, (j, col)| mask | u64::from(kept(col)) << j)
        };
        match self {
            FrozenWeight::Dense(_) => None,
            FrozenWeight::Sparse(w) => Some(w.find(row, &cols).0),
            FrozenWeight::Blocks(w) => Some(each(&|col| w.is_kept(row, col))),
            FrozenWeight::TwoFour(w) => Some(each(&|col| w.is_kept(row, col))),
        }
    }

    /// Writes entries (`rows`, `cols`), at most 64 columns, as f32: row by row, 64 places each, zeros past `cols`.
    pub(super) fn read_block(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        if let FrozenWeight::Sparse(w) = self {
            return w.read_block(isa, rows, cols, out);
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(BLOCK)) {
            self.read(row, cols.clone(), &mut out[..cols.len()]);
            out[cols.len()..].fill(0.0);
        }
    }

    /// Entries that a product of the CPU multiplies; a GPU multiplies blocks as if they were dense.
    pub(super) fn multiplied(&self) -> usize {
        match self {
            FrozenWeight::Sparse(w) => w.values.len(),
            _ => self.rows() * self.cols(),
        }
    }

    /// Entries that are zero.
    ///
    /// # Errors
    /// The GPU's.
    pub fn zeros(&self) -> Result<usize> {
        let count = |values: &[f32]| values.iter().filter(|x| **x == 0.0).count();
        if self.device().gpu().is_some() {
            return Ok(count(&self.to_f32()?));
        }
        let in_row = |values: &mut Vec<f32>, row| {
            self.read(row, 0..self.cols(), values);
            count(values)
        };
        let counted = || (0..self.rows()).into_par_iter().map_init(|| vec![0.0; self.cols()], in_row).sum();
        Ok(match self {
            FrozenWeight::Dense(w) => *w.zeros.get_or_init(counted),
            _ => counted(),
        })
    }

    /// The share of entries that are not zero, in host memory: the same for the packed weight and the dense one of its entries.
    pub(super) fn density(&self) -> f64 {
        let all = self.rows() * self.cols();
        let zeros = match self {
            FrozenWeight::Sparse(w) => all - w.values.len(),
            _ => self.zeros().expect("no GPU has a part in it"),
        };
        1.0 - zeros as f64 / all.max(1) as f64
    }
}
