//! One bit a byte: which bytes were ever written.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::global::Backing;

/// A lazily committed bitmap, zero at first, that threads may set together.
pub struct Bits {
    words: Backing,
    len: u64,
}

impl Bits {
    /// `len` zero bits.
    ///
    /// # Errors
    /// If the host has no address space left.
    pub fn new(len: u64) -> std::io::Result<Bits> {
        Ok(Bits { words: Backing::zeroed((len.div_ceil(64) * 8) as usize)?, len })
    }

    #[inline(always)]
    fn word(&self, i: u64) -> &AtomicU64 {
        debug_assert!(i < self.len.div_ceil(64));
        // SAFETY: callers keep i within the map (ranges are checked against the region first), the backing is
        // 8-aligned and lives as long as self.
        unsafe { &*(self.words.ptr().add(i as usize * 8) as *const AtomicU64) }
    }

    /// Whether all of `len` bits from `at` are set. The range must lie within the map.
    #[inline(always)]
    pub fn all(&self, at: u64, len: u64) -> bool {
        assert!(at + len <= self.len);
        let (first, shift) = (at / 64, at % 64);
        if len <= 64 - shift {
            let mask = low(len) << shift;
            return self.word(first).load(Relaxed) & mask == mask;
        }
        self.first_clear(at, len).is_none()
    }

    /// Whether any of `len` bits from `at` is set.
    pub fn any(&self, at: u64, len: u64) -> bool {
        self.pieces(at, len).any(|(i, mask)| self.word(i).load(Relaxed) & mask != 0)
    }

    /// The first clear bit of the range.
    pub fn first_clear(&self, at: u64, len: u64) -> Option<u64> {
        assert!(at + len <= self.len);
        self.pieces(at, len).find_map(|(i, mask)| {
            let clear = !self.word(i).load(Relaxed) & mask;
            (clear != 0).then(|| i * 64 + u64::from(clear.trailing_zeros()))
        })
    }

    /// Sets `len` bits from `at`.
    #[inline(always)]
    pub fn set(&self, at: u64, len: u64) {
        assert!(at + len <= self.len);
        let (first, shift) = (at / 64, at % 64);
        if len <= 64 - shift {
            let mask = low(len) << shift;
            let word = self.word(first);
            if word.load(Relaxed) & mask != mask {
                word.fetch_or(mask, Relaxed);
            }
            return;
        }
        for (i, mask) in self.pieces(at, len) {
            let word = self.word(i);
            if word.load(Relaxed) & mask != mask {
                word.fetch_or(mask, Relaxed);
            }
        }
    }

    /// Clears `len` bits from `at`.
    pub fn clear(&self, at: u64, len: u64) {
        assert!(at + len <= self.len);
        for (i, mask) in self.pieces(at, len) {
            self.word(i).fetch_and(!mask, Relaxed);
        }
    }

    fn pieces(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = at + len;
        let last = if len == 0 { at / 64 } else { end.div_ceil(64) };
        (at / 64..last).map(move |i| {
            let (from, to) = (at.max(i * 64) - i * 64, end.min(i * 64 + 64) - i * 64);
            (i, low(to - from) << from)
        })
    }
}

#[inline(always)]
fn low(n: u64) -> u64 {
    if n >= 64 { !0 } else { (1 << n) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_words_are_set_and_tested_exactly() {
        let bits = Bits::new(300).unwrap();
        bits.set(60, 140);
        assert!(bits.all(60, 140) && !bits.all(59, 2) && !bits.all(199, 2));
        assert_eq!(bits.first_clear(60, 141), Some(200));
        assert!(bits.any(0, 61) && !bits.any(0, 60) && !bits.any(200, 100));
        assert!(bits.all(5, 0));
        bits.clear(62, 100);
        assert!(bits.all(60, 2) && !bits.any(62, 100) && bits.all(162, 38));
    }
}
