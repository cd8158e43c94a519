//! Who touched which bytes last, and whether that is ordered before whoever touches them now.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::clock::{Clock, StreamId};

/// An allocation: device memory by its id, or the host's page-locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// An allocation of a device.
    Device {
        /// The device's number.
        device: usize,
        /// The allocation's id on it.
        allocation: u64,
    },
    /// Page-locked host memory.
    Host,
}

/// How bytes are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads may be unordered among each other.
    Read,
    /// A write must be ordered with every other access.
    Write,
}

/// A piece of work that touched bytes.
#[derive(Clone, Debug)]
pub struct Touch {
    /// The stream that it ran on.
    pub stream: StreamId,
    /// Its number on that stream.
    pub epoch: u64,
    /// What it was, in words.
    pub what: Arc<str>,
}

/// Two pieces of work that touch the same bytes, at least one of them writing, without an order between them.
#[derive(Debug)]
pub struct Conflict {
    /// The bytes that both touch.
    pub range: Range<u64>,
    /// The work that ran first.
    pub first: Touch,
    /// How it touched them.
    pub first_access: Access,
    /// The work that ran second.
    pub second: Touch,
    /// How it touched them.
    pub second_access: Access,
}

#[derive(Debug)]
struct Entry {
    range: Range<u64>,
    access: Access,
    touch: Touch,
}

/// What has been touched since all was last quiet.
#[derive(Debug, Default)]
pub struct Ledger(HashMap<Space, Vec<Entry>>);

impl Ledger {
    /// Notes that `touch`, which comes after all that `clock` knows, accesses the bytes of `range`.
    ///
    /// # Errors
    /// Where some of the bytes were touched by work that `clock` does not know, and one of the two writes.
    pub fn touch(
        &mut self,
        space: Space,
        range: Range<u64>,
        access: Access,
        clock: &Clock,
        touch: &Touch,
    ) -> Result<(), Box<Conflict>> {
        let entries = self.0.entry(space).or_default();
        for entry in entries.iter() {
            let common = entry.range.start.max(range.start)..entry.range.end.min(range.end);
            let harmless = common.is_empty() || (access == Access::Read && entry.access == Access::Read);
            if !harmless && !clock.covers(entry.touch.stream, entry.touch.epoch) {
                return Err(Box::new(Conflict {
                    range: common,
                    first: entry.touch.clone(),
                    first_access: entry.access,
                    second: touch.clone(),
                    second_access: access,
                }));
            }
        }
        // An earlier access within the same bytes is forgotten where whoever conflicts with it conflicts with this one.
        entries.retain(|entry| {
            let within = range.start <= entry.range.start && entry.range.end <= range.end;
            let stands_in = access == Access::Write || entry.access == Access::Read;
            !(within && stands_in && clock.covers(entry.touch.stream, entry.touch.epoch))
        });
        entries.push(Entry { range, access, touch: touch.clone() });
        Ok(())
    }

    /// The allocation is gone.
    pub fn forget(&mut self, space: Space) {
        self.0.remove(&space);
    }

    /// All is quiet: whatever comes is ordered after whatever was.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
