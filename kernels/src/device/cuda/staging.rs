//! Copies between host and GPU through pinned memory.
//!
//! A copy from pageable memory makes the driver stop the program; one from pinned memory runs by itself. Two pinned pieces
//! take turns: while the GPU copies one, the host fills or empties the other, so that a copy of any length costs the slower
//! of both and no memory to speak of.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::result;

use super::context::{Context, Event, Stream};
use super::error::{CudaResult, check, failure};

/// Bytes of a piece: at 25 GB/s, a sixth of a millisecond, against some 10 µs to start a copy.
const PIECE: usize = 4 << 20;

pub(super) struct Staging {
    pieces: [Piece; 2],
    /// The piece whose turn it is.
    turn: usize,
}

struct Piece {
    memory: Pinned,
    /// The GPU's last copy from or to it.
    copied: Event,
}

impl Staging {
    pub fn new(context: &Arc<Context>) -> CudaResult<Staging> {
        let piece = || Ok(Piece { memory: Pinned::new(context)?, copied: Event::new(context, false)? });
        Ok(Staging { pieces: [piece()?, piece()?], turn: 0 })
    }

    fn next(&mut self) -> usize {
        self.turn = 1 - self.turn;
        self.turn
    }

    /// Copies `from` to address `to` in `stream`'s order. `from` may be changed when this returns.
    ///
    /// # Safety
    /// `to` is memory of the GPU of `from.len()` bytes that lives until the stream gets there.
    pub unsafe fn upload(&mut self, stream: &Stream, from: &[u8], mut to: u64) -> CudaResult<()> {
        for from in from.chunks(PIECE) {
            let at = self.next();
            let piece = &mut self.pieces[at];
            piece.copied.synchronize()?;
            let pinned = &mut piece.memory.as_mut_slice()[..from.len()];
            pinned.copy_from_slice(from);
            // SAFETY: the caller vouches for `to`; nothing touches the piece before `copied` has come.
            let answer = unsafe { result::memcpy_htod_async(to, pinned, stream.raw()) };
            check("cuMemcpyHtoDAsync", answer)?;
            piece.copied.record(stream)?;
            to += from.len() as u64;
        }
        Ok(())
    }

    /// Copies address `from` to `to`, after all work that `stream` has.
    ///
    /// # Safety
    /// `from` is memory of the GPU of `to.len()` bytes.
    pub unsafe fn download(&mut self, stream: &Stream, from: u64, to: &mut [u8]) -> CudaResult<()> {
        let mut pending: Option<(usize, Range<usize>)> = None;
        for start in (0..to.len()).step_by(PIECE) {
            let range = start..to.len().min(start + PIECE);
            let at = self.next();
            let piece = &mut self.pieces[at];
            piece.copied.synchronize()?;
            let pinned = &mut piece.memory.as_mut_slice()[..range.len()];
            // SAFETY: the caller vouches for `from`; the piece is read only after `copied` has come.
            let answer = unsafe { result::memcpy_dtoh_async(pinned, from + start as u64, stream.raw()) };
            check("cuMemcpyDtoHAsync", answer)?;
            piece.copied.record(stream)?;
            if let Some((at, range)) = pending.replace((at, range)) {
                self.empty(at, &mut to[range])?;
            }
        }
        pending.map_or(Ok(()), |(at, range)| self.empty(at, &mut to[range]))
    }

    fn empty(&self, at: usize, to: &mut [u8]) -> CudaResult<()> {
        self.pieces[at].copied.synchronize()?;
        to.copy_from_slice(&self.pieces[at].memory.as_slice()[..to.len()]);
        Ok(())
    }
}

/// Host memory that the GPU can reach by itself.
struct Pinned {
    context: Arc<Context>,
    ptr: NonNull<u8>,
}

// SAFETY: it owns its memory.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(context: &Arc<Context>) -> CudaResult<Pinned> {
        context.bind()?;
        // SAFETY: a context is bound.
        let ptr = unsafe { result::malloc_host(PIECE, 0) }.map_err(|e| failure("cuMemHostAlloc", e))?;
        let ptr = NonNull::new(ptr.cast::<u8>()).expect("the driver says that it allocated");
        // SAFETY: the memory was just allocated with this size.
        unsafe { ptr.write_bytes(0, PIECE) };
        Ok(Pinned { context: context.clone(), ptr })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` owns PIECE initialised bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), PIECE) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the host's only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), PIECE) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once; the driver waits for copies that use it.
            let _ = unsafe { result::free_host(self.ptr.as_ptr().cast::<c_void>()) };
        }
    }
}
