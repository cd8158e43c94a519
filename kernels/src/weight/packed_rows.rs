//! The CPU's packed form as plain arrays: what packed weight files hold, on every machine alike.

use std::borrow::Cow;

use super::sparse::{SPAN, WORD};

/// The arrays of a [`SparseWeight`](super::SparseWeight), in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedRows<'a> {
    /// `[rows, ⌈cols/64⌉]`: bit c%64 of word c/64 of a row is set where entry c is stored.
    pub bits: Cow<'a, [u64]>,
    /// `[rows, ⌈cols/256⌉]`: the index in `values` of the first stored entry of every 256 columns.
    pub starts: Cow<'a, [u32]>,
    /// The stored entries, row by row, little-endian.
    pub values: Cow<'a, [u8]>,
}

impl PackedRows<'_> {
    /// Words of mask and starts that a row takes.
    pub fn row_lens(cols: usize) -> (usize, usize) {
        (cols.div_ceil(WORD), cols.div_ceil(SPAN))
    }

    /// Packs a row-major matrix of elements of `size` bytes. An element whose bits are all zero is not stored; a negative zero is.
    ///
    /// # Panics
    /// If `dense` is no whole number of rows, or has 2³² elements or more.
    pub fn pack(dense: &[u8], cols: usize, size: usize) -> PackedRows<'static> {
        assert!(cols > 0 && dense.len().is_multiple_of(cols * size) && dense.len() / size <= u32::MAX as usize);
        let (mut bits, mut starts, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for row in dense.chunks_exact(cols * size) {
            for span in row.chunks(SPAN * size) {
                starts.push((values.len() / size) as u32);
                for word in span.chunks(WORD * size) {
                    let mut mask = 0;
                    for (i, element) in word.chunks_exact(size).enumerate() {
                        if element.iter().any(|byte| *byte != 0) {
                            mask |= 1u64 << i;
                            values.extend_from_slice(element);
                        }
                    }
                    bits.push(mask);
                }
            }
        }
        PackedRows { bits: bits.into(), starts: starts.into(), values: values.into() }
    }

    /// What [`unpack`](Self::unpack) and products rely on: lengths that fit `[rows, cols]`, no bit past a row's end, starts that
    /// count the bits before them, and as many values as bits.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, rows: usize, cols: usize, size: usize) -> Result<(), String> {
        let (words, spans) = PackedRows::row_lens(cols);
        let lens = rows.checked_mul(words).zip(rows.checked_mul(spans));
        if lens != Some((self.bits.len(), self.starts.len())) {
            let (bits, starts) = (self.bits.len(), self.starts.len());
            return Err(format!("{bits} words of mask and {starts} starts are not what a matrix of {rows}×{cols} has"));
        }
        let past = if cols.is_multiple_of(WORD) { 0 } else { u64::MAX << (cols % WORD) };
        let mut stored = 0usize;
        for (row, (bits, starts)) in self.bits.chunks(words.max(1)).zip(self.starts.chunks(spans.max(1))).enumerate() {
            for (span, (bits, start)) in bits.chunks(SPAN / WORD).zip(starts).enumerate() {
                if *start as usize != stored {
                    let column = span * SPAN;
                    return Err(format!(
                        "the start of row {row} at column {column} is {start}, but {stored} bits stand before it"
                    ));
                }
                stored += bits.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            }
            if bits.last().is_some_and(|word| word & past != 0) {
                return Err(format!("row {row} has bits past its {cols} columns"));
            }
        }
        if Some(self.values.len()) != stored.checked_mul(size) {
            return Err(format!(
                "its mask has {stored} bits, but there are {} values",
                self.values.len() / size.max(1)
            ));
        }
        Ok(())
    }

    /// The row-major matrix, zeros where nothing is stored. Arrays that passed [`check`](Self::check).
    pub fn unpack(&self, rows: usize, cols: usize, size: usize) -> Vec<u8> {
        let mut dense = vec![0; rows * cols * size];
        let mut values = self.values.chunks_exact(size);
        let words = PackedRows::row_lens(cols).0.max(1);
        for (bits, row) in self.bits.chunks(words).zip(dense.chunks_exact_mut((cols * size).max(1))) {
            for (mut mask, word) in bits.iter().copied().zip(row.chunks_mut(WORD * size)) {
                while mask != 0 {
                    let at = mask.trailing_zeros() as usize * size;
                    word[at..at + size].copy_from_slice(values.next().expect("one value a set bit"));
                    mask &= mask - 1;
                }
            }
        }
        dense
    }

    /// The mask as a flat bitmap over the row-major entries.
    pub fn mask(&self, rows: usize, cols: usize) -> Vec<u64> {
        let mut flat = vec![0u64; (rows * cols).div_ceil(64)];
        let words = PackedRows::row_lens(cols).0.max(1);
        for (row, bits) in self.bits.chunks(words).enumerate() {
            for (word, bits) in bits.iter().enumerate() {
                let at = row * cols + word * WORD;
                let (first, shift) = (at / 64, at % 64);
                flat[first] |= bits << shift;
                if shift > 0 && bits >> (64 - shift) != 0 {
                    flat[first + 1] |= bits >> (64 - shift);
                }
            }
        }
        flat
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Elements of `size` bytes, of which about `percent` in a hundred are not zero.
    fn matrix(rows: usize, cols: usize, size: usize, percent: u64, mut state: u64) -> Vec<u8> {
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        (0..rows * cols)
            .flat_map(|_| {
                let kept = random() % 100 < percent;
                let bytes = (random() as u32 | 1).to_le_bytes();
                (0..size).map(move |i| if kept { bytes[i] } else { 0 })
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn what_is_packed_comes_back_bit_for_bit(
            rows in 0usize..7, cols in 1usize..600, size in prop::sample::select(vec![2usize, 4]), percent in 0u64..101, seed: u64,
        ) {
            let dense = matrix(rows, cols, size, percent, seed);
            let packed = PackedRows::pack(&dense, cols, size);
            prop_assert_eq!(packed.check(rows, cols, size), Ok(()));
            prop_assert_eq!(packed.unpack(rows, cols, size), dense.clone());
            let mask = packed.mask(rows, cols);
            for (i, element) in dense.chunks_exact(size).enumerate() {
                prop_assert_eq!(mask[i / 64] >> (i % 64) & 1 == 1, element.iter().any(|byte| *byte != 0));
            }
        }
    }

    #[test]
    fn a_negative_zero_is_stored() {
        let dense: Vec<u8> = [0.0f32, -0.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let packed = PackedRows::pack(&dense, 3, 4);
        assert_eq!(packed.bits[..], [0b110]);
        assert_eq!(packed.unpack(1, 3, 4), dense);
    }

    #[test]
    fn arrays_that_contradict_each_other_are_found() {
        let dense = matrix(3, 300, 2, 50, 7);
        let good = PackedRows::pack(&dense, 300, 2);
        let with = |change: &dyn Fn(&mut PackedRows<'static>)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.check(3, 300, 2).unwrap_err()
        };
        assert!(with(&|bad| bad.bits.to_mut()[0] ^= 1).contains("the start of row 0 at column 256 is"));
        assert!(with(&|bad| bad.starts.to_mut()[3] += 1).contains("the start of row 1 at column 256 is"));
        assert!(with(&|bad| bad.bits.to_mut()[14] ^= 1).contains("bits, but there are"));
        assert!(with(&|bad| bad.bits.to_mut()[14] |= 1 << 44).contains("row 2 has bits past its 300 columns"));
        assert!(with(&|bad| bad.values.to_mut().truncate(1)).contains("bits, but there are"));
        assert!(with(&|bad| bad.starts.to_mut().truncate(1)).contains("are not what a matrix of 3×300 has"));
        assert!(good.check(usize::MAX, usize::MAX, 2).unwrap_err().contains("are not what a matrix of"));
    }
}
