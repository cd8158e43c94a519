//! A block's shared memory, and the record of who touched it.

use super::{AccessError, Clocks};
use crate::fault::Kind;

/// No thread.
const NOBODY: u16 = 0x7fff;
/// The last write was strong (atomic, volatile, relaxed or stronger): strong accesses don't race with one another.
const STRONG: u16 = 0x8000;

/// The last write and the reads since, of one granule.
#[derive(Clone, Copy)]
struct Record {
    write_stamp: u32,
    write_pc: u32,
    read_stamp: u32,
    /// Warps that read.
    read_warps: u32,
    /// Lanes of `read_warp` that read.
    read_lanes: u32,
    writer: u16,
    read_warp: u8,
    read_strong: bool,
}

const FRESH: Record = Record {
    write_stamp: 0,
    write_pc: 0,
    read_stamp: 0,
    read_warps: 0,
    read_lanes: 0,
    writer: NOBODY,
    read_warp: 0,
    read_strong: false,
};

/// Two accesses that nothing orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Race {
    /// The other thread; None where only its warp is known.
    pub thread: Option<u32>,
    /// Its warp.
    pub warp: u32,
    /// Where it wrote (code index); None: it read.
    pub wrote_at: Option<u32>,
}

/// Shared memory of one block.
pub struct SharedMemory {
    data: Vec<u64>,
    bytes: u32,
    init: Vec<u64>,
    /// Bytes that a `cp.async` will write.
    pending: Vec<u64>,
    pending_bytes: u64,
    records: Vec<Record>,
    /// log2 of the bytes that share a record: the smallest access of the kernel.
    granule: u32,
    /// Whether accesses are recorded (more than one thread, and shared memory used).
    recording: bool,
}

impl SharedMemory {
    /// `bytes` of uninitialised memory; accesses are recorded by `1 << granule` bytes.
    pub fn new(bytes: u32, granule: u32, threads: u32) -> SharedMemory {
        let words = (bytes as usize).div_ceil(8);
        let recording = threads > 1;
        let records = if recording { (bytes as usize).div_ceil(1 << granule) } else { 0 };
        SharedMemory {
            data: vec![0; words],
            bytes,
            init: vec![0; words.div_ceil(8)],
            pending: vec![0; words.div_ceil(8)],
            pending_bytes: 0,
            records: vec![FRESH; records],
            granule,
            recording,
        }
    }

    /// Where memory that the system keeps for itself begins, behind `bytes` of the program's.
    pub fn reserved_from(bytes: u32) -> u32 {
        bytes.next_multiple_of(128)
    }

    /// Adds `bytes` of zeros that the system keeps for itself. Who touches them is not recorded: the toolkit orders itself, by
    /// what it knows of warps.
    pub fn reserve(&mut self, bytes: u32) {
        let from = SharedMemory::reserved_from(self.bytes);
        self.bytes = from + bytes;
        let words = (self.bytes as usize).div_ceil(8);
        self.data.resize(words, 0);
        self.init.resize(words.div_ceil(8), 0);
        self.pending.resize(words.div_ceil(8), 0);
        (from..self.bytes).step_by(8).for_each(|at| self.store(at, 8, 0));
    }

    /// Bytes.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Checks bounds and alignment.
    ///
    /// # Errors
    /// If the access is outside or not a multiple of its size.
    #[inline(always)]
    pub fn check(&self, at: u64, n: u32) -> Result<(), AccessError> {
        if at.checked_add(n.into()).is_some_and(|end| end <= self.bytes.into()) && at & u64::from(n - 1) == 0 {
            return Ok(());
        }
        Err(self.refuse(at, n))
    }

    #[cold]
    fn refuse(&self, at: u64, n: u32) -> AccessError {
        if at.checked_add(n.into()).is_some_and(|end| end <= self.bytes.into()) {
            let what = format!("shared address {at:#x} is not a multiple of the {n} bytes accessed");
            return AccessError::new(Kind::Misaligned, what);
        }
        let what = format!("{n} bytes at shared address {at:#x}, but the block has {} bytes", self.bytes);
        AccessError::new(Kind::OutOfBounds, what)
    }

    /// The value of `n` bytes (1, 2, 4, 8), in bounds and aligned.
    #[inline(always)]
    pub fn load(&self, at: u32, n: u32) -> u64 {
        let word = self.data[(at / 8) as usize] >> (at % 8 * 8);
        if n == 8 { word } else { word & ((1 << (n * 8)) - 1) }
    }

    /// Stores `n` bytes, in bounds and aligned, and marks them written.
    #[inline(always)]
    pub fn store(&mut self, at: u32, n: u32, v: u64) {
        let mask = if n == 8 { !0 } else { (1u64 << (n * 8)) - 1 };
        let shift = at % 8 * 8;
        let word = &mut self.data[(at / 8) as usize];
        *word = *word & !(mask << shift) | (v & mask) << shift;
        self.init[(at / 64) as usize] |= ((1u64 << n) - 1) << (at % 64);
    }

    /// Whether `n` bytes (up to 16, aligned) were written.
    #[inline(always)]
    pub fn initialised(&self, at: u32, n: u32) -> bool {
        let mask = ((1u64 << n) - 1) << (at % 64);
        self.init[(at / 64) as usize] & mask == mask
    }

    /// Whether a `cp.async` into `n` bytes (up to 16, aligned) is pending.
    #[inline(always)]
    pub fn is_pending(&self, at: u32, n: u32) -> bool {
        self.pending_bytes != 0 && self.pending[(at / 64) as usize] & ((1u64 << n) - 1) << (at % 64) != 0
    }

    /// Marks `n` bytes (up to 16, aligned) as the target of a pending copy.
    pub fn begin_copy(&mut self, at: u32, n: u32) {
        self.pending[(at / 64) as usize] |= ((1u64 << n) - 1) << (at % 64);
        self.pending_bytes += u64::from(n);
    }

    /// The copy into `n` bytes is done; the caller stores them.
    pub fn end_copy(&mut self, at: u32, n: u32) {
        self.pending[(at / 64) as usize] &= !(((1u64 << n) - 1) << (at % 64));
        self.pending_bytes = self.pending_bytes.saturating_sub(n.into());
    }

    /// Records a read of `n` bytes by thread `me`.
    ///
    /// # Errors
    /// The unordered write it races with.
    #[inline(always)]
    pub fn record_read(&mut self, clocks: &Clocks, at: u32, n: u32, me: u32, strong: bool) -> Result<(), Race> {
        if !self.recording {
            return Ok(());
        }
        let (now, all) = (clocks.now(), clocks.all());
        let (warp, lane) = ((me / 32) as u8, 1u32 << (me % 32));
        let touched = (at >> self.granule) as usize..=((at + n - 1) >> self.granule) as usize;
        // Without records: memory that the system keeps for itself.
        let Some(records) = self.records.get_mut(touched) else { return Ok(()) };
        for r in records {
            if r.write_stamp >= all && r.writer != NOBODY {
                let by = u32::from(r.writer & !STRONG);
                let both_strong = strong && r.writer & STRONG != 0;
                if by != me && !both_strong && !clocks.ordered(by, r.write_stamp, me) {
                    return Err(Race { thread: Some(by), warp: by / 32, wrote_at: Some(r.write_pc) });
                }
            }
            if r.read_warps == 0 || r.read_stamp < all || (r.read_strong && !strong) {
                *r = Record {
                    read_stamp: now,
                    read_warps: 1 << warp,
                    read_lanes: lane,
                    read_warp: warp,
                    read_strong: strong,
                    ..*r
                };
            } else if strong && !r.read_strong {
                // Weak reads matter more: a strong write races with them alone.
            } else if r.read_stamp == now {
                r.read_warps |= 1 << warp;
                r.read_lanes = if r.read_warp == warp { r.read_lanes | lane } else { lane };
                r.read_warp = warp;
            } else {
                add_reader(r, clocks, me);
            }
        }
        Ok(())
    }

    /// Records a write of `n` bytes by thread `me` at code index `pc`.
    ///
    /// # Errors
    /// The unordered access it races with.
    #[inline(always)]
    pub fn record_write(
        &mut self,
        clocks: &Clocks,
        at: u32,
        n: u32,
        me: u32,
        strong: bool,
        pc: u32,
    ) -> Result<(), Race> {
        if !self.recording {
            return Ok(());
        }
        let (now, all) = (clocks.now(), clocks.all());
        let writer = me as u16 | if strong { STRONG } else { 0 };
        let touched = (at >> self.granule) as usize..=((at + n - 1) >> self.granule) as usize;
        // Without records: memory that the system keeps for itself.
        let Some(records) = self.records.get_mut(touched) else { return Ok(()) };
        for r in records {
            if r.write_stamp >= all && r.writer != NOBODY {
                let by = u32::from(r.writer & !STRONG);
                let both_strong = strong && r.writer & STRONG != 0;
                if by != me && !both_strong && !clocks.ordered(by, r.write_stamp, me) {
                    return Err(Race { thread: Some(by), warp: by / 32, wrote_at: Some(r.write_pc) });
                }
            }
            let own = r.read_warps == 1 << (me / 32) && r.read_lanes == 1 << (me % 32);
            if r.read_warps != 0 && r.read_stamp >= all && !own && !(strong && r.read_strong) {
                unordered_reader(r, clocks, me)?;
            }
            *r = Record { write_stamp: now, write_pc: pc, writer, ..FRESH };
        }
        Ok(())
    }
}

/// Indices of the set bits.
fn bits(mut m: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let i = m.trailing_zeros();
        m &= m.wrapping_sub(1);
        (i < 32).then_some(i)
    })
}

/// Adds a reader to those of an earlier interval: those ordered before it need not be remembered. What stays keeps the
/// older stamp, so a race can be missed among several partial barriers but none invented.
#[cold]
fn add_reader(r: &mut Record, clocks: &Clocks, me: u32) {
    let (warp, lane) = (me / 32, 1u32 << (me % 32));
    let mut stays = 0;
    for v in bits(r.read_warps & !(1 << warp)) {
        if !clocks.ordered(v * 32, r.read_stamp, me) {
            stays |= 1 << v;
        }
    }
    let own = if u32::from(r.read_warp) == warp {
        let earlier = bits(r.read_lanes).filter(|l| !clocks.ordered(warp * 32 + l, r.read_stamp, me));
        earlier.fold(0, |m, l| m | 1 << l)
    } else {
        0
    };
    if stays == 0 && own == 0 {
        r.read_stamp = clocks.now();
    }
    r.read_warps = stays | 1 << warp;
    r.read_lanes = own | lane;
    r.read_warp = warp as u8;
}

fn unordered_reader(r: &Record, clocks: &Clocks, me: u32) -> Result<(), Race> {
    for v in bits(r.read_warps) {
        if v == me / 32 {
            let lanes = if u32::from(r.read_warp) == v { r.read_lanes } else { 0 };
            for l in bits(lanes) {
                let by = v * 32 + l;
                if by != me && !clocks.ordered(by, r.read_stamp, me) {
                    return Err(Race { thread: Some(by), warp: v, wrote_at: None });
                }
            }
        } else if !clocks.ordered(v * 32, r.read_stamp, me) {
            let thread = (u32::from(r.read_warp) == v).then(|| v * 32 + r.read_lanes.trailing_zeros().min(31));
            return Err(Race { thread, warp: v, wrote_at: None });
        }
    }
    Ok(())
}

/// Passes that the 32 banks of 4 bytes need for a request, and the least that its width allows. Lanes of 8 bytes go by
/// half warps, of 16 by quarters; lanes that read one word share it.
pub fn bank_passes(addresses: &[u64; 32], mask: u32, bytes: u32) -> (u32, u32) {
    let lanes = match bytes {
        0..=4 => 32,
        8 => 16,
        _ => 8,
    };
    let (mut total, mut least) = (0, 0);
    for first in (0..32).step_by(lanes) {
        let part = mask >> first & (((1u64 << lanes) - 1) as u32);
        if part == 0 {
            continue;
        }
        total += passes(&addresses[first..first + lanes], part, bytes.div_ceil(4));
        least += 1;
    }
    (total, least)
}

fn passes(addresses: &[u64], mask: u32, words: u32) -> u32 {
    // The usual case: every lane has banks of its own.
    let (mut own, shift, count) = (0u32, words.trailing_zeros() + 2, 32 / words);
    for (lane, a) in addresses.iter().enumerate() {
        own |= (mask >> lane & 1) << (a >> shift & u64::from(count - 1));
    }
    if own.count_ones() == mask.count_ones() {
        return 1;
    }
    let mut seen = 0u32;
    let mut held = [0u64; 32];
    let mut others: Vec<u64> = Vec::new();
    for (lane, &a) in addresses.iter().enumerate() {
        if mask >> lane & 1 == 0 {
            continue;
        }
        for w in 0..u64::from(words) {
            let word = a / 4 + w;
            let bank = (word % 32) as usize;
            if seen >> bank & 1 == 0 {
                seen |= 1 << bank;
                held[bank] = word;
            } else if held[bank] != word {
                others.push(word);
            }
        }
    }
    if others.is_empty() {
        return 1;
    }
    others.sort_unstable();
    others.dedup();
    let mut depth = [1u32; 32];
    others.iter().for_each(|w| depth[(w % 32) as usize] += 1);
    depth.into_iter().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (SharedMemory, Clocks) {
        (SharedMemory::new(256, 2, 64), Clocks::new(2))
    }

    #[test]
    fn unordered_accesses_race_if_one_writes() {
        let (mut m, mut c) = memory();
        m.record_read(&c, 0, 4, 0, false).unwrap();
        m.record_read(&c, 0, 4, 33, false).unwrap();
        let race = m.record_write(&c, 0, 4, 33, false, 9).unwrap_err();
        assert_eq!((race.warp, race.wrote_at), (0, None));
        c.meet(&[0, 1], &[]);
        m.record_write(&c, 0, 4, 33, false, 9).unwrap();
        m.record_read(&c, 0, 4, 33, false).unwrap();
        let race = m.record_read(&c, 0, 4, 2, false).unwrap_err();
        assert_eq!(race, Race { thread: Some(33), warp: 1, wrote_at: Some(9) });
        m.record_write(&c, 4, 4, 2, false, 1).unwrap();
    }

    #[test]
    fn lanes_of_a_warp_need_a_warp_barrier() {
        let (mut m, mut c) = memory();
        m.record_read(&c, 8, 8, 1, false).unwrap();
        assert!(m.record_write(&c, 12, 4, 0, false, 0).is_err());
        c.meet_lanes(0, !0, !0);
        m.record_write(&c, 12, 4, 0, false, 0).unwrap();
    }

    #[test]
    fn strong_accesses_do_not_race_but_mixed_ones_do() {
        let (mut m, c) = memory();
        m.record_write(&c, 0, 4, 0, true, 0).unwrap();
        m.record_write(&c, 0, 4, 40, true, 0).unwrap();
        m.record_read(&c, 0, 4, 1, true).unwrap();
        m.record_write(&c, 0, 4, 2, true, 0).unwrap();
        assert!(m.record_read(&c, 0, 4, 3, false).is_err());
    }

    #[test]
    fn bytes_keep_their_written_and_pending_bits() {
        let (mut m, _) = memory();
        m.store(70, 2, 0xbeef);
        assert!(m.initialised(70, 2) && !m.initialised(68, 4));
        assert_eq!(m.load(68, 4), 0xbeef_0000);
        m.begin_copy(96, 16);
        assert!(m.is_pending(100, 4) && !m.is_pending(112, 4));
        m.end_copy(96, 16);
        assert!(!m.is_pending(100, 4));
        assert_eq!(m.check(254, 4).unwrap_err().kind, Kind::OutOfBounds);
        assert_eq!(m.check(6, 4).unwrap_err().kind, Kind::Misaligned);
        assert!(m.check(u64::MAX, 4).is_err());
    }

    #[test]
    fn bank_conflicts_count_distinct_words_of_a_bank() {
        let by = |stride: u64| std::array::from_fn(|l| l as u64 * stride);
        assert_eq!(bank_passes(&by(4), !0, 4), (1, 1));
        assert_eq!(bank_passes(&by(8), !0, 4), (2, 1));
        assert_eq!(bank_passes(&by(128), !0, 4), (32, 1));
        assert_eq!(bank_passes(&by(0), !0, 4), (1, 1));
        assert_eq!(bank_passes(&by(16), !0, 16), (4, 4));
        assert_eq!(bank_passes(&by(8), !0, 8), (2, 2));
        assert_eq!(bank_passes(&by(2), !0, 2), (1, 1), "two halves of one word");
    }
}
