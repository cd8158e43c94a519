//! Copies between host and GPU through pinned memory.
//!
//! A copy from pageable memory makes the driver stop the program; one from pinned memory runs by itself. Two pinned pieces
//! take turns: while the GPU copies one, the host fills or empties the other, so that a copy of any length costs the slower
//! of both and no memory to speak of.
//!
//! Small copies lie side by side in a piece. A training step uploads some tables of a few kilobytes, each behind all the
//! kernels before it: if each took a turn, the third would wait until the GPU has come to the first.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::result;

use super::context::{Context, Event, Stream};
use super::error::{CudaResult, check};
use super::pinned::Pinned;

/// Bytes of a piece: at 25 GB/s, a sixth of a millisecond, against some 10 µs to start a copy.
const PIECE: usize = 4 << 20;

/// Copies start at multiples of so many bytes: a sector, and a line of the host's cache.
const ALIGNMENT: usize = 64;

pub(super) struct Staging {
    pieces: [Piece; 2],
    places: Places,
}

struct Piece {
    memory: Pinned,
    /// The GPU's last copy from or to it.
    copied: Event,
}

/// Which bytes of the pieces are given to copies.
struct Places {
    /// The piece whose turn it is.
    turn: usize,
    /// Bytes of it that copies have.
    taken: usize,
}

impl Places {
    /// A piece and where `bytes` of it are free, at most [`PIECE`]; whether its turn begins, so that what copies had of it
    /// before must be over.
    fn take(&mut self, bytes: usize) -> (usize, Range<usize>, bool) {
        let start = self.taken.next_multiple_of(ALIGNMENT);
        let turns = start + bytes > PIECE;
        let start = if turns { 0 } else { start };
        if turns {
            self.turn = 1 - self.turn;
        }
        self.taken = start + bytes;
        (self.turn, start..self.taken, turns)
    }
}

impl Staging {
    pub fn new(context: &Arc<Context>) -> CudaResult<Staging> {
        let piece = || Ok(Piece { memory: Pinned::new(context, PIECE)?, copied: Event::new(context, false)? });
        Ok(Staging { pieces: [piece()?, piece()?], places: Places { turn: 0, taken: 0 } })
    }

    /// The number of a piece, and `bytes` of it that no copy uses.
    fn take(&mut self, bytes: usize) -> CudaResult<(usize, Range<usize>)> {
        let (at, place, turns) = self.places.take(bytes);
        // Most often all copies of its last turn are over: asking makes no one wait.
        if turns && !self.pieces[at].copied.has_come()? {
            self.pieces[at].copied.synchronize()?;
        }
        Ok((at, place))
    }

    /// Copies `from` to address `to` in `stream`'s order. `from` may be changed when this returns.
    ///
    /// # Safety
    /// `to` is memory of the GPU of `from.len()` bytes that lives until the stream gets there.
    pub unsafe fn upload(&mut self, stream: &Stream, from: &[u8], mut to: u64) -> CudaResult<()> {
        for from in from.chunks(PIECE) {
            let (at, place) = self.take(from.len())?;
            let piece = &mut self.pieces[at];
            let pinned = piece.memory.slice_mut(place);
            pinned.copy_from_slice(from);
            // SAFETY: the caller vouches for `to`; nothing touches the place before `copied` has come.
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
        let mut from = from;
        let mut pending: Option<(usize, Range<usize>, &mut [u8])> = None;
        for to in to.chunks_mut(PIECE) {
            let (at, place) = self.take(to.len())?;
            let piece = &mut self.pieces[at];
            let pinned = piece.memory.slice_mut(place.clone());
            // SAFETY: the caller vouches for `from`; the place is read only after `copied` has come.
            let answer = unsafe { result::memcpy_dtoh_async(pinned, from, stream.raw()) };
            check("cuMemcpyDtoHAsync", answer)?;
            piece.copied.record(stream)?;
            from += to.len() as u64;
            if let Some((at, place, to)) = pending.replace((at, place, to)) {
                self.empty(at, place, to)?;
            }
        }
        pending.map_or(Ok(()), |(at, place, to)| self.empty(at, place, to))
    }

    fn empty(&self, at: usize, place: Range<usize>, to: &mut [u8]) -> CudaResult<()> {
        self.pieces[at].copied.synchronize()?;
        to.copy_from_slice(self.pieces[at].memory.slice(place));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_copies_lie_side_by_side_and_pieces_take_turns_when_one_is_full() {
        let mut places = Places { turn: 0, taken: 0 };
        assert_eq!(places.take(100), (0, 0..100, false));
        assert_eq!(places.take(1), (0, 128..129, false));
        assert_eq!(places.take(0), (0, 192..192, false));
        assert_eq!(places.take(PIECE - 192), (0, 192..PIECE, false));
        assert_eq!(places.take(1), (1, 0..1, true));
        assert_eq!(places.take(PIECE), (0, 0..PIECE, true));
        assert_eq!(places.take(PIECE), (1, 0..PIECE, true));
        // A thousand tables of a step do not make the host wait once.
        let mut places = Places { turn: 0, taken: 0 };
        assert!((0..1000).all(|_| !places.take(4096).2));
    }
}
