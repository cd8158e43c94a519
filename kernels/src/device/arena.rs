//! Memory whose places are known before the work that uses it: what a step takes and gives back is noted once, and from then
//! on every buffer of such a step has its place in one slab. Addresses then stay the same from step to step, which a CUDA graph
//! asks for; what the places take beyond the buffers that live at one time is known, too, and Meta plans it.
//!
//! A place is the smallest hole that holds it, the first of several, and the end of all others where none does. That depends on
//! the order of takes and gives alone, not on the size of the slab.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::{Buffer, Category, DType, Device};
use crate::error::Result;

/// Places begin at multiples of so many bytes, as allocations of the driver do for all that kernels ask.
const ALIGNMENT: usize = 256;

/// Which bytes of a slab are taken.
#[derive(Debug, Default)]
struct Places {
    /// Of each place its bytes, by where it begins.
    taken: BTreeMap<usize, usize>,
    /// The holes between them.
    holes: BTreeMap<usize, usize>,
    /// Where the last place ends.
    end: usize,
}

impl Places {
    /// Where `bytes` lie from now on; nowhere where they would end past `limit`.
    fn take(&mut self, bytes: usize, limit: usize) -> Option<usize> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let fitting = self.holes.iter().filter(|(_, hole)| **hole >= bytes);
        let start = match fitting.map(|(start, hole)| (*hole, *start)).min() {
            Some((hole, start)) => {
                self.holes.remove(&start);
                if hole > bytes {
                    self.holes.insert(start + bytes, hole - bytes);
                }
                start
            }
            None => {
                let end = self.end.checked_add(bytes).filter(|end| *end <= limit)?;
                std::mem::replace(&mut self.end, end)
            }
        };
        self.taken.insert(start, bytes);
        Some(start)
    }

    fn give(&mut self, start: usize) {
        let bytes = self.taken.remove(&start).expect("a place is given back once");
        let (mut from, mut to) = (start, start + bytes);
        if let Some((before, hole)) = self.holes.range(..start).next_back().map(|(start, hole)| (*start, *hole))
            && before + hole == start
        {
            self.holes.remove(&before);
            from = before;
        }
        if let Some(hole) = self.holes.remove(&to) {
            to += hole;
        }
        if to == self.end {
            self.end = from;
        } else {
            self.holes.insert(from, to - from);
        }
    }
}

/// What is taken and given back, in order.
#[derive(Debug, Default)]
struct Notes {
    changes: Vec<Change>,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    /// So many bytes are taken.
    Take(usize),
    /// What was taken by the change of this number is given back.
    Give(usize),
}

/// Notes what is taken of a device's memory, as long as it lives.
#[derive(Debug)]
pub struct Recording {
    notes: Arc<Mutex<Notes>>,
}

impl Recording {
    fn new() -> Recording {
        Recording { notes: Arc::default() }
    }

    /// Bytes of the slab that holds all that was taken and given back again. What still is there is no part of a step that is
    /// like this one.
    pub fn slab_bytes(&self) -> usize {
        let notes = lock(&self.notes);
        let mut given = vec![false; notes.changes.len()];
        for change in &notes.changes {
            if let Change::Give(taken) = change {
                given[*taken] = true;
            }
        }
        let mut places = Places::default();
        let (mut starts, mut most) = (BTreeMap::new(), 0);
        for (at, change) in notes.changes.iter().enumerate() {
            match change {
                Change::Take(_) if !given[at] => {}
                Change::Take(bytes) => {
                    // No limit: on Meta a step may be larger than any memory, and 64 bits count it.
                    let Some(start) = places.take(*bytes, usize::MAX) else { return usize::MAX };
                    starts.insert(at, start);
                    most = most.max(places.end);
                }
                Change::Give(taken) => places.give(starts.remove(taken).expect("taken before it is given back")),
            }
        }
        most
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut notes = lock(&self.notes);
        notes.over = true;
        notes.changes = Vec::new();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while locked")
}

/// One piece of a device's memory that buffers lie in while a step is captured, and between steps as far as there is room.
pub struct Slab {
    buffer: Buffer,
    places: Mutex<Places>,
}

impl Slab {
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// True where no buffer lies in it.
    pub fn is_empty(&self) -> bool {
        lock(&self.places).taken.is_empty()
    }

    /// All of it.
    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slab of {} bytes", self.bytes())
    }
}

/// A part of a slab, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub slab: Arc<Slab>,
    pub start: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.slab.places).give(self.start);
    }
}

/// A buffer of which a recording knows, until it is dropped.
#[derive(Debug)]
pub(super) struct Noted {
    notes: Arc<Mutex<Notes>>,
    taken: usize,
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut notes = lock(&self.notes);
        if !notes.over {
            notes.changes.push(Change::Give(self.taken));
        }
    }
}

/// What a device keeps of both.
#[derive(Default)]
pub(super) struct Arena {
    recording: Weak<Mutex<Notes>>,
    slab: Weak<Slab>,
    /// All that is taken must lie in the slab.
    only: bool,
}

impl Arena {
    pub fn record(&mut self) -> Recording {
        let recording = Recording::new();
        self.recording = Arc::downgrade(&recording.notes);
        recording
    }

    /// The recording hears of bytes that are taken.
    pub fn note(&self, bytes: usize) -> Option<Noted> {
        let notes = self.recording.upgrade()?;
        let taken = {
            let mut locked = lock(&notes);
            if locked.over {
                return None;
            }
            locked.changes.push(Change::Take(bytes));
            locked.changes.len() - 1
        };
        Some(Noted { notes, taken })
    }

    /// Where bytes lie in the slab; nowhere where there is no room.
    pub fn place(&self, bytes: usize) -> Option<Place> {
        let slab = self.slab.upgrade()?;
        let start = lock(&slab.places).take(bytes, slab.bytes())?;
        Some(Place { slab, start })
    }

    /// From now on bytes are taken of the slab alone, or of all memory again.
    pub fn restrict(&mut self, only: bool) {
        self.only = only;
    }

    pub fn is_restricted(&self) -> bool {
        self.only
    }
}

impl Device {
    /// Notes what is taken of this device's memory and given back, until what is returned is dropped. A recording that is under
    /// way hears of nothing more.
    pub fn record(&self) -> Recording {
        self.arena().record()
    }

    /// A piece of memory that buffers lie in from now on as far as there is room, as long as it lives. It is accounted as
    /// workspace, but for what buffers have of it, which is theirs.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn slab(&self, bytes: usize) -> Result<Arc<Slab>> {
        // Not in the slab of before.
        self.arena().slab = Weak::new();
        let buffer = self.alloc(Category::Workspace, DType::U8, bytes)?;
        let slab = Arc::new(Slab { buffer, places: Mutex::default() });
        self.arena().slab = Arc::downgrade(&slab);
        Ok(slab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;

    #[test]
    fn a_place_is_the_smallest_hole_and_holes_grow_together() {
        let mut places = Places::default();
        let take = |places: &mut Places, bytes| places.take(bytes, 4096).unwrap();
        let [a, b, c, d, e] = [512, 256, 1024, 256, 1].map(|bytes| take(&mut places, bytes));
        assert_eq!([a, b, c, d, e], [0, 512, 768, 1792, 2048]);
        assert_eq!(places.end, 2304);
        places.give(a);
        places.give(c);
        // The hole of 512 bytes holds it, and so does that of 1,024.
        assert_eq!(take(&mut places, 300), 0);
        places.give(0);
        // Two holes and what is between them are one.
        places.give(b);
        assert_eq!(places.holes, BTreeMap::from([(0, 1792)]));
        assert_eq!(take(&mut places, 1792), 0);
        places.give(0);
        // The last places go with the hole before them.
        places.give(e);
        places.give(d);
        assert_eq!((places.end, places.holes.len(), places.taken.len()), (0, 0, 0));
        assert_eq!(places.take(4097, 4096), None);
        assert_eq!(places.take(4096, 4096), Some(0));
        assert_eq!(places.take(1, 4096), None);
    }

    /// Places never overlap, whatever the order, and all memory is one hole when all are given back.
    #[test]
    fn places_that_are_taken_at_one_time_are_apart() {
        let mut places = Places::default();
        let mut alive: Vec<usize> = Vec::new();
        let mut state = 1u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..5000 {
            if alive.len() > 40 || draw(3) == 0 && !alive.is_empty() {
                places.give(alive.swap_remove(draw(alive.len())));
            } else {
                alive.push(places.take(draw(5000) + 1, usize::MAX).unwrap());
            }
            let mut all: Vec<(usize, usize)> =
                places.taken.iter().chain(&places.holes).map(|(s, b)| (*s, *b)).collect();
            all.sort_unstable();
            let mut end = 0;
            for (start, bytes) in all {
                assert_eq!(start, end);
                end += bytes;
            }
            assert_eq!(end, places.end);
        }
        alive.into_iter().for_each(|start| places.give(start));
        assert_eq!((places.end, places.holes.len()), (0, 0));
    }

    #[test]
    fn a_slab_holds_what_was_recorded_and_counts_as_workspace_what_no_buffer_has() {
        let device = Device::meta(Backend::Cuda, 1);
        let work = |device: &Device| {
            let alloc = |len| device.alloc(Category::Activations, DType::F32, len).unwrap();
            let (a, b) = (alloc(100), alloc(1000));
            drop(a);
            (b, alloc(90))
        };
        let recording = device.record();
        let kept = device.alloc(Category::Weights, DType::F32, 10_000).unwrap();
        drop(work(&device));
        // 400 bytes lie in 512, 4,000 after them in 4,096, and 360 in the hole.
        assert_eq!(recording.slab_bytes(), 512 + 4096);
        drop(recording);
        let slab = device.slab(512 + 4096).unwrap();
        let memory = device.memory();
        assert_eq!(memory.in_use(), 40_000 + 4608);
        memory.reset_peak();
        let both = work(&device);
        assert_eq!(memory.in_use(), 40_000 + 4608);
        assert!(!slab.is_empty());
        let peak = memory.peak();
        assert_eq!((peak.total, peak.by_category[Category::Activations as usize]), (44_608, 4400));
        // There is no room left for this one.
        let beside = device.alloc(Category::Activations, DType::F32, 100).unwrap();
        assert_eq!(memory.in_use(), 40_000 + 4608 + 400);
        drop((both, beside, slab));
        assert_eq!(memory.in_use(), 40_000);
        drop(kept);
        assert_eq!(memory.in_use(), 0);
    }
}
