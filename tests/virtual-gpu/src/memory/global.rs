//! Device memory: allocations at addresses that never come back, committed only where touched.
//!
//! An address is never given out twice, so a stale pointer is told from a wrong one. Pages come from the operating
//! system when they are first written: an 80 GB device costs what its program uses.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

use memmap2::{MmapMut, MmapOptions};

use super::heap::Heap;
use super::{AccessError, Bits, window};
use crate::fault::Kind;

/// Allocations begin at multiples of this, as CUDA promises.
const ALIGN: u64 = 256;
/// Unused addresses between allocations, so that a small overrun meets nothing.
const GAP: u64 = 4096;
/// Larger backings are mapped without reserving swap; smaller ones come from the heap.
const MAPPED: usize = 1 << 18;

/// Zeroed host memory of a fixed place.
pub(super) struct Backing {
    ptr: *mut u8,
    _owner: Owner,
}

enum Owner {
    Map(#[allow(dead_code)] MmapMut),
    Heap(#[allow(dead_code)] Box<[u128]>),
    Host,
}

// SAFETY: the memory is owned (or borrowed from the host program for as long as it stays registered) and reached through
// atomics and ordered bulk copies alone.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Backing {
    pub(super) fn zeroed(bytes: usize) -> io::Result<Backing> {
        if bytes < MAPPED {
            let mut heap = vec![0u128; bytes.div_ceil(16).max(1)].into_boxed_slice();
            return Ok(Backing { ptr: heap.as_mut_ptr().cast(), _owner: Owner::Heap(heap) });
        }
        let mut map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
        Ok(Backing { ptr: map.as_mut_ptr(), _owner: Owner::Map(map) })
    }

    #[inline(always)]
    pub(super) fn ptr(&self) -> *mut u8 {
        self.ptr
    }
}

/// An allocation as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Never used twice.
    pub id: u64,
}

/// Whether a read may see bytes that nothing has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may (copies of whole buffers).
    Raw,
    /// It may not.
    Checked,
}

/// The device has no such amount left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: {asked} bytes asked for, {free} of {capacity} free")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes of the device.
    pub capacity: u64,
}

/// One allocation's memory.
pub struct Region {
    /// What it is.
    pub allocation: Allocation,
    data: Backing,
    /// None: all initialised (host memory).
    init: Option<Bits>,
    read_only: AtomicBool,
}

impl Region {
    /// Whether kernels may not write it.
    pub fn read_only(&self) -> bool {
        self.read_only.load(Relaxed)
    }

    #[inline(always)]
    fn at(&self, offset: u64, bytes: u64) -> *mut u8 {
        assert!(offset + bytes <= self.allocation.size);
        // SAFETY: within the backing, by the line above.
        unsafe { self.data.ptr.add(offset as usize) }
    }

    /// Loads `bytes` (1, 2, 4, 8) at a multiple of that size.
    #[inline(always)]
    pub fn load(&self, offset: u64, bytes: u32) -> u64 {
        let p = self.at(offset, bytes.into());
        // SAFETY: in bounds; callers have checked alignment, and the backing is 16-aligned or the host's own address.
        unsafe {
            match bytes {
                1 => (*(p as *const AtomicU8)).load(Relaxed).into(),
                2 => (*(p as *const AtomicU16)).load(Relaxed).into(),
                4 => (*(p as *const AtomicU32)).load(Relaxed).into(),
                _ => (*(p as *const AtomicU64)).load(Relaxed),
            }
        }
    }

    /// Stores the low `bytes` (1, 2, 4, 8) of `v` at a multiple of that size.
    #[inline(always)]
    pub fn store(&self, offset: u64, bytes: u32, v: u64) {
        let p = self.at(offset, bytes.into());
        // SAFETY: as in load.
        unsafe {
            match bytes {
                1 => (*(p as *const AtomicU8)).store(v as u8, Relaxed),
                2 => (*(p as *const AtomicU16)).store(v as u16, Relaxed),
                4 => (*(p as *const AtomicU32)).store(v as u32, Relaxed),
                _ => (*(p as *const AtomicU64)).store(v, Relaxed),
            }
        }
    }

    /// A 16-bit cell for atomic operations.
    pub fn atomic16(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: as in load; the reference lives as long as the region.
        unsafe { &*(self.at(offset, 2) as *const AtomicU16) }
    }

    /// A 32-bit cell for atomic operations.
    pub fn atomic32(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: as in atomic16.
        unsafe { &*(self.at(offset, 4) as *const AtomicU32) }
    }

    /// A 64-bit cell for atomic operations.
    pub fn atomic64(&self, offset: u64) -> &AtomicU64 {
        // SAFETY: as in atomic16.
        unsafe { &*(self.at(offset, 8) as *const AtomicU64) }
    }

    /// Whether all bytes of the range were written.
    #[inline(always)]
    pub fn initialised(&self, offset: u64, bytes: u64) -> bool {
        self.init.as_ref().is_none_or(|b| b.all(offset, bytes))
    }

    /// Marks a range as written.
    #[inline(always)]
    pub fn mark(&self, offset: u64, bytes: u64) {
        if let Some(b) = &self.init {
            b.set(offset, bytes);
        }
    }

    fn copy_out(&self, offset: u64, to: &mut [u8]) {
        let p = self.at(offset, to.len() as u64);
        // SAFETY: in bounds; the driver orders host copies after the kernels that touch the allocation.
        unsafe { std::ptr::copy(p, to.as_mut_ptr(), to.len()) }
    }

    fn copy_in(&self, offset: u64, from: &[u8]) {
        let p = self.at(offset, from.len() as u64);
        // SAFETY: as in copy_out.
        unsafe { std::ptr::copy(from.as_ptr(), p, from.len()) }
        self.mark(offset, from.len() as u64);
    }
}

/// The allocations that a launch can reach, in order of address.
pub type Snapshot = Vec<Arc<Region>>;

#[derive(Default)]
struct State {
    live: BTreeMap<u64, Arc<Region>>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    next_id: u64,
    used: u64,
}

/// Device memory.
pub struct GlobalMemory {
    capacity: u64,
    state: RwLock<State>,
    /// What kernels allocate from.
    heap: Mutex<Heap>,
}

impl GlobalMemory {
    /// The memory of a device of `capacity` bytes.
    pub fn new(capacity: u64) -> GlobalMemory {
        GlobalMemory::at(window::GLOBAL, capacity)
    }

    /// The same with addresses from `base` on, so that those of several devices differ.
    pub fn at(base: u64, capacity: u64) -> GlobalMemory {
        let state = State { next: base, next_id: 1, ..State::default() };
        GlobalMemory { capacity, state: RwLock::new(state), heap: Mutex::default() }
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Bytes of the device.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes allocated, each allocation rounded up to 256.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Allocates `bytes` of uninitialised memory and returns its address.
    ///
    /// # Errors
    /// [`OutOfMemory`] past the capacity (or where the host can't map that much).
    pub fn alloc(&self, bytes: u64) -> Result<u64, OutOfMemory> {
        let mut s = self.state_mut();
        let free = self.capacity - s.used;
        let refuse = OutOfMemory { asked: bytes, free, capacity: self.capacity };
        let rounded = bytes.checked_next_multiple_of(ALIGN).ok_or(refuse)?;
        if rounded > free {
            return Err(refuse);
        }
        let data = Backing::zeroed(rounded as usize).map_err(|_| refuse)?;
        let init = Some(Bits::new(bytes).map_err(|_| refuse)?);
        let allocation = Allocation { base: s.next, size: bytes, id: s.next_id };
        s.next += (rounded + GAP).next_multiple_of(ALIGN);
        s.next_id += 1;
        s.used += rounded;
        s.live.insert(allocation.base, Arc::new(Region { allocation, data, init, read_only: AtomicBool::new(false) }));
        Ok(allocation.base)
    }

    /// Makes host memory reachable at its own address (pinned and registered memory).
    ///
    /// # Safety
    /// The range must stay valid for reads and writes until it is freed here, and no launch may be running then.
    ///
    /// # Errors
    /// If it overlaps an allocation.
    pub unsafe fn register_host(&self, base: u64, ptr: *mut u8, bytes: u64) -> Result<u64, AccessError> {
        let mut s = self.state_mut();
        let before = s.live.range(..base + bytes).next_back().map(|(_, r)| r.allocation);
        if before.is_some_and(|a| a.base + a.size > base) {
            return Err(AccessError::new(Kind::OutOfBounds, "the range is registered already"));
        }
        let allocation = Allocation { base, size: bytes, id: s.next_id };
        s.next_id += 1;
        s.freed.remove(&base);
        let data = Backing { ptr, _owner: Owner::Host };
        s.live.insert(base, Arc::new(Region { allocation, data, init: None, read_only: AtomicBool::new(false) }));
        Ok(base)
    }

    /// Frees the allocation that begins at `address` (or unregisters host memory).
    ///
    /// # Errors
    /// If none does, or it is freed already.
    pub fn free(&self, address: u64) -> Result<(), AccessError> {
        let mut s = self.state_mut();
        let Some(region) = s.live.remove(&address) else {
            return Err(drop_guard(s, address));
        };
        let size = region.allocation.size;
        if !matches!(region.data._owner, Owner::Host) {
            s.used -= size.next_multiple_of(ALIGN);
        }
        s.freed.insert(address, size);
        Ok(())
    }

    fn heap(&self) -> std::sync::MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Bytes of the heap that kernels allocate from; false once there is one.
    pub fn set_heap(&self, bytes: u64) -> bool {
        let mut heap = self.heap();
        if heap.base.is_none() {
            heap.bytes = bytes;
        }
        heap.base.is_none()
    }

    /// Makes the heap, the first time.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub fn make_heap(&self) -> Result<(), OutOfMemory> {
        let mut heap = self.heap();
        if heap.base.is_none() {
            let base = self.alloc(heap.bytes)?;
            heap.place(base);
        }
        Ok(())
    }

    /// Address of the heap, once there is one.
    pub fn heap_address(&self) -> Option<u64> {
        self.heap().base
    }

    /// A block of the heap that nothing has written; None where it has no room.
    pub fn heap_alloc(&self, bytes: u64) -> Option<u64> {
        let mut heap = self.heap();
        let base = heap.base?;
        heap.take(bytes).map(|(at, _)| base + at)
    }

    /// Gives a block of the heap back. What it held counts as never written.
    ///
    /// # Errors
    /// Where no block begins at `address`.
    pub fn heap_free(&self, address: u64) -> Result<(), AccessError> {
        let mut heap = self.heap();
        let Some((base, at)) = heap.base.and_then(|base| Some((base, address.checked_sub(base)?))) else {
            let what = format!("free of {address:#x}, which is not in the heap");
            return Err(AccessError::new(Kind::InvalidOperand, what));
        };
        let bytes = heap.give(at)?;
        if let Some(init) = self.region(base).as_deref().and_then(|r| r.init.as_ref()) {
            init.clear(at, bytes);
        }
        Ok(())
    }

    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<Allocation> {
        self.region(address).map(|r| r.allocation)
    }

    fn region(&self, address: u64) -> Option<Arc<Region>> {
        let s = self.state();
        let (_, r) = s.live.range(..=address).next_back()?;
        (address - r.allocation.base < r.allocation.size).then(|| r.clone())
    }

    fn range(&self, address: u64, bytes: u64) -> Result<Arc<Region>, AccessError> {
        let region = self.region(address).ok_or_else(|| self.explain(address, bytes))?;
        let offset = address - region.allocation.base;
        if bytes > region.allocation.size - offset {
            return Err(self.explain(address, bytes));
        }
        Ok(region)
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// If the range is not within one live allocation or, checked, not all written.
    pub fn read(&self, address: u64, to: &mut [u8], access: Access) -> Result<(), AccessError> {
        if to.is_empty() {
            return Ok(());
        }
        let bytes = to.len() as u64;
        let region = self.range(address, bytes)?;
        let offset = address - region.allocation.base;
        if let (Access::Checked, Some(init)) = (access, &region.init)
            && let Some(clear) = init.first_clear(offset, bytes)
        {
            let what = format!("nothing has written byte {clear} of the allocation at {:#x}", region.allocation.base);
            return Err(AccessError::new(Kind::UninitialisedGlobal, what));
        }
        region.copy_out(offset, to);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// If the range is not within one live allocation.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), AccessError> {
        if from.is_empty() {
            return Ok(());
        }
        let region = self.range(address, from.len() as u64)?;
        region.copy_in(address - region.allocation.base, from);
        Ok(())
    }

    /// Writes `pattern` `count` times.
    ///
    /// # Errors
    /// If the range is not within one live allocation.
    pub fn set(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), AccessError> {
        if pattern.is_empty() || count == 0 {
            return Ok(());
        }
        let refuse = || AccessError::new(Kind::OutOfBounds, "the range is larger than the address space");
        let bytes = count.checked_mul(pattern.len() as u64).ok_or_else(refuse)?;
        let region = self.range(address, bytes)?;
        let offset = address - region.allocation.base;
        let chunk = pattern.repeat((4096 / pattern.len()).max(1));
        for at in (0..bytes).step_by(chunk.len()) {
            region.copy_in(offset + at, &chunk[..chunk.len().min((bytes - at) as usize)]);
        }
        Ok(())
    }

    /// Copies within device memory, initialised or not: unwritten bytes stay unwritten only if all are.
    ///
    /// # Errors
    /// If a range is not within one live allocation.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), AccessError> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, target) = (self.range(from, bytes)?, self.range(to, bytes)?);
        let (a, b) = (from - source.allocation.base, to - target.allocation.base);
        let (p, q) = (source.at(a, bytes), target.at(b, bytes));
        // SAFETY: both ranges are in bounds; copy allows overlap; the driver orders copies with kernels.
        unsafe { std::ptr::copy(p, q, bytes as usize) }
        if source.init.as_ref().is_none_or(|bits| bits.any(a, bytes)) {
            target.mark(b, bytes);
        }
        Ok(())
    }

    /// Makes an allocation read-only for kernels, or writable again.
    ///
    /// # Errors
    /// If no allocation holds the address.
    pub fn protect(&self, address: u64, read_only: bool) -> Result<(), AccessError> {
        let region = self.region(address).ok_or_else(|| self.explain(address, 1))?;
        region.read_only.store(read_only, Relaxed);
        Ok(())
    }

    /// The allocations as they are now.
    pub fn snapshot(&self) -> Snapshot {
        self.state().live.values().cloned().collect()
    }

    /// Why an access of `bytes` at `address` hits no allocation.
    pub fn explain(&self, address: u64, bytes: u64) -> AccessError {
        explain(&self.state(), address, bytes)
    }
}

fn drop_guard(s: std::sync::RwLockWriteGuard<'_, State>, address: u64) -> AccessError {
    explain(&s, address, 1)
}

fn explain(s: &State, address: u64, bytes: u64) -> AccessError {
    if let Some((base, size)) = s.freed.range(..=address).next_back()
        && address - base < (*size).max(1)
    {
        let what = format!("address {address:#x} lies in the {size} bytes at {base:#x}, which were freed");
        return AccessError::new(Kind::UseAfterFree, what);
    }
    let near = s.live.range(..=address).next_back().map(|(_, r)| r.allocation);
    let what = match near {
        Some(a) if address - a.base < a.size => {
            format!("{bytes} bytes at {address:#x} pass the end of the allocation of {} bytes at {:#x}", a.size, a.base)
        }
        Some(a) if address - a.base < a.size + (1 << 20) => format!(
            "address {address:#x} is {} bytes past the end of the allocation of {} bytes at {:#x}",
            address - a.base - a.size,
            a.size,
            a.base
        ),
        _ => format!("address {address:#x} is in no allocation"),
    };
    AccessError::new(Kind::OutOfBounds, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_never_given_twice_and_stale_ones_are_told() {
        let m = GlobalMemory::new(1 << 20);
        let a = m.alloc(100).unwrap();
        m.free(a).unwrap();
        let b = m.alloc(100).unwrap();
        assert!(b > a && b.is_multiple_of(256));
        assert_eq!(m.write(a, &[1]).unwrap_err().kind, Kind::UseAfterFree);
        assert_eq!(m.free(a).unwrap_err().kind, Kind::UseAfterFree);
        assert_eq!(m.write(b + 98, &[1; 3]).unwrap_err().kind, Kind::OutOfBounds);
        assert_eq!(m.find(b + 99).unwrap().base, b);
        assert_eq!(m.find(b + 100), None);
    }

    #[test]
    fn capacity_is_a_limit_and_costs_nothing_until_touched() {
        let m = GlobalMemory::new(80 << 30);
        let a = m.alloc(79 << 30).unwrap();
        m.write(a + (78 << 30), &[7; 10]).unwrap();
        assert!(m.alloc(2 << 30).is_err());
        m.free(a).unwrap();
        assert_eq!(m.used(), 0);
        m.alloc(2 << 30).unwrap();
        assert!(m.alloc(u64::MAX).is_err());
    }

    #[test]
    fn a_checked_read_finds_the_unwritten_byte() {
        let m = GlobalMemory::new(1 << 20);
        let a = m.alloc(64).unwrap();
        m.set(a, &[1, 2], 16).unwrap();
        let mut out = [0; 33];
        assert!(m.read(a, &mut out[..32], Access::Checked).is_ok());
        assert_eq!(out[..4], [1, 2, 1, 2]);
        assert_eq!(m.read(a, &mut out, Access::Checked).unwrap_err().kind, Kind::UninitialisedGlobal);
        assert!(m.read(a, &mut out, Access::Raw).is_ok());
    }
}
