//! The threshold of a matrix that comes in pieces, on any device.

use super::{by_type, cpu, cuda, domain, expect_entries, first_unusable, key_range, usable};
use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Result, expect_dtype, expect_len};
use crate::simd::Isa;

/// Words of a threshold: the key, the index before which entries at it go, how many of them go, and of how many.
pub(super) const WORDS: usize = 4;
/// Of these, the CPU uses two.
pub(super) const KEY: usize = 0;
pub(super) const TIES: usize = 2;
/// Bits of a digit: a histogram of 2,048 bins stays in the CPU's first-level cache and in a block's shared memory.
const DIGIT_BITS: u32 = 11;
/// Bins of a digit.
pub(super) const BINS: usize = 1 << DIGIT_BITS;
/// The least and the most a GPU's chunk may be: fewer entries than its share of the last digit's counts are worth, and as
/// many chunks as one block looks through.
const LEAST_CHUNK: usize = 16 * 1024;
const MOST_CHUNKS: usize = 4096;

/// A digit of the keys.
#[derive(Clone, Copy)]
pub(super) struct Digit {
    /// The bit above its highest.
    pub above: u32,
    /// Its lowest bit.
    pub shift: u32,
}

impl Digit {
    pub fn bins(self) -> usize {
        1 << (self.above - self.shift)
    }
}

/// Entries that a GPU counts the last digit of together.
pub(super) fn chunk(len: usize) -> usize {
    len.div_ceil(MOST_CHUNKS).next_multiple_of(4096).max(LEAST_CHUNK)
}

/// Finds the `k` entries of the smallest magnitudes of a matrix that is given in pieces, as often as there are rounds; then
/// masks the pieces. Everything it learns stays on the device.
///
/// ```
/// use kernels::ops::select::Threshold;
/// use kernels::{Category, DType, Device};
///
/// # fn main() -> kernels::Result<()> {
/// let device = Device::cpu();
/// let pieces = [[3.0f32, -1.0], [0.5, 1.0]].map(|piece| device.upload(Category::Weights, &piece).unwrap());
/// let mut threshold = Threshold::new(&device, DType::F32, 2)?;
/// for _ in 0..threshold.rounds() {
///     for piece in &pieces {
///         threshold.count(piece)?;
///     }
///     threshold.advance()?;
/// }
/// // Of the two magnitudes of 1 the first goes.
/// assert_eq!(threshold.mask(&pieces[0])?.as_slice::<u64>(), [0b01]);
/// assert_eq!(threshold.mask(&pieces[1])?.as_slice::<u64>(), [0b10]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Threshold {
    dtype: DType,
    remove: usize,
    /// Rounds that are done.
    round: usize,
    /// Entries before the first piece: none, but for tests of what follows on more than memory holds.
    before: usize,
    /// Entries that this round has counted, and those before.
    seen: usize,
    pieces: Vec<Piece>,
    /// The next piece, of those known from the first round.
    next: usize,
    /// u64 `[WORDS]`.
    state: Buffer,
    /// u64 `[BINS]`.
    bins: Buffer,
    unusable: Buffer,
}

#[derive(Debug)]
struct Piece {
    len: usize,
    /// On a GPU how often each last digit comes in each chunk: u32 `[chunks, bins]`.
    table: Option<Buffer>,
}

impl Threshold {
    /// A threshold below which `k` entries of type `dtype` lie.
    ///
    /// # Errors
    /// Entries that are not floats, or no memory.
    pub fn new(device: &Device, dtype: DType, k: usize) -> Result<Threshold> {
        expect_entries("threshold", dtype)?;
        Ok(Threshold {
            dtype,
            remove: k,
            round: 0,
            before: 0,
            seen: 0,
            pieces: Vec::new(),
            next: 0,
            state: device.upload(Category::Workspace, &[0, 0, k as u64, 0])?,
            bins: device.zeros(Category::Workspace, DType::U64, BINS)?,
            unusable: usable(device)?,
        })
    }

    /// As if so many zeros had come before the first piece, and all of them were to go: for tests whose pieces begin where no
    /// memory reaches.
    ///
    /// # Errors
    /// The GPU's.
    #[doc(hidden)]
    pub fn after_zeros(&mut self, zeros: usize) -> Result<()> {
        (self.before, self.seen) = (zeros, zeros);
        // Once the first digit is known not to be theirs they are not counted again.
        let mut bins = vec![0u64; BINS];
        bins[0] = zeros as u64;
        self.bins.write(bytemuck::cast_slice(&bins))
    }

    /// How often all pieces must be counted.
    pub fn rounds(&self) -> usize {
        key_range(self.dtype).0.div_ceil(DIGIT_BITS) as usize
    }

    fn digit(&self, round: usize) -> Digit {
        let above = key_range(self.dtype).0 - round as u32 * DIGIT_BITS;
        Digit { above, shift: above.saturating_sub(DIGIT_BITS) }
    }

    /// Counts the next piece: in every round the same pieces in the same order.
    ///
    /// # Errors
    /// Another element type, another piece than in the first round, all rounds done, or no memory.
    pub fn count(&mut self, piece: &Buffer) -> Result<()> {
        const OP: &str = "select_count";
        if self.round == self.rounds() {
            return domain(OP, format!("{} rounds are all there are", self.round));
        }
        if self.round == 0 {
            expect_dtype(OP, "piece", piece.dtype(), self.dtype)?;
            self.pieces.push(Piece { len: piece.len(), table: None });
            self.next += 1;
        } else {
            self.expect_next(OP, piece)?;
        }
        let (device, digit, len, start) = (piece.device(), self.digit(self.round), piece.len(), self.seen);
        self.seen += len;
        let known = &mut self.pieces[self.next - 1];
        if digit.shift == 0 && device.backend() == Backend::Cuda {
            let counts = len.div_ceil(chunk(len)) * digit.bins();
            known.table = Some(device.alloc(Category::Workspace, DType::U32, counts)?);
        }
        let cost = Cost::new(OP, 0, piece.size_bytes(), known.table.as_ref().map_or(0, Buffer::size_bytes));
        let unusable = (self.round == 0).then_some(&mut self.unusable);
        if device.gpu().is_some() {
            let piece = cuda::Piece { entries: piece, start };
            let table = known.table.as_mut();
            return device
                .launch(cost, |gpu| cuda::count(gpu, piece, digit, &self.state, &mut self.bins, table, unusable));
        }
        device.run(cost, || {
            let (state, bins) = (self.state.as_slice::<u64>(), self.bins.as_mut_slice());
            by_type!(piece, |entries| {
                if let Some(unusable) = unusable {
                    cpu::check(Isa::best(), entries, start, unusable.as_mut_slice());
                }
                cpu::count(entries, digit, state[KEY] as u32, bins);
            });
        });
        Ok(())
    }

    /// Ends a round.
    ///
    /// # Errors
    /// Fewer pieces than in the first round, fewer entries than are to go, or the GPU's.
    pub fn advance(&mut self) -> Result<()> {
        const OP: &str = "select_digit";
        if self.next < self.pieces.len() || self.round == self.rounds() {
            return domain(OP, format!("{} of {} pieces are counted", self.next, self.pieces.len()));
        }
        if self.remove > self.seen {
            return domain("keep_largest", format!("{} of {} entries cannot be removed", self.remove, self.seen));
        }
        let (device, digit) = (self.bins.device().clone(), self.digit(self.round));
        let cost = Cost::new(OP, 0, self.bins.size_bytes(), self.bins.size_bytes());
        (self.round, self.seen, self.next) = (self.round + 1, self.before, 0);
        if device.gpu().is_some() {
            return device.launch(cost, |gpu| cuda::choose(gpu, digit, &mut self.bins, &mut self.state));
        }
        device.run(cost, || cpu::choose(digit, self.bins.as_mut_slice(), self.state.as_mut_slice()));
        Ok(())
    }

    /// The mask of the next piece, a flat bitmap of its own: the same pieces in the same order once more.
    ///
    /// # Errors
    /// Another piece than in the first round, rounds that are missing, or no memory.
    pub fn mask(&mut self, piece: &Buffer) -> Result<Buffer> {
        const OP: &str = "select_mask";
        if self.round < self.rounds() {
            return domain(OP, format!("{} of {} rounds are done", self.round, self.rounds()));
        }
        self.expect_next(OP, piece)?;
        let (device, len) = (piece.device(), piece.len());
        let mut mask = device.alloc(Category::Masks, DType::U64, len.div_ceil(64))?;
        let table = self.pieces[self.next - 1].table.take();
        let cost = Cost::new(OP, 0, piece.size_bytes(), mask.size_bytes());
        if let (Some(_), Some(table)) = (device.gpu(), table) {
            let last = self.digit(self.round - 1);
            device.launch(cost, |gpu| cuda::mask(gpu, piece, last, &table, &mut self.state, &mut mask))?;
            return Ok(mask);
        }
        device.run(cost, || {
            let state = self.state.as_mut_slice();
            by_type!(piece, |entries| cpu::mask(Isa::best(), entries, state, mask.as_mut_slice()));
        });
        Ok(mask)
    }

    /// The first entry of all pieces that is an infinity or not a number, for which there is no right mask. None on Meta.
    /// The host waits for the first round.
    ///
    /// # Errors
    /// The GPU's.
    pub fn first_unusable(&self) -> Result<Option<usize>> {
        first_unusable(&self.unusable)
    }

    pub(super) fn into_unusable(self) -> Buffer {
        self.unusable
    }

    fn expect_next(&mut self, op: &'static str, piece: &Buffer) -> Result<()> {
        expect_dtype(op, "piece", piece.dtype(), self.dtype)?;
        let Some(known) = self.pieces.get(self.next) else {
            return domain(op, format!("{} pieces are all there are", self.pieces.len()));
        };
        expect_len(op, "piece", piece.len(), known.len)?;
        self.next += 1;
        Ok(())
    }
}
