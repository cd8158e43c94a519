//! Vector clocks: for each stream, how much of its work is known to come before.

use std::collections::BTreeMap;

/// A stream, for as long as the process lives (handles may be reused, these never are).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// For each stream, the number of its last piece of work that comes before. Streams that are not listed stand at 0;
/// the work of a stream is numbered from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(BTreeMap<StreamId, u64>);

impl Clock {
    /// The last piece of work of `stream` that comes before.
    pub fn get(&self, stream: StreamId) -> u64 {
        self.0.get(&stream).copied().unwrap_or(0)
    }

    /// True where work `epoch` of `stream` comes before.
    pub fn covers(&self, stream: StreamId, epoch: u64) -> bool {
        self.get(stream) >= epoch
    }

    /// Learns that work `epoch` of `stream` comes before.
    pub fn raise(&mut self, stream: StreamId, epoch: u64) {
        let known = self.0.entry(stream).or_insert(0);
        *known = epoch.max(*known);
    }

    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (&stream, &epoch) in &other.0 {
            self.raise(stream, epoch);
        }
    }

    /// Each stream that the clock knows of, with the number of its last piece of work that comes before.
    pub fn iter(&self) -> impl Iterator<Item = (StreamId, u64)> + '_ {
        self.0.iter().map(|(&stream, &epoch)| (stream, epoch))
    }

    /// Forgets the streams that `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(StreamId) -> bool) {
        self.0.retain(|&stream, _| keep(stream));
    }
}
