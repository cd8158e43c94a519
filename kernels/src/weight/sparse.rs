//! Packed sparse weights: one bit an entry, and the kept entries behind it.
//!
//! Three arrays, all row-major:
//!
//! * `bits` — `rows × ⌈cols/64⌉` u64 words, bit c%64 of word c/64 set where entry (row, c) is kept;
//! * `values` — the kept entries in order, in the file's element type;
//! * `starts` — for every 256 columns of a row, the index of its first kept entry in `values` (u32).
//!
//! At density d and v bits a value that is d·v + 1 + 1/8 bits an entry: 9.125 for f16 at 50%, where CSR needs 24.
//! To read 256 columns of a row is one look-up, four population counts and an expansion.

use std::ops::Range;

use half::{bf16, f16};

use super::{PackedRows, check_kept, check_packed, check_source, widen};
use crate::device::{Buffer, Category, DType, Device, Element};
use crate::error::{Error, Result};
use crate::simd::Isa;

/// Columns that share one entry of `starts`.
pub(super) const SPAN: usize = 256;
/// Columns a word of `bits`.
pub(super) const WORD: usize = 64;

/// A `[rows, cols]` weight of which only the kept entries are stored.
#[derive(Debug)]
pub struct SparseWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    bits: Buffer,
    starts: Buffer,
    pub(super) values: Buffer,
}

impl SparseWeight {
    /// Bytes of the packed form.
    pub fn bytes_for(rows: usize, cols: usize, dtype: DType, kept: usize) -> usize {
        rows * cols.div_ceil(WORD) * 8 + rows * cols.div_ceil(SPAN) * 4 + kept * dtype.size()
    }

    pub(super) fn pack(
        device: &Device,
        source: &Buffer,
        rows: usize,
        cols: usize,
        mask: &Buffer,
        kept: usize,
    ) -> Result<SparseWeight> {
        check_source(source, rows, cols)?;
        check_packed(rows, cols)?;
        let mut packed = SparseWeight {
            rows,
            cols,
            bits: device.zeros(Category::Weights, DType::U64, rows * cols.div_ceil(WORD))?,
            starts: device.alloc(Category::Weights, DType::U32, rows * cols.div_ceil(SPAN))?,
            values: device.alloc(Category::Weights, source.dtype(), kept)?,
        };
        if !device.is_meta() {
            let mask = mask.as_slice::<u64>();
            check_kept(mask.iter().map(|word| word.count_ones() as usize).sum(), kept)?;
            match source.dtype() {
                DType::F16 => packed.fill::<f16>(source, mask),
                DType::BF16 => packed.fill::<bf16>(source, mask),
                _ => packed.fill::<f32>(source, mask),
            }
        }
        Ok(packed)
    }

    /// A weight over arrays that are there already, of a mapped file say; see [`PackedRows`].
    ///
    /// # Errors
    /// Element types that do not fit, and what [`PackedRows::check`] finds.
    pub(super) fn over(rows: usize, cols: usize, bits: Buffer, starts: Buffer, values: Buffer) -> Result<SparseWeight> {
        check_packed(rows, cols)?;
        for (buffer, what, expected) in [(&bits, "mask", DType::U64), (&starts, "starts", DType::U32)] {
            if buffer.dtype() != expected {
                return Err(Error::DType { op: "pack", what, expected, got: buffer.dtype() });
            }
        }
        let packed = SparseWeight { rows, cols, bits, starts, values };
        check_source(&packed.values, packed.values.len(), 1)?;
        if !packed.values.device().is_meta() {
            packed
                .arrays()
                .check(rows, cols, packed.values.dtype().size())
                .map_err(|reason| Error::Domain { op: "pack", reason })?;
        }
        Ok(packed)
    }

    /// Its arrays.
    pub(super) fn arrays(&self) -> PackedRows<'_> {
        PackedRows {
            bits: self.bits.as_slice::<u64>().into(),
            starts: self.starts.as_slice::<u32>().into(),
            values: self.values.bytes().into(),
        }
    }

    fn fill<T: Element>(&mut self, source: &Buffer, mask: &[u64]) {
        let source = source.as_slice::<T>();
        let values = self.values.as_mut_slice::<T>();
        let (words, spans) = (self.cols.div_ceil(WORD), self.cols.div_ceil(SPAN));
        let bits = self.bits.as_mut_slice::<u64>();
        let starts = self.starts.as_mut_slice::<u32>();
        let mut next = 0;
        for row in 0..self.rows {
            for col in 0..self.cols {
                if col % SPAN == 0 {
                    starts[row * spans + col / SPAN] = next as u32;
                }
                let i = row * self.cols + col;
                if mask[i / 64] >> (i % 64) & 1 == 1 {
                    bits[row * words + col / WORD] |= 1 << (col % WORD);
                    values[next] = source[i];
                    next += 1;
                }
            }
        }
    }

    pub(super) fn buffers(&self) -> [&Buffer; 3] {
        [&self.bits, &self.starts, &self.values]
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.bits.size_bytes() + self.starts.size_bytes() + self.values.size_bytes()
    }

    /// The mask words of a row: bit c%64 of word c/64.
    fn row_bits(&self, row: usize) -> &[u64] {
        let words = self.cols.div_ceil(WORD);
        &self.bits.as_slice::<u64>()[row * words..][..words]
    }

    pub(super) fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        let bits = self.row_bits(row);
        let starts = &self.starts.as_slice::<u32>()[row * self.cols.div_ceil(SPAN)..];
        let mut values = [0.0f32; SPAN];
        let mut col = cols.start;
        while col < cols.end {
            let end = cols.end.min(col / SPAN * SPAN + SPAN);
            let mut first = starts[col / SPAN] as usize;
            for word in &bits[col / SPAN * (SPAN / WORD)..col / WORD] {
                first += word.count_ones() as usize;
            }
            first += (bits[col / WORD] & low_bits(col % WORD)).count_ones() as usize;
            let mut count = 0;
            for at in (col / WORD..end.div_ceil(WORD)).map(|word| word * WORD) {
                count += window(bits, at.max(col), (at + WORD).min(end)).count_ones() as usize;
            }
            widen(&self.values, first..first + count, &mut values[..count]);
            let mut next = 0;
            while col < end {
                let stop = end.min((col / WORD + 1) * WORD);
                let mask = window(bits, col, stop);
                let to = &mut out[col - cols.start..stop - cols.start];
                expand(mask, &values[next..count], to);
                next += mask.count_ones() as usize;
                col = stop;
            }
        }
    }

    /// Writes entries (`rows`, `cols`), at most 64 columns, as f32: row by row, 64 places each, zeros past `cols`.
    pub(super) fn read_block(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx512() {
            return match self.values.dtype() {
                DType::F16 => self.read_words::<f16>(rows, cols, out),
                DType::BF16 => self.read_words::<bf16>(rows, cols, out),
                _ => self.read_words::<f32>(rows, cols, out),
            };
        }
        let _ = isa; // Where there is no x86, nothing asks for it.
        for (row, out) in rows.zip(out.chunks_exact_mut(WORD)) {
            self.read(row, cols.clone(), &mut out[..cols.len()]);
            out[cols.len()..].fill(0.0);
        }
    }

    /// The mask of at most 64 columns of a row, and the index of their first value.
    pub(super) fn find(&self, row: usize, cols: &Range<usize>) -> (u64, usize) {
        let spans = self.cols.div_ceil(SPAN);
        find(self.row_bits(row), &self.starts.as_slice::<u32>()[row * spans..], cols)
    }

    /// [`read_block`](Self::read_block) with AVX-512. The rows' values lie far from each other, so all are asked for before
    /// the first is needed.
    #[cfg(target_arch = "x86_64")]
    fn read_words<T: Expand>(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        /// Rows that are asked for together.
        const AHEAD: usize = 64;
        let values = self.values.as_slice::<T>();
        let (words, spans) = (self.cols.div_ceil(WORD), self.cols.div_ceil(SPAN));
        let (bits, starts) = (self.bits.as_slice::<u64>(), self.starts.as_slice::<u32>());
        for (some, out) in rows.clone().step_by(AHEAD).zip(out.chunks_mut(AHEAD * WORD)) {
            let some = some..rows.end.min(some + AHEAD);
            let mut found = [(0u64, 0usize); AHEAD];
            for (row, found) in some.clone().zip(&mut found) {
                let (mask, first) = find(&bits[row * words..][..words], &starts[row * spans..][..spans], &cols);
                crate::simd::prefetch(bytemuck::cast_slice(&values[first..first + mask.count_ones() as usize]));
                *found = (mask, first);
            }
            for ((mask, first), out) in found[..some.len()].iter().zip(out.chunks_exact_mut(WORD)) {
                // SAFETY: the machine has AVX-512; `values` was just seen to have one for each bit of `mask`;
                // `out` has 64 elements.
                unsafe { expand_word(*mask, values.as_ptr().add(*first), out.as_mut_ptr()) };
            }
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let size = self.values.dtype().size();
        let mut out = vec![0; self.rows * self.cols * size];
        let mut values = self.values.bytes().chunks_exact(size);
        for row in 0..self.rows {
            for col in (0..self.cols).filter(|col| self.is_kept(row, *col)) {
                let at = (row * self.cols + col) * size;
                out[at..at + size].copy_from_slice(values.next().expect("one value a set bit"));
            }
        }
        out
    }

    /// The kept entries as a flat bitmap over the row-major entries.
    pub(super) fn mask(&self) -> Vec<u64> {
        let mut mask = vec![0u64; (self.rows * self.cols).div_ceil(64)];
        for i in (0..self.rows * self.cols).filter(|i| self.is_kept(i / self.cols, i % self.cols)) {
            mask[i / 64] |= 1 << (i % 64);
        }
        mask
    }

    /// True where the entry is stored.
    fn is_kept(&self, row: usize, col: usize) -> bool {
        self.row_bits(row)[col / WORD] >> (col % WORD) & 1 == 1
    }
}

/// The mask of at most 64 columns of a row of these words and starts, and the index of their first value.
#[inline]
fn find(bits: &[u64], starts: &[u32], cols: &Range<usize>) -> (u64, usize) {
    let (word, span, shift) = (cols.start / WORD, cols.start / SPAN, cols.start % WORD);
    let before: u32 = bits[span * (SPAN / WORD)..word].iter().map(|word| word.count_ones()).sum();
    let skipped = (bits[word] & low_bits(shift)).count_ones();
    let above = if shift > 0 && word + 1 < bits.len() { bits[word + 1] << (WORD - shift) } else { 0 };
    let wanted = if cols.len() == WORD { u64::MAX } else { low_bits(cols.len()) };
    ((bits[word] >> shift | above) & wanted, (starts[span] + before + skipped) as usize)
}

/// The lowest `n` < 64 bits set.
fn low_bits(n: usize) -> u64 {
    (1u64 << n) - 1
}

/// Mask bits of columns `from..to`, which lie in one word, shifted down to bit 0.
fn window(bits: &[u64], from: usize, to: usize) -> u64 {
    let shifted = bits[from / WORD] >> (from % WORD);
    if to - from == WORD { shifted } else { shifted & low_bits(to - from) }
}

/// out[i] = the next of `values` where bit i of `mask` is set, else 0.
fn expand(mask: u64, values: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    let mut rest = mask;
    for value in values.iter().take(mask.count_ones() as usize) {
        out[rest.trailing_zeros() as usize] = *value;
        rest &= rest - 1;
    }
}

/// An element type whose packed values can be loaded into sixteen f32 lanes.
#[cfg(target_arch = "x86_64")]
trait Expand: Element {
    /// The first elements of `from`, one for each bit of `lanes`, which are its lowest; zeros behind them.
    ///
    /// # Safety
    /// On a machine with AVX-512 F, BW and VL; `from` has as many elements as `lanes` has bits.
    unsafe fn load(lanes: u16, from: *const Self) -> std::arch::x86_64::__m512;
}

#[cfg(target_arch = "x86_64")]
impl Expand for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(lanes: u16, from: *const f16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::{_mm256_maskz_loadu_epi16, _mm512_cvtph_ps};
        // SAFETY: the mask keeps the load within what the caller vouches for.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(lanes, from.cast()) })
    }
}

#[cfg(target_arch = "x86_64")]
impl Expand for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(lanes: u16, from: *const bf16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::{
            _mm256_maskz_loadu_epi16, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_slli_epi32,
        };
        // SAFETY: the mask keeps the load within what the caller vouches for.
        let halves = unsafe { _mm256_maskz_loadu_epi16(lanes, from.cast()) };
        // A bf16 is the upper half of its f32.
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}

#[cfg(target_arch = "x86_64")]
impl Expand for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(lanes: u16, from: *const f32) -> std::arch::x86_64::__m512 {
        // SAFETY: the mask keeps the load within what the caller vouches for.
        unsafe { std::arch::x86_64::_mm512_maskz_loadu_ps(lanes, from) }
    }
}

/// out[i] = the next of `values` where bit i of `mask` is set, else 0.
///
/// # Safety
/// On a machine with AVX-512 F, BW and VL; `values` has an element for each bit of `mask`, and `out` has 64.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
unsafe fn expand_word<T: Expand>(mask: u64, mut values: *const T, out: *mut f32) {
    use std::arch::x86_64::{_mm512_maskz_expand_ps, _mm512_storeu_ps};
    for quarter in 0..4 {
        let bits = (mask >> (quarter * 16)) as u16;
        let count = bits.count_ones();
        // SAFETY: the loads take as many values as there are bits; the stores stay within 64 elements.
        unsafe {
            let packed = T::load(((1u32 << count) - 1) as u16, values);
            _mm512_storeu_ps(out.add(quarter * 16), _mm512_maskz_expand_ps(bits, packed));
            values = values.add(count as usize);
        }
    }
}
