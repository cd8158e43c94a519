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
#[cfg(target_arch = "x86_64")]
use crate::simd::{LANES, Widen, turn};
use crate::simd_fn;

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
            // SAFETY: the machine has AVX-512.
            return unsafe {
                match self.values.dtype() {
                    DType::F16 => self.read_words::<f16>(rows, cols, out),
                    DType::BF16 => self.read_words::<bf16>(rows, cols, out),
                    _ => self.read_words::<f32>(rows, cols, out),
                }
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

    /// [`read_block`](Self::read_block).
    ///
    /// # Safety
    /// On a machine with AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,popcnt,bmi1")]
    unsafe fn read_words<T: Widen>(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        let (arrays, mut edge) = (self.slices::<T>(), [T::zeroed(); WORD + LANES]);
        for (row, out) in rows.zip(out.chunks_exact_mut(WORD)) {
            let word = arrays.word(row, &cols, &mut edge);
            // SAFETY: the machine has AVX-512, and `out` has 64 elements.
            unsafe { expand_word(word, out.as_mut_ptr()) };
        }
    }

    /// Writes entries (`rows`, `cols`), at most 64 by 64, as f32, column by column: 64 places each, zeros past `rows`, and zeros
    /// past `cols` as far as whole vectors of columns go. False where only [`read_block`](Self::read_block) can.
    pub(super) fn read_turned(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx512() {
            // SAFETY: the machine has AVX-512.
            unsafe {
                match self.values.dtype() {
                    DType::F16 => self.turn_words::<f16>(rows, cols, out),
                    DType::BF16 => self.turn_words::<bf16>(rows, cols, out),
                    _ => self.turn_words::<f32>(rows, cols, out),
                }
            }
            return true;
        }
        let _ = (isa, rows, cols, out); // Where there is no x86, nothing asks for them.
        false
    }

    /// [`read_turned`](Self::read_turned).
    ///
    /// # Safety
    /// On a machine with AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,popcnt,bmi1")]
    unsafe fn turn_words<T: Widen>(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        let vectors = cols.len().div_ceil(LANES);
        let (arrays, out) = (self.slices::<T>(), &mut out[..vectors * LANES * WORD]);
        let (nothing, mut edges) = ([T::zeroed(); LANES], [[T::zeroed(); WORD + LANES]; LANES]);
        for at in (0..WORD).step_by(LANES) {
            let mut words: [Word<T>; LANES] = std::array::from_fn(|_| Word { mask: 0, values: nothing.as_ptr() });
            for ((row, word), edge) in (rows.start + at..rows.end).zip(&mut words).zip(&mut edges) {
                *word = arrays.word(row, &cols, edge);
            }
            // SAFETY: the machine has AVX-512, and `out` all vectors of columns, of 64 elements each.
            unsafe { expand_turned(words, vectors, out.as_mut_ptr().add(at)) };
        }
    }

    /// The arrays, looked up once for many rows.
    #[cfg(target_arch = "x86_64")]
    fn slices<T: Element>(&self) -> Slices<'_, T> {
        Slices {
            words: self.cols.div_ceil(WORD),
            spans: self.cols.div_ceil(SPAN),
            bits: self.bits.as_slice(),
            starts: self.starts.as_slice(),
            values: self.values.as_slice(),
        }
    }

    /// Asks for what [`read_block`](Self::read_block) of these entries will need: values of rows lie far from each other, and where
    /// is known only by counting. And for what it takes to count in as many rows after these, which may be next.
    pub(super) fn prefetch(&self, rows: Range<usize>, cols: Range<usize>) {
        prefetch_entries(Isa::best(), self, rows, cols);
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

simd_fn! {
    /// [`SparseWeight::prefetch`].
    fn prefetch_entries(weight: &SparseWeight, rows: Range<usize>, cols: Range<usize>) {
        let (words, spans) = (weight.cols.div_ceil(WORD), weight.cols.div_ceil(SPAN));
        let (bits, starts) = (weight.bits.as_slice::<u64>(), weight.starts.as_slice::<u32>());
        let (values, size) = (weight.values.bytes(), weight.values.dtype().size());
        let later = rows.end..weight.rows.min(rows.end + rows.len());
        for row in later {
            let (word, span) = (row * words + cols.start / WORD, row * spans + cols.start / SPAN);
            crate::simd::prefetch(bytemuck::bytes_of(&bits[word]));
            crate::simd::prefetch(bytemuck::bytes_of(&starts[span]));
        }
        let some = cols.start..cols.end.min(cols.start + WORD);
        for row in rows {
            let (mask, first) = find(&bits[row * words..][..words], &starts[row * spans..][..spans], &some);
            // As many in each of their words as in the first.
            let count = mask.count_ones() as usize * cols.len().div_ceil(WORD);
            crate::simd::prefetch(&values[first * size..((first + count) * size).min(values.len())]);
        }
    }
}

/// The arrays of a weight in host memory.
#[cfg(target_arch = "x86_64")]
struct Slices<'a, T> {
    /// Words of `bits` a row.
    words: usize,
    /// Entries of `starts` a row.
    spans: usize,
    bits: &'a [u64],
    starts: &'a [u32],
    values: &'a [T],
}

#[cfg(target_arch = "x86_64")]
impl<T: Element> Slices<'_, T> {
    /// At most 64 columns of a row. `edge` lends its values a place where fewer than sixteen others follow them.
    #[inline(always)]
    fn word(&self, row: usize, cols: &Range<usize>, edge: &mut [T; WORD + LANES]) -> Word<T> {
        let (bits, starts) = (&self.bits[row * self.words..][..self.words], &self.starts[row * self.spans..]);
        let (mask, first) = find(bits, starts, cols);
        let count = mask.count_ones() as usize;
        if let Some(values) = self.values.get(first..first + count + LANES) {
            return Word { mask, values: values.as_ptr() };
        }
        edge[..count].copy_from_slice(&self.values[first..first + count]);
        Word { mask, values: edge.as_ptr() }
    }
}

/// The mask of at most 64 columns of a row of these words and starts, and the index of their first value.
// Part of its callers, which count bits by one instruction where they may.
#[inline(always)]
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

/// The kept entries of a word, and a pointer to them with sixteen elements behind.
#[cfg(target_arch = "x86_64")]
struct Word<T> {
    mask: u64,
    values: *const T,
}

#[cfg(target_arch = "x86_64")]
impl<T: Widen> Word<T> {
    /// Takes sixteen places off: the kept entries where they belong, zeros between them.
    ///
    /// # Safety
    /// On a machine with AVX-512F; `values` are as they should be.
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn next(&mut self) -> std::arch::x86_64::__m512 {
        let bits = self.mask as u16;
        // SAFETY: a load ends sixteen elements past the last value at most, and the pointer at it.
        let values = unsafe {
            let values = T::load(self.values);
            self.values = self.values.add(bits.count_ones() as usize);
            values
        };
        self.mask >>= LANES;
        std::arch::x86_64::_mm512_maskz_expand_ps(bits, values)
    }
}

/// Writes the 64 places of a word.
///
/// # Safety
/// As [`Word::next`]; `out` has 64 elements.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn expand_word<T: Widen>(mut word: Word<T>, out: *mut f32) {
    for at in (0..WORD).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm512_storeu_ps(out.add(at), word.next()) };
    }
}

/// Writes `vectors` times sixteen places of sixteen words by columns: place i of word r to `out[i·64 + r]`.
///
/// # Safety
/// As [`Word::next`]; `out` has that many columns, 64 elements apart, of which sixteen elements may be written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn expand_turned<T: Widen>(mut words: [Word<T>; LANES], vectors: usize, out: *mut f32) {
    for vector in 0..vectors {
        // SAFETY: the caller's.
        let rows = words.each_mut().map(|word| unsafe { word.next() });
        for (column, x) in turn(&rows).into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { std::arch::x86_64::_mm512_storeu_ps(out.add((vector * LANES + column) * WORD), x) };
        }
    }
}
