//! Work that is captured once and then launched as one: a CUDA graph, and on Meta the account of its memory.
//!
//! A graph holds every launch with its arguments, and so every address: all buffers of captured work lie in a
//! [`Slab`](super::Slab) that lives as long. What changes from launch to launch is uploaded: an upload says by its [`Feed`] what it
//! brings, its bytes lie in pinned memory that the graph copies from, and [`Graph::feed`] writes them anew. What the host is to
//! read is copied to pinned memory by the graph, too ([`Kept`]).

use std::sync::Arc;

use super::accountant::Lending;
use super::arena::{Noted, Place, Slab};
use super::cuda::{Capture, CudaError, CudaGraph};
use super::{Buffer, Device, Element};
use crate::error::{Error, Result};

/// What an upload brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The same in each launch.
    Fixed,
    /// Token ids, u32.
    Tokens,
    /// Their targets, u32.
    Targets,
    /// Their segments of equal ones: see [`crate::ops::embedding::segments`].
    Segments,
    /// Rows by segment: as above.
    SegmentRows,
    /// The numbers of an optimizer's step: see [`crate::ops::adamw::factors`].
    Factors,
}

/// A result that a graph leaves for the host.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// By which the graph knows it; of no meaning on Meta.
    number: usize,
    bytes: usize,
}

/// Captured work.
pub struct Graph {
    device: Device,
    lending: Lending,
    /// Nothing on Meta.
    cuda: Option<CudaGraph>,
    // Last: the graph's memory outlives it.
    slab: Arc<Slab>,
}

impl Graph {
    /// Writes what the next launch is to read: `write` gets each upload that is not [`Feed::Fixed`], in the order of the work, as
    /// what it brings, in which part of the work (see [`Device::begin_part`]), and where to.
    ///
    /// # Errors
    /// Those of `write`, and the GPU's.
    pub fn feed<E: From<Error>>(
        &mut self,
        mut write: impl FnMut(Feed, usize, &mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Some(cuda) = &mut self.cuda else { return Ok(()) };
        cuda.wait().map_err(Error::from)?;
        cuda.feeds().try_for_each(|(feed, part, bytes)| write(feed, part, bytes))
    }

    /// Puts all of it into the device's stream. The host waits for nothing.
    ///
    /// # Errors
    /// The GPU's; or a buffer that lies in the graph's memory: nothing is launched then.
    pub fn launch(&mut self) -> Result<()> {
        if !self.slab.is_empty() {
            return Err(fault("its memory is in use").into());
        }
        self.device.memory().recall(&self.lending);
        self.cuda.as_mut().map_or(Ok(()), CudaGraph::launch)?;
        Ok(())
    }

    /// A result of the last launch, for which the host waits; zeros on Meta.
    ///
    /// # Errors
    /// The GPU's.
    pub fn result<T: Element>(&mut self, kept: Kept) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); kept.bytes / size_of::<T>()];
        if let Some(cuda) = &mut self.cuda {
            cuda.wait()?;
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(cuda.result(kept.number));
        }
        Ok(values)
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph on {} in a {:?}", self.device.name(), self.slab)
    }
}

fn fault(reason: &str) -> CudaError {
    CudaError::Graph { reason: reason.into() }
}

impl Device {
    /// Captures what `work` does instead of doing it. All buffers that it takes must go before it returns, and have room in
    /// `slab`, the device's last one, in which no other lies.
    ///
    /// # Errors
    /// Those of `work`; what cannot be captured; the GPU's.
    pub fn capture<T, E: From<Error>>(
        &self,
        slab: &Arc<Slab>,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Graph, T), E> {
        let refuse = |reason| Err(Error::from(fault(reason)).into());
        if !slab.is_empty() {
            return refuse("its memory is in use");
        }
        self.memory().watch_lending();
        self.arena().restrict(true);
        let capture = self.gpu().map(Capture::begin).transpose();
        let done = capture.map_err(|error| E::from(error.into())).and_then(|capture| {
            let made = work();
            // However the work ended, the capture ends.
            let cuda = capture.map(Capture::end).transpose();
            made.and_then(|made| Ok((cuda.map_err(Error::from)?, made)))
        });
        self.arena().restrict(false);
        let lending = self.memory().take_lending();
        let (cuda, made) = done?;
        if !slab.is_empty() {
            return refuse("buffers that it took are held");
        }
        Ok((Graph { device: self.clone(), lending, cuda, slab: slab.clone() }, made))
    }

    /// The work that is captured now goes on with its part `part`, such as a micro-batch.
    pub fn begin_part(&self, part: usize) {
        if let Some(gpu) = self.gpu() {
            gpu.begin_part(part);
        }
    }

    /// Where a buffer of `bytes` lies in the slab, if it does.
    pub(super) fn place(&self, bytes: usize) -> Result<Option<Place>> {
        if bytes == 0 {
            return Ok(None);
        }
        let arena = self.arena();
        match arena.place(bytes) {
            None if arena.is_restricted() => Err(fault("it takes more memory than the same work took before").into()),
            place => Ok(place),
        }
    }

    /// What a recording knows a buffer of `bytes` by.
    pub(super) fn note(&self, bytes: usize) -> Option<Noted> {
        if bytes == 0 { None } else { self.arena().note(bytes) }
    }
}

impl Buffer {
    /// Has work that is captured leave this buffer's contents, as they then are, for the host.
    ///
    /// # Errors
    /// The GPU's, and where nothing is captured.
    pub(crate) fn keep(&self) -> Result<Kept> {
        let bytes = self.size_bytes();
        match self.cuda() {
            Some((memory, first)) => Ok(Kept { number: memory.keep(first, bytes)?, bytes }),
            None => Ok(Kept { number: 0, bytes }),
        }
    }
}
