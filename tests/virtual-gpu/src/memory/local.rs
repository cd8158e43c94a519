//! Memory of which each lane has its own: local memory and the frames of call parameters.

/// The same number of bytes for each of 32 lanes, with a bit a byte for what was written.
pub struct PerLane {
    bytes: usize,
    data: Vec<u8>,
    init: Vec<u8>,
}

impl PerLane {
    /// `bytes` a lane, nothing written.
    pub fn new(bytes: u32) -> PerLane {
        let bytes = (bytes as usize).next_multiple_of(8);
        PerLane { bytes, data: vec![0; bytes * 32], init: vec![0; bytes * 4] }
    }

    /// Bytes a lane.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Grows to at least `bytes` a lane.
    pub fn grow(&mut self, bytes: u64) {
        let mut larger = PerLane::new(bytes as u32);
        if larger.bytes <= self.bytes {
            return;
        }
        for lane in 0..32 {
            let (from, to) = (lane * self.bytes, lane * larger.bytes);
            larger.data[to..to + self.bytes].copy_from_slice(&self.data[from..from + self.bytes]);
            larger.init[to / 8..(to + self.bytes) / 8].copy_from_slice(&self.init[from / 8..(from + self.bytes) / 8]);
        }
        *self = larger;
    }

    /// A value of `n` bytes (1 to 8) and how many of its bytes were written. The range must be within bounds.
    #[inline]
    pub fn load(&self, lane: usize, at: u64, n: u32) -> (u64, u32) {
        let at = lane * self.bytes + at as usize;
        let mut v = [0u8; 8];
        v[..n as usize].copy_from_slice(&self.data[at..at + n as usize]);
        // Aligned values of up to 8 bytes share one byte of bits.
        let bits = self.init[at / 8] >> (at % 8);
        (u64::from_le_bytes(v), (u32::from(bits) & ((1 << n) - 1)).count_ones())
    }

    /// Stores the low `n` bytes (1 to 8) of a value. The range must be within bounds.
    #[inline]
    pub fn store(&mut self, lane: usize, at: u64, n: u32, v: u64) {
        let at = lane * self.bytes + at as usize;
        self.data[at..at + n as usize].copy_from_slice(&v.to_le_bytes()[..n as usize]);
        self.init[at / 8] |= ((((1u32 << n) - 1) << (at % 8)) & 0xff) as u8;
    }

    /// Takes back that a range of `n` bytes (1 to 8, aligned) was written.
    pub fn unwrite(&mut self, lane: usize, at: u64, n: u32) {
        let at = lane * self.bytes + at as usize;
        self.init[at / 8] &= !((((1u32 << n) - 1) << (at % 8)) & 0xff) as u8;
    }

    /// Copies bytes, written or not, from one lane-relative range to another.
    pub fn copy(&mut self, lane: usize, from: u32, to: u32, n: u32) {
        let base = lane * self.bytes;
        for i in 0..n as usize {
            let (a, b) = (base + from as usize + i, base + to as usize + i);
            self.data[b] = self.data[a];
            let written = self.init[a / 8] >> (a % 8) & 1;
            self.init[b / 8] = self.init[b / 8] & !(1 << (b % 8)) | written << (b % 8);
        }
    }

    /// A byte of a lane, and whether it was written.
    pub fn byte(&self, lane: usize, at: u32) -> (u8, bool) {
        let at = lane * self.bytes + at as usize;
        (self.data[at], self.init[at / 8] >> (at % 8) & 1 == 1)
    }

    /// Puts a byte back.
    pub fn set_byte(&mut self, lane: usize, at: u32, (value, written): (u8, bool)) {
        let at = lane * self.bytes + at as usize;
        self.data[at] = value;
        self.init[at / 8] = self.init[at / 8] & !(1 << (at % 8)) | u8::from(written) << (at % 8);
    }

    /// Forgets what was written in a range of one lane: whole frames, which begin at multiples of 8 and are padded.
    pub fn forget(&mut self, lane: usize, at: u32, n: u32) {
        let base = lane * self.bytes;
        let (from, to) = (base + at as usize, base + (at as usize + n as usize).next_multiple_of(8).min(self.bytes));
        self.init[from / 8..to / 8].fill(0);
    }
}
