//! Capturing what is put into the GPU's stream, and launching it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::context::Event;
use super::error::{CudaError, CudaResult, check, failure};
use super::{Gpu, Pinned};
use crate::device::Feed;

/// Bytes of a piece of pinned memory, or of the one thing in it where that is larger.
const PIECE: usize = 1 << 18;

/// Uploads and results begin at multiples of so many bytes, so that elements of any type do.
const ALIGNMENT: usize = 64;

/// Pinned memory that grows.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Pinned>,
    /// Bytes of the last piece that are taken.
    taken: usize,
}

/// Where something lies in it.
#[derive(Clone)]
struct At {
    piece: usize,
    place: Range<usize>,
}

impl Pieces {
    fn take(&mut self, gpu: &Gpu, bytes: usize) -> CudaResult<At> {
        let start = self.taken.next_multiple_of(ALIGNMENT);
        let room = self.pieces.last().is_some_and(|piece| start + bytes <= piece.len());
        if !room {
            self.pieces.push(Pinned::new(&gpu.context, bytes.max(PIECE))?);
        }
        let start = if room { start } else { 0 };
        self.taken = start + bytes;
        Ok(At { piece: self.pieces.len() - 1, place: start..self.taken })
    }

    fn slice_mut(&mut self, at: &At) -> &mut [u8] {
        self.pieces[at.piece].slice_mut(at.place.clone())
    }
}

/// What a GPU knows of the capture that is under way.
#[derive(Default)]
pub(super) struct State {
    uploads: Pieces,
    feeds: Vec<(Feed, usize, At)>,
    results: Pieces,
    kept: Vec<At>,
    part: usize,
    /// Memory from before the capture that was given back meanwhile.
    freed: Vec<u64>,
}

impl Gpu {
    /// A number that is another one inside each capture, after it, and after each launch of a graph. Events tell nothing of what
    /// lies on the other side.
    pub(super) fn era(&self) -> u64 {
        self.era.load(Ordering::Relaxed)
    }

    fn next_era(&self) {
        self.era.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::device) fn begin_part(&self, part: usize) {
        if let Some(state) = &mut *self.capture.lock().expect("no panic while locked") {
            state.part = part;
        }
    }

    /// Fails where the host would wait for what is only captured.
    pub(super) fn refuse_to_wait(&self) -> CudaResult<()> {
        match self.capture.lock().expect("no panic while locked").is_some() {
            true => Err(CudaError::Graph { reason: "the host would read what is yet to be computed".into() }),
            false => Ok(()),
        }
    }

    /// An upload to `to`, if one is captured: false where none is.
    ///
    /// # Safety
    /// `to` is memory of the GPU of `from.len()` bytes that lives as long as the graph.
    pub(super) unsafe fn capture_upload(&self, feed: Feed, from: &[u8], to: u64) -> CudaResult<bool> {
        let mut capture = self.capture.lock().expect("no panic while locked");
        let Some(state) = &mut *capture else { return Ok(false) };
        let at = state.uploads.take(self, from.len())?;
        let pinned = state.uploads.slice_mut(&at);
        pinned.copy_from_slice(from);
        // SAFETY: the caller vouches for `to`; the graph owns the pinned memory, and writes it only when no launch is pending.
        let answer = unsafe { result::memcpy_htod_async(to, pinned, self.stream.raw()) };
        check("cuMemcpyHtoDAsync", answer)?;
        if feed != Feed::Fixed {
            state.feeds.push((feed, state.part, at));
        }
        Ok(true)
    }

    /// Has the graph copy `bytes` from `from` to where the host finds them; returns the number by which it does.
    ///
    /// # Safety
    /// `from` is memory of the GPU of so many bytes that lives as long as the graph.
    pub(super) unsafe fn capture_result(&self, from: u64, bytes: usize) -> CudaResult<usize> {
        let mut capture = self.capture.lock().expect("no panic while locked");
        let Some(state) = &mut *capture else {
            return Err(CudaError::Graph { reason: "a result is kept where nothing is captured".into() });
        };
        let at = state.results.take(self, bytes)?;
        if bytes > 0 {
            // SAFETY: the caller vouches for `from`; the host reads the place only when the launch is over.
            let answer = unsafe { result::memcpy_dtoh_async(state.results.slice_mut(&at), from, self.stream.raw()) };
            check("cuMemcpyDtoHAsync", answer)?;
        }
        state.kept.push(at);
        Ok(state.kept.len() - 1)
    }

    /// Memory from before the capture is given back when it is over. False where there is none.
    pub(super) fn defer_free(&self, address: u64) -> bool {
        let mut capture = self.capture.lock().expect("no panic while locked");
        capture.as_mut().map(|state| state.freed.push(address)).is_some()
    }
}

/// A capture under way.
pub(in crate::device) struct Capture(Arc<Gpu>);

impl Capture {
    /// From now on what is put into the stream is captured.
    pub fn begin(gpu: &Arc<Gpu>) -> CudaResult<Capture> {
        gpu.context.bind()?;
        // Relaxed: pinned memory is allocated meanwhile, which waits for nothing.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(gpu.stream.raw(), mode) })?;
        *gpu.capture.lock().expect("no panic while locked") = Some(State::default());
        gpu.next_era();
        Ok(Capture(gpu.clone()))
    }

    /// It is over, whatever came of it.
    pub fn end(self) -> CudaResult<CudaGraph> {
        let gpu = self.0;
        let state = gpu.capture.lock().expect("no panic while locked").take().unwrap_or_default();
        gpu.next_era();
        gpu.context.bind()?;
        // SAFETY: the stream is alive, and captures.
        let ended = unsafe { result::stream::end_capture(gpu.stream.raw()) };
        for address in &state.freed {
            // SAFETY: allocated by `Gpu::alloc`; its owner is gone, and gave it back here alone.
            unsafe { gpu.free(*address) };
        }
        let graph = ended.map_err(|e| failure("cuStreamEndCapture", e))?;
        // SAFETY: the graph was just captured; it is a copy that is instantiated.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec.map_err(|e| failure("cuGraphInstantiate", e))?
        };
        let State { uploads, feeds, results, kept, .. } = state;
        let done = Event::new(&gpu.context, false);
        let mut made = CudaGraph { exec, uploads, feeds, results, kept, done: None, pending: false, gpu };
        made.done = Some(done?);
        Ok(made)
    }
}

/// Captured work that can be launched.
pub(in crate::device) struct CudaGraph {
    exec: sys::CUgraphExec,
    uploads: Pieces,
    feeds: Vec<(Feed, usize, At)>,
    results: Pieces,
    kept: Vec<At>,
    /// The last launch is over.
    done: Option<Event>,
    /// A launch that no one has waited for.
    pending: bool,
    gpu: Arc<Gpu>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Each upload that changes: what it brings, in which part, and its bytes.
    ///
    /// Between [`CudaGraph::wait`] and [`CudaGraph::launch`] the host alone touches them.
    pub fn feeds(&mut self) -> impl Iterator<Item = (Feed, usize, &mut [u8])> {
        let CudaGraph { uploads, feeds, .. } = self;
        let mut pieces: Vec<Option<&mut [u8]>> =
            uploads.pieces.iter_mut().map(|piece| Some(piece.slice_mut(0..piece.len()))).collect();
        let (mut piece, mut begun) = (0, 0);
        // Feeds are in the order of the pieces, and in each of their places.
        feeds.iter().map(move |(feed, part, at)| {
            if at.piece != piece {
                (piece, begun) = (at.piece, 0);
            }
            let rest = pieces[piece].take().expect("each is put back");
            let (_, rest) = rest.split_at_mut(at.place.start - begun);
            let (bytes, rest) = rest.split_at_mut(at.place.len());
            pieces[piece] = Some(rest);
            begun = at.place.end;
            (*feed, *part, bytes)
        })
    }

    /// Puts the work into the stream.
    pub fn launch(&mut self) -> CudaResult<()> {
        self.gpu.context.bind()?;
        // SAFETY: the graph is alive, and so is all memory that it names: `Graph` holds the slab, this the rest. What it takes of
        // parameters and weights is the caller's, who drops it before they go.
        check("cuGraphLaunch", unsafe { result::graph::launch(self.exec, self.gpu.stream.raw()) })?;
        self.pending = true;
        self.gpu.next_era();
        self.done.as_ref().map_or(Ok(()), |done| done.record(&self.gpu.stream))
    }

    /// Waits until the last launch is over.
    pub fn wait(&mut self) -> CudaResult<()> {
        if std::mem::take(&mut self.pending) {
            self.done.as_ref().map_or(Ok(()), Event::synchronize)?;
        }
        Ok(())
    }

    /// What the last launch left, by its number.
    pub fn result(&self, number: usize) -> &[u8] {
        let at = &self.kept[number];
        self.results.pieces[at.piece].slice(at.place.clone())
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        let _ = self.wait();
        if self.gpu.context.bind().is_ok() {
            // SAFETY: made once by `Capture::end`.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
