//! The GPU's selection: launches for 16-bit and for 32-bit entries.

use super::key_range;
use super::threshold::{Digit, chunk};
use crate::device::{Buffer, Gpu, Source};
use crate::error::Result;

static KERNELS: Source = Source { name: "select", ptx: include_str!("../../../ptx/select.ptx") };

/// As in select.cu: threads of a block, and of the kernels of one block.
const THREADS: usize = 256;
const MAX_THREADS: usize = 1024;
/// Entries that a block masks.
const MASKED: usize = THREADS / 32 * 256 * 4;
/// Bytes of a row that is copied to shared memory, at most: the row and counts of 8 KiB leave room for another block where an SM
/// has 128 KiB.
const COPIED: usize = 48 * 1024;
/// Blocks of the histogram that an SM holds: 48 registers a thread.
const BLOCKS_PER_SM: usize = 5;

/// The kernel's name for entries of this width.
macro_rules! by_width {
    ($entries:expr, $name:literal) => {
        if $entries.dtype().size() == 2 { concat!($name, "_16") } else { concat!($name, "_32") }
    };
}

/// The kernels' digit: where it ends and where it begins.
fn bits(digit: Digit) -> [u32; 2] {
    [digit.above, digit.shift]
}

/// One piece of a matrix.
pub(super) struct Piece<'a> {
    pub entries: &'a Buffer,
    /// Entries before it.
    pub start: usize,
}

/// Counts a digit of a piece, and by chunks of it the last one.
pub(super) fn count(
    gpu: &Gpu,
    piece: Piece<'_>,
    digit: Digit,
    state: &Buffer,
    bins: &mut Buffer,
    table: Option<&mut Buffer>,
    unusable: Option<&mut Buffer>,
) -> Result<()> {
    let len = piece.entries.len();
    if len == 0 {
        return Ok(());
    }
    let blocks = len.div_ceil(chunk(len)).min(gpu.multiprocessors() * BLOCKS_PER_SM);
    let launch = gpu
        .launch(&KERNELS, by_width!(piece.entries, "select_histogram"))?
        .grid([blocks, 1, 1])
        .block([THREADS, 1, 1])
        .read(piece.entries)
        .value(len as u64)
        .value(chunk(len) as u64)
        .value(bits(digit))
        .read(state)
        .write(bins)
        .write_or_null(table)
        .value(key_range(piece.entries.dtype()).1)
        .value(piece.start as u64)
        .write_or_null(unusable);
    // SAFETY: `threshold.rs` makes bins for every digit, and the table for each chunk of a piece of this length.
    Ok(unsafe { launch.run() }?)
}

/// Ends a round.
pub(super) fn choose(gpu: &Gpu, digit: Digit, bins: &mut Buffer, state: &mut Buffer) -> Result<()> {
    let launch =
        gpu.launch(&KERNELS, "select_digit")?.block([MAX_THREADS, 1, 1]).write(bins).value(bits(digit)).write(state);
    // SAFETY: there are bins for every digit, and the state is a threshold.
    Ok(unsafe { launch.run() }?)
}

/// Finds the index that separates the ties of a piece, and masks it.
pub(super) fn mask(
    gpu: &Gpu,
    entries: &Buffer,
    last: Digit,
    table: &Buffer,
    state: &mut Buffer,
    mask: &mut Buffer,
) -> Result<()> {
    let len = entries.len();
    if len == 0 {
        return Ok(());
    }
    let launch = gpu
        .launch(&KERNELS, by_width!(entries, "select_cut"))?
        .block([MAX_THREADS, 1, 1])
        .read(entries)
        .value(len as u64)
        .value(chunk(len) as u64)
        .read(table)
        .dimension("bins", last.bins())
        .write(state);
    // SAFETY: the table was made for a piece of this length, and filled by the last round.
    unsafe { launch.run() }?;
    mark(gpu, Matrix { entries, rows: 1, cols: len }, state, mask)
}

/// Rows of entries.
pub(super) struct Matrix<'a> {
    pub entries: &'a Buffer,
    pub rows: usize,
    pub cols: usize,
}

pub(super) fn keep_largest_of_rows(
    gpu: &Gpu,
    matrix: Matrix<'_>,
    k: usize,
    thresholds: &mut Buffer,
    mask: &mut Buffer,
    unusable: &mut Buffer,
) -> Result<()> {
    let Matrix { entries, rows, cols } = matrix;
    if entries.is_empty() {
        return Ok(());
    }
    // From the 16 bytes in which a row begins to those in which it ends.
    let row_bytes = (cols * entries.dtype().size()).next_multiple_of(16) + 16;
    let copied = row_bytes <= COPIED;
    let launch = gpu
        .launch(&KERNELS, by_width!(entries, "select_rows"))?
        .grid([rows, 1, 1])
        .block([THREADS, 1, 1])
        .shared(if copied { row_bytes } else { 0 })
        .read(entries)
        .value(rows as u64)
        .value(cols as u64)
        .value(k as u64)
        .value(key_range(entries.dtype()).1)
        .value(i32::from(copied))
        .write(thresholds)
        .write(unusable);
    // SAFETY: `mod.rs` checks that there are rows × cols entries, and makes a threshold for each row.
    unsafe { launch.run() }?;
    mark(gpu, matrix, thresholds, mask)
}

/// The mask of rows, each with its threshold.
fn mark(gpu: &Gpu, matrix: Matrix<'_>, thresholds: &Buffer, mask: &mut Buffer) -> Result<()> {
    let Matrix { entries, cols, .. } = matrix;
    let launch = gpu
        .launch(&KERNELS, by_width!(entries, "select_mark"))?
        .grid([entries.len().div_ceil(MASKED), 1, 1])
        .block([THREADS, 1, 1])
        .read(entries)
        .value(entries.len() as u64)
        .value(cols as u64)
        .read(thresholds)
        .write(mask);
    // SAFETY: the mask has a bit for each entry and is whole words; each row has a threshold.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn keep_n_of_m(
    gpu: &Gpu,
    entries: &Buffer,
    n: usize,
    m: usize,
    mask: &mut Buffer,
    unusable: &mut Buffer,
) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let largest = key_range(entries.dtype()).1;
    let in_registers = match (m, entries.dtype().size()) {
        (4, 2) => Some("select_n_of_4_16"),
        (8, 2) => Some("select_n_of_8_16"),
        (4, _) => Some("select_n_of_4_32"),
        _ => None,
    };
    let launch = match in_registers {
        Some(kernel) => gpu
            .launch(&KERNELS, kernel)?
            .grid([entries.len().div_ceil(MASKED), 1, 1])
            .block([THREADS, 1, 1])
            .read(entries)
            .value(entries.len() as u64)
            .dimension("kept entries", n),
        None => gpu
            .launch(&KERNELS, by_width!(entries, "select_n_of_any"))?
            .grid([entries.len().div_ceil(THREADS * m), 1, 1])
            .block([THREADS, 1, 1])
            .read(entries)
            .value(entries.len() as u64)
            .dimension("kept entries", n)
            .dimension("entries of a group", m),
    };
    let launch = launch.value(largest).write(mask).write(unusable);
    // SAFETY: `mod.rs` checks that the entries are whole groups; the mask has a bit for each and is whole words.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn count_kept(gpu: &Gpu, mask: &Buffer, kept: &mut Buffer) -> Result<()> {
    if mask.is_empty() {
        return Ok(());
    }
    let blocks = mask.len().div_ceil(2 * THREADS).min(gpu.multiprocessors() * 8);
    let launch = gpu
        .launch(&KERNELS, "select_count")?
        .grid([blocks, 1, 1])
        .block([THREADS, 1, 1])
        .read(mask)
        .value(mask.len() as u64)
        .write(kept);
    // SAFETY: `kept` is one zero.
    Ok(unsafe { launch.run() }?)
}
