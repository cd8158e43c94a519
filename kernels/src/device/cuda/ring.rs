//! Two places on the GPU that take turns to hold what comes from pinned memory: while kernels read one, a stream of its own
//! copies into the other. The host is far ahead of both, so a copy begins as soon as the kernels before the last are done.

use std::sync::{Arc, Mutex};

use cudarc::driver::result;

use super::context::{Event, Stream};
use super::error::{CudaResult, check};
use super::{Gpu, Pinned};
use crate::device::Buffer;

/// The copies' order, for two buffers of the same size.
pub(crate) struct Ring {
    stream: Stream,
    slots: Mutex<Slots>,
}

struct Slots {
    /// The GPU's era in which all events were recorded.
    era: u64,
    turn: usize,
    of: [Slot; 2],
}

struct Slot {
    /// The last kernel that reads it is done.
    read: Event,
    /// What it is to hold is there.
    ready: Event,
}

impl Ring {
    pub fn new(gpu: &Gpu) -> CudaResult<Ring> {
        let slot = || Ok(Slot { read: gpu.new_event(false)?, ready: gpu.new_event(false)? });
        let ring = Ring {
            stream: gpu.new_stream()?,
            slots: Mutex::new(Slots { era: gpu.era(), turn: 0, of: [slot()?, slot()?] }),
        };
        // What the GPU's stream has yet to do comes first: it may be to allocate the places.
        for slot in &ring.slots.lock().expect("no panic while locked").of {
            slot.read.record(gpu.stream())?;
        }
        Ok(ring)
    }

    /// Copies `from` into the one of `places` whose turn it is, and has the GPU's stream wait for it. Returns which. Until
    /// [`Ring::done`], no other copy goes there, as long as only one place is taken at a time.
    ///
    /// # Panics
    /// If it is larger than a place.
    pub fn bring(&self, gpu: &Gpu, from: &Arc<Pinned>, places: &[Arc<Buffer>; 2]) -> CudaResult<usize> {
        let mut slots = self.slots.lock().expect("no panic while locked");
        if slots.era != gpu.era() {
            // A capture knows of no event from outside of it, and draws this stream in by one of its own; outside, no event of a
            // capture is known. Whatever the GPU's stream has by now, graphs too, comes before the next copy.
            slots.era = gpu.era();
            for slot in &slots.of {
                slot.read.record(gpu.stream())?;
            }
        }
        slots.turn = 1 - slots.turn;
        let (at, to) = (slots.turn, &places[slots.turn]);
        assert!(from.len() <= to.size_bytes(), "a place holds the largest of what it is for");
        let (slot, to) = (&slots.of[at], gpu.address(to)?);
        self.stream.wait(&slot.read)?;
        if from.len() > 0 {
            // SAFETY: the place has room and is read by no kernel before `ready`; pinned memory is not written again, and its
            // owner frees it only when the driver's copies are done.
            let answer = unsafe { result::memcpy_htod_async(to, from.slice(0..from.len()), self.stream.raw()) };
            check("cuMemcpyHtoDAsync", answer)?;
        }
        slot.ready.record(&self.stream)?;
        gpu.stream().wait(&slot.ready)?;
        Ok(at)
    }

    /// All kernels that read place `at` have been launched.
    pub fn done(&self, gpu: &Gpu, at: usize) -> CudaResult<()> {
        self.slots.lock().expect("no panic while locked").of[at].read.record(gpu.stream())
    }
}
