//! Streams that note down what they are asked to do, as a graph, instead of doing it; and the one door through which
//! work reaches a stream either way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::ThreadId;

use super::abi::Handle;
use super::core::{Clock, Kind, StreamId};
use super::exports::stream_named;
use super::graph::{Node, Task};
use super::job::{Action, Job};
use super::session::Session;
use super::state::Recorded;
use super::status::{Result, Status};

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`: no thread may make unsafe calls while this capture is under way.
pub const MODE_GLOBAL: i32 = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: every thread may. Between the two, 1, `THREAD_LOCAL`: all but this one may.
pub const MODE_RELAXED: i32 = 2;

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    /// Its context.
    pub context: Handle,
    /// The graph that grows.
    pub graph: Handle,
    /// The stream that it began in.
    pub origin: StreamId,
    /// `CUstreamCaptureMode`.
    pub mode: i32,
    /// The thread that began it.
    pub thread: ThreadId,
    /// It met something that can't be captured.
    pub invalid: bool,
    /// The streams that take part, each with the nodes that its next node comes after.
    pub streams: BTreeMap<StreamId, Vec<Handle>>,
}

thread_local! {
    /// What `cuThreadExchangeStreamCaptureMode` set.
    pub static THREAD_MODE: std::cell::Cell<i32> = const { std::cell::Cell::new(MODE_GLOBAL) };
}

impl Session {
    /// The capture that a stream takes part in.
    pub fn capture_of(&self, id: StreamId) -> Option<u64> {
        self.captures.iter().find(|(_, capture)| capture.streams.contains_key(&id)).map(|(&number, _)| number)
    }

    /// Marks captures as failed: those that `which` names.
    fn invalidate(&mut self, which: impl Fn(&Capture) -> bool) -> bool {
        let mut any = false;
        for capture in self.captures.values_mut().filter(|capture| which(capture)) {
            capture.invalid = true;
            any = true;
        }
        any
    }

    /// Refuses a call that must not be made while a stream captures, such as an allocation that may synchronise.
    ///
    /// # Errors
    /// `STREAM_CAPTURE_UNSUPPORTED`; the captures concerned are lost.
    pub fn refuse_while_capturing(&mut self) -> Result {
        let thread = std::thread::current().id();
        if THREAD_MODE.get() == MODE_RELAXED {
            return Ok(());
        }
        let strict = THREAD_MODE.get() == MODE_GLOBAL;
        let hit = self.invalidate(|capture| {
            (strict && capture.mode == MODE_GLOBAL) || (capture.mode != MODE_RELAXED && capture.thread == thread)
        });
        if hit { Err(Status::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses to wait for a stream that captures: it will never run what it notes down.
    ///
    /// # Errors
    /// `STREAM_CAPTURE_UNSUPPORTED`, or `STREAM_CAPTURE_IMPLICIT` where the legacy default stream would wait for it.
    pub fn refuse_wait(&mut self, id: StreamId) -> Result {
        if self.capture_of(id).is_some() {
            self.invalidate(|capture| capture.streams.contains_key(&id));
            return Err(Status::STREAM_CAPTURE_UNSUPPORTED);
        }
        self.refuse_implicit(id)
    }

    /// Refuses what would make the legacy default stream wait for a blocking stream that captures.
    ///
    /// # Errors
    /// `STREAM_CAPTURE_IMPLICIT`.
    pub fn refuse_implicit(&mut self, id: StreamId) -> Result {
        let Some((&context, _)) = self.contexts.iter().find(|(_, context)| context.legacy == id) else { return Ok(()) };
        let blocking: HashSet<StreamId> = self
            .streams
            .values()
            .filter(|stream| stream.context == context && stream.flags & 1 == 0)
            .map(|stream| stream.id)
            .chain(self.contexts[&context].per_thread.values().copied())
            .collect();
        let hit = self.invalidate(|capture| capture.streams.keys().any(|stream| blocking.contains(stream)));
        if hit { Err(Status::STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
    }

    /// Hands work to a stream: queued, with its clock, or noted down where the stream captures.
    ///
    /// # Errors
    /// What is wrong with the stream, or with the capture that it takes part in.
    pub fn submit(&mut self, stream: Handle, what: &str, action: Action) -> Result<Option<Clock>> {
        let (id, context) = self.stream(stream)?;
        if let Some(capture) = self.capture_of(id) {
            self.note(capture, id, Task::Work { what: what.into(), action })?;
            return Ok(None);
        }
        self.refuse_implicit(id)?;
        self.enqueue(id, Job { context, stream: stream_named(stream), what: what.into(), action }).map(Some)
    }

    /// Adds a node to a capture, after all that its stream has done so far.
    ///
    /// # Errors
    /// `STREAM_CAPTURE_INVALIDATED` where the capture is lost.
    pub fn note(&mut self, number: u64, id: StreamId, task: Task) -> Result<Handle> {
        let capture = &self.captures[&number];
        if capture.invalid {
            return Err(Status::STREAM_CAPTURE_INVALIDATED);
        }
        let (graph, after) = (capture.graph, capture.streams.get(&id).cloned().unwrap_or_default());
        let node = self.add_node(graph, Node { task, after })?;
        if let Some(capture) = self.captures.get_mut(&number) {
            capture.streams.insert(id, vec![node]);
        }
        Ok(node)
    }

    /// Records an event in a stream that does not capture; gives its clock.
    ///
    /// # Errors
    /// `INVALID_HANDLE` for an unknown event.
    pub fn record_event(&mut self, event: Handle, id: StreamId, context: Handle, stream: Handle) -> Result<Clock> {
        self.event(event)?;
        let time = Arc::new(AtomicU64::new(0));
        let (stream, what) = (stream_named(stream), "event record".into());
        let job = Job { context, stream, what, action: Action::Record(time.clone()) };
        let clock = self.enqueue(id, job)?;
        self.event(event)?.recorded = Some(Recorded::Stream { clock: clock.clone(), time });
        Ok(clock)
    }

    /// Makes a stream that does not capture wait for an event that was recorded in a stream.
    ///
    /// # Errors
    /// `INVALID_HANDLE` for an unknown event; `STREAM_CAPTURE_ISOLATION` for one of a capture that is over.
    pub fn wait_event(&mut self, event: Handle, id: StreamId) -> Result {
        match self.event(event)?.recorded.clone() {
            Some(Recorded::Stream { clock, .. }) => self.schedule.wait(id, &clock),
            Some(Recorded::Capture { .. }) => return Err(Status::STREAM_CAPTURE_ISOLATION),
            None => {}
        }
        Ok(())
    }

    /// `cuEventRecord`, captured or not.
    ///
    /// # Errors
    /// What is wrong with the stream, the event, or the capture.
    pub fn record_or_note(&mut self, event: Handle, stream: Handle) -> Result {
        let (id, context) = self.stream(stream)?;
        if let Some(capture) = self.capture_of(id) {
            if self.captures[&capture].invalid {
                return Err(Status::STREAM_CAPTURE_INVALIDATED);
            }
            let nodes = self.captures[&capture].streams[&id].clone();
            self.event(event)?.recorded = Some(Recorded::Capture { capture, nodes });
            return Ok(());
        }
        self.refuse_implicit(id)?;
        self.record_event(event, id, context, stream).map(|_| ())
    }

    /// `cuStreamWaitEvent`, captured or not: waiting for a captured event draws a stream into the capture.
    ///
    /// # Errors
    /// What is wrong with the stream, the event, or the capture.
    pub fn wait_or_note(&mut self, stream: Handle, event: Handle) -> Result {
        let (id, _) = self.stream(stream)?;
        let recorded = self.event(event)?.recorded.clone();
        match (self.capture_of(id), recorded) {
            (None, Some(Recorded::Capture { capture, nodes })) => {
                if self.contexts.values().any(|context| context.legacy == id) {
                    self.invalidate_one(capture);
                    return Err(Status::STREAM_CAPTURE_IMPLICIT);
                }
                match self.captures.get_mut(&capture) {
                    Some(capture) if capture.invalid => Err(Status::STREAM_CAPTURE_INVALIDATED),
                    Some(capture) => {
                        capture.streams.insert(id, nodes);
                        Ok(())
                    }
                    None => Err(Status::CAPTURED_EVENT),
                }
            }
            (None, _) => self.wait_event(event, id),
            (Some(capture), Some(Recorded::Capture { capture: other, nodes })) if capture == other => {
                let capture = self.captures.get_mut(&capture).ok_or(Status::INVALID_HANDLE)?;
                let frontier = capture.streams.entry(id).or_default();
                for node in nodes {
                    if !frontier.contains(&node) {
                        frontier.push(node);
                    }
                }
                Ok(())
            }
            (Some(capture), Some(Recorded::Capture { .. })) => {
                self.invalidate_one(capture);
                Err(Status::STREAM_CAPTURE_MERGE)
            }
            (Some(capture), Some(Recorded::Stream { .. })) => {
                self.invalidate_one(capture);
                Err(Status::STREAM_CAPTURE_ISOLATION)
            }
            (Some(_), None) => Ok(()),
        }
    }

    fn invalidate_one(&mut self, number: u64) {
        if let Some(capture) = self.captures.get_mut(&number) {
            capture.invalid = true;
        }
    }

    /// `cuStreamBeginCapture`.
    ///
    /// # Errors
    /// `STREAM_CAPTURE_UNSUPPORTED` for the legacy default stream; `ILLEGAL_STATE` for a stream that captures already.
    pub fn begin_capture(&mut self, stream: Handle, mode: i32) -> Result {
        if !(MODE_GLOBAL..=MODE_RELAXED).contains(&mode) {
            return Err(Status::INVALID_VALUE);
        }
        let (id, context) = self.stream(stream)?;
        if self.contexts[&context].legacy == id {
            return Err(Status::STREAM_CAPTURE_UNSUPPORTED);
        }
        if self.capture_of(id).is_some() {
            return Err(Status::ILLEGAL_STATE);
        }
        let (number, graph) = (self.capture_id(), self.handle());
        self.graphs.insert(graph, Default::default());
        let thread = std::thread::current().id();
        let streams = BTreeMap::from([(id, Vec::new())]);
        let capture = Capture { context, graph, origin: id, mode, thread, invalid: false, streams };
        self.captures.insert(number, capture);
        Ok(())
    }

    /// `cuStreamEndCapture`: gives the graph.
    ///
    /// # Errors
    /// What went wrong during the capture, or with its end.
    pub fn end_capture(&mut self, stream: Handle) -> Result<Handle> {
        let (id, _) = self.stream(stream)?;
        let number = self.capture_of(id).ok_or(Status::ILLEGAL_STATE)?;
        let capture = &self.captures[&number];
        if capture.mode != MODE_RELAXED && capture.thread != std::thread::current().id() {
            return Err(Status::STREAM_CAPTURE_WRONG_THREAD);
        }
        if capture.origin != id {
            self.invalidate_one(number);
            return Err(Status::STREAM_CAPTURE_UNMATCHED);
        }
        let Some(capture) = self.captures.remove(&number) else { return Err(Status::ILLEGAL_STATE) };
        let joined: HashSet<Handle> = capture.streams[&id].iter().copied().collect();
        let leaves = self.graphs.get(&capture.graph).map(|graph| graph.leaves()).unwrap_or_default();
        let failure = if capture.invalid {
            Some(Status::STREAM_CAPTURE_INVALIDATED)
        } else if !leaves.is_subset(&joined) {
            Some(Status::STREAM_CAPTURE_UNJOINED)
        } else {
            None
        };
        match failure {
            Some(status) => {
                self.destroy_graph(capture.graph);
                Err(status)
            }
            None => Ok(capture.graph),
        }
    }

    /// Removes a graph, its nodes, and the memory that they own.
    pub fn destroy_graph(&mut self, handle: Handle) {
        let Some(graph) = self.graphs.remove(&handle) else { return };
        for life in graph.owned() {
            self.release(life.device, life.address, life.allocation);
        }
        self.nodes.retain(|_, graph| *graph != handle);
    }

    /// The kind of a stream made with these flags.
    pub fn kind_of(flags: u32) -> Kind {
        if flags & 1 == 0 { Kind::Blocking } else { Kind::NonBlocking }
    }
}
