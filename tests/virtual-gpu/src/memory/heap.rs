//! The heap that kernels allocate from: one allocation of device memory, parted first fit.

use std::collections::BTreeMap;

use super::AccessError;
use crate::fault::Kind;

/// What a program gets that asks for no other size, as in CUDA.
const DEFAULT_BYTES: u64 = 8 << 20;
/// Blocks are multiples of this, and aligned to it.
const UNIT: u64 = 16;

/// Which parts of the heap are in use. Offsets are relative to its first byte.
#[derive(Debug)]
pub(super) struct Heap {
    /// Bytes in all, once it is made.
    pub bytes: u64,
    /// Its address, once a kernel that allocates was launched.
    pub base: Option<u64>,
    free: BTreeMap<u64, u64>,
    used: BTreeMap<u64, u64>,
}

impl Default for Heap {
    fn default() -> Heap {
        Heap { bytes: DEFAULT_BYTES, base: None, free: BTreeMap::new(), used: BTreeMap::new() }
    }
}

impl Heap {
    /// It now lies at `base`.
    pub fn place(&mut self, base: u64) {
        self.base = Some(base);
        self.free = BTreeMap::from([(0, self.bytes)]);
        self.used.clear();
    }

    /// A block of at least `bytes`: offset and size. None where no room is left, as `malloc` may answer.
    pub fn take(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let bytes = bytes.max(1).checked_next_multiple_of(UNIT)?;
        let (&at, &room) = self.free.iter().find(|(_, room)| **room >= bytes)?;
        self.free.remove(&at);
        if room > bytes {
            self.free.insert(at + bytes, room - bytes);
        }
        self.used.insert(at, bytes);
        Some((at, bytes))
    }

    /// Gives the block at `at` back; its size.
    ///
    /// # Errors
    /// Where none begins there.
    pub fn give(&mut self, at: u64) -> Result<u64, AccessError> {
        let Some(bytes) = self.used.remove(&at) else {
            let what = format!("free of byte {at} of the heap, where no allocated block begins");
            return Err(AccessError::new(Kind::UseAfterFree, what));
        };
        let (mut from, mut room) = (at, bytes);
        if let Some(after) = self.free.remove(&(at + bytes)) {
            room += after;
        }
        if let Some((&before, &size)) = self.free.range(..at).next_back()
            && before + size == at
        {
            (from, room) = (before, room + size);
        }
        self.free.insert(from, room);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_together() {
        let mut heap = Heap { bytes: 64, ..Heap::default() };
        heap.place(0);
        let blocks: Vec<u64> = (0..4).map(|_| heap.take(9).unwrap().0).collect();
        assert_eq!(blocks, [0, 16, 32, 48]);
        assert_eq!(heap.take(1), None);
        for block in [16, 48, 32, 0] {
            assert_eq!(heap.give(block).unwrap(), 16);
        }
        assert_eq!(heap.give(0).unwrap_err().kind, Kind::UseAfterFree);
        assert_eq!(heap.take(64), Some((0, 64)));
    }
}
