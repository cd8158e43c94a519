//! Which work is waiting, and which may run next.
//!
//! The clock that a piece of work gets when it is queued says both what it must wait for and what it is ordered after:
//! the work of its own stream before it, whatever its stream waited for, what the host had waited for when it queued
//! it, and what the legacy default stream orders implicitly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::clock::{Clock, StreamId};

/// How a stream relates to the legacy default stream of its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The legacy default stream itself: its work waits for all earlier work of blocking streams.
    Legacy,
    /// Work waits for all earlier work of the legacy default stream.
    Blocking,
    /// No implicit order.
    NonBlocking,
}

/// One piece of work, taken to be run.
#[derive(Debug)]
pub struct Work<W> {
    /// The stream that it was queued on.
    pub stream: StreamId,
    /// Its number on that stream, from 1.
    pub epoch: u64,
    /// All that comes before it, and itself.
    pub clock: Clock,
    /// What to do.
    pub item: W,
}

/// What [`Schedule::next`] found.
#[derive(Debug)]
pub enum Next<W> {
    /// This work must run; tell [`Schedule::finish`] when it has.
    Run(Work<W>),
    /// All that could run is running on other threads.
    Busy,
    /// All the work that was asked for has run.
    Done,
}

#[derive(Debug)]
struct Stream<W> {
    group: u64,
    kind: Kind,
    /// Numbers given out.
    queued: u64,
    /// Numbers finished.
    finished: u64,
    /// A piece of work is running.
    busy: bool,
    /// No more work will come.
    closed: bool,
    /// What the next piece of work comes after.
    clock: Clock,
    waiting: VecDeque<Work<W>>,
}

/// All streams of all contexts, and the host: every host thread counts as one, since how they wait for each other can't
/// be seen.
#[derive(Debug)]
pub struct Schedule<W> {
    streams: BTreeMap<StreamId, Stream<W>>,
    host: Clock,
    last_id: u64,
}

impl<W> Default for Schedule<W> {
    fn default() -> Self {
        Schedule { streams: BTreeMap::new(), host: Clock::default(), last_id: 0 }
    }
}

impl<W> Schedule<W> {
    /// A new stream. The implicit order of the legacy default stream holds among streams of the same `group` (context).
    pub fn open(&mut self, group: u64, kind: Kind) -> StreamId {
        self.last_id += 1;
        let id = StreamId(self.last_id);
        let stream = Stream {
            group,
            kind,
            queued: 0,
            finished: 0,
            busy: false,
            closed: false,
            clock: Clock::default(),
            waiting: VecDeque::new(),
        };
        self.streams.insert(id, stream);
        id
    }

    /// No more work will come on this stream; what waits still runs.
    pub fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.closed = true;
        }
    }

    /// Forgets all work and all streams of a group: its context is gone.
    pub fn abandon(&mut self, group: u64) {
        self.streams.retain(|_, stream| stream.group != group);
    }

    /// All that work queued on this stream now would come after: what an event recorded now stands for.
    pub fn stamp(&self, id: StreamId) -> Clock {
        let mut clock = self.host.clone();
        let Some(stream) = self.streams.get(&id) else { return clock };
        clock.join(&stream.clock);
        for other in self.streams.values().filter(|other| other.group == stream.group) {
            let ordered = match stream.kind {
                Kind::Legacy => other.kind == Kind::Blocking,
                Kind::Blocking => other.kind == Kind::Legacy,
                Kind::NonBlocking => false,
            };
            if ordered {
                clock.join(&other.clock);
            }
        }
        clock
    }

    /// Queues work; its clock says what it comes after, itself included.
    pub fn enqueue(&mut self, id: StreamId, item: W) -> Option<Clock> {
        let mut clock = self.stamp(id);
        let stream = self.streams.get_mut(&id)?;
        stream.queued += 1;
        clock.raise(id, stream.queued);
        stream.clock = clock.clone();
        stream.waiting.push_back(Work { stream: id, epoch: stream.queued, clock: clock.clone(), item });
        Some(clock)
    }

    /// The work queued on the stream from now on comes after all that `clock` knows.
    pub fn wait(&mut self, id: StreamId, clock: &Clock) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.clock.join(clock);
        }
    }

    /// All work queued so far on the streams of a group.
    pub fn group(&self, group: u64) -> Clock {
        let mut clock = Clock::default();
        for stream in self.streams.values().filter(|stream| stream.group == group) {
            clock.join(&stream.clock);
        }
        clock
    }

    /// True where all that `clock` knows has run.
    pub fn done(&self, clock: &Clock) -> bool {
        clock.iter().all(|(id, epoch)| self.finished(id, epoch))
    }

    /// A stream that is gone has finished all its work.
    fn finished(&self, id: StreamId, epoch: u64) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.finished >= epoch)
    }

    /// The next piece of work on the way to `goal`: the earliest stream that still owes some, down to what that waits
    /// for in turn.
    pub fn next(&mut self, goal: &Clock) -> Next<W> {
        let mut busy = false;
        let owing: Vec<StreamId> =
            goal.iter().filter(|&(id, epoch)| !self.finished(id, epoch)).map(|(id, _)| id).collect();
        let mut asked = BTreeSet::new();
        for id in owing {
            match self.runnable(id, &mut asked) {
                Some(ready) => {
                    let stream = self.streams.get_mut(&ready).expect("a runnable stream exists");
                    stream.busy = true;
                    return Next::Run(stream.waiting.pop_front().expect("a runnable stream has work"));
                }
                None => busy = true,
            }
        }
        if busy { Next::Busy } else { Next::Done }
    }

    /// The stream whose front work can run now and brings stream `id` on; none where all such work is running.
    ///
    /// Work only ever waits for work queued before it, so the walk ends. A stream that was asked before had nothing
    /// to run, or the walk would be over: without that, chains of streams would be walked again from each of their ends.
    fn runnable(&self, id: StreamId, asked: &mut BTreeSet<StreamId>) -> Option<StreamId> {
        let stream = self.streams.get(&id)?;
        if stream.busy || !asked.insert(id) {
            return None;
        }
        let front = stream.waiting.front()?;
        let mut ready = true;
        for (other, epoch) in front.clock.iter() {
            if other != id && !self.finished(other, epoch) {
                ready = false;
                if let Some(found) = self.runnable(other, asked) {
                    return Some(found);
                }
            }
        }
        ready.then_some(id)
    }

    /// The work that [`Schedule::next`] gave has run.
    pub fn finish(&mut self, id: StreamId, epoch: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.busy = false;
            stream.finished = stream.finished.max(epoch);
        }
    }

    /// The host has waited for all that `clock` knows.
    pub fn host_waited(&mut self, clock: &Clock) {
        self.host.join(clock);
    }

    /// True where the host has waited for work `epoch` of a stream.
    pub fn host_knows(&self, id: StreamId, epoch: u64) -> bool {
        self.host.covers(id, epoch)
    }

    /// The work that waits, oldest first within a stream; work that runs is not among it.
    pub fn waiting(&self) -> impl Iterator<Item = &Work<W>> {
        self.streams.values().flat_map(|stream| &stream.waiting)
    }

    /// True where no work waits or runs.
    pub fn idle(&self) -> bool {
        self.streams.values().all(|stream| stream.finished == stream.queued)
    }

    /// True where the host has waited for everything: nothing that comes can be unordered with what was.
    pub fn quiet(&self) -> bool {
        self.idle() && self.streams.iter().all(|(&id, stream)| self.host.covers(id, stream.queued))
    }

    /// Where all is quiet: forgets closed streams, so that clocks don't grow with every stream there ever was.
    pub fn forget_closed(&mut self) {
        if !self.quiet() {
            return;
        }
        self.streams.retain(|_, stream| !stream.closed);
        let streams = &self.streams;
        self.host.retain(|id| streams.contains_key(&id));
        let known: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in self.streams.values_mut() {
            stream.clock.retain(|id| known.binary_search(&id).is_ok());
        }
    }
}
