//! Attention on the CPU, out of the matrix product's micro-kernel.
//!
//! Scores are computed transposed: a tile has keys as rows and a panel of NR queries as columns. Three things follow.
//! The softmax over keys runs down the columns, sixteen queries a vector, with no sum across lanes. The tile that the
//! micro-kernel writes is at once the packed B operand of the next product (out ᵀ = vᵀ·pᵀ). And what must be packed, K
//! and V, is packed once for all queries that see it.
//!
//! Both directions skip what a panel of queries cannot see in steps of MR keys.

pub(super) mod backward;
pub(super) mod forward;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::Attention;
use crate::tile::Tile;

/// Keys of a tile (the largest multiple of MR up to it): a tile of scores, KEYS·NR·4 = 16 KiB, fits the first-level cache
/// beside the panel of queries. 14 and 6 divide 126.
const KEYS: usize = 126;

/// One head of one sequence: `tokens` rows of `dim` features, `stride` apart.
#[derive(Clone, Copy)]
struct Head<'a> {
    data: &'a [f32],
    stride: usize,
    dim: usize,
}

impl<'a> Head<'a> {
    /// Head `head` of `heads` of sequence `batch` in a `[B·T, heads·hd]` matrix.
    fn new(data: &'a [f32], attention: &Attention, batch: usize, heads: usize, head: usize) -> Head<'a> {
        let (stride, dim) = (heads * attention.head_dim, attention.head_dim);
        Head { data: &data[batch * attention.tokens * stride + head * dim..], stride, dim }
    }

    fn row(&self, token: usize) -> &'a [f32] {
        &self.data[token * self.stride..][..self.dim]
    }
}

/// A row-major matrix whose rectangles belong to different tasks.
#[derive(Clone, Copy)]
struct SharedRows<'a> {
    data: *mut f32,
    len: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: `row` asks its callers for disjoint rectangles.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    fn new(data: &'a mut [f32], stride: usize) -> SharedRows<'a> {
        SharedRows { data: data.as_mut_ptr(), len: data.len(), stride, lifetime: PhantomData }
    }

    /// `len` elements of a row from `column`.
    ///
    /// # Safety
    /// No one else uses these elements while the slice lives.
    unsafe fn row(&self, row: usize, column: usize, len: usize) -> &'a mut [f32] {
        let at = row * self.stride + column;
        assert!(at + len <= self.len, "row {row} lies outside the matrix");
        // SAFETY: inside the matrix by the assertion, and the caller's alone by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }
}

/// Runs `work` for each task, with as many at a time as there are slots of scratch. Tasks go to whichever slot is free,
/// so `work` must not depend on what its scratch holds.
fn share(tasks: usize, slots: &mut [f32], slot_len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let next = AtomicUsize::new(0);
    slots.par_chunks_exact_mut(slot_len).for_each(|scratch| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(task, scratch);
        }
    });
}

/// Takes the first `len` elements off `scratch`.
fn carve<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    taken
}

/// Packs rows as the columns of a `[dim, width]` panel, scaled; columns past the rows are zero.
fn pack_columns<'a>(rows: Range<usize>, row: impl Fn(usize) -> &'a [f32], scale: f32, width: usize, out: &mut [f32]) {
    if rows.len() < width {
        out.fill(0.0);
    }
    for (column, token) in rows.enumerate() {
        for (x, out) in row(token).iter().zip(out[column..].iter_mut().step_by(width)) {
            *out = x * scale;
        }
    }
}

/// Packs rows into panels of `width` features, each `[count, width]`, scaled; features past the last and rows past `rows`
/// are zero.
fn pack_features<'a>(
    rows: Range<usize>,
    row: impl Fn(usize) -> &'a [f32],
    scale: f32,
    count: usize,
    width: usize,
    out: &mut [f32],
) {
    for (panel, out) in out.chunks_exact_mut(count * width).enumerate() {
        for (token, out) in rows.clone().zip(out.chunks_exact_mut(width)) {
            let from = &row(token)[panel * width..];
            let n = from.len().min(width);
            for (out, x) in out.iter_mut().zip(from) {
                *out = x * scale;
            }
            out[n..].fill(0.0);
        }
        out[rows.len() * width..].fill(0.0);
    }
}

/// The queries of a panel and the keys that any of them sees.
#[derive(Clone, Copy)]
struct Panel {
    /// The first query, and how many there are (at most NR).
    first: usize,
    queries: usize,
    window: usize,
    nr: usize,
}

impl Panel {
    fn count(attention: &Attention, nr: usize) -> usize {
        attention.tokens.div_ceil(nr)
    }

    fn new(attention: &Attention, panel: usize, nr: usize) -> Panel {
        let first = panel * nr;
        let window = attention.window.unwrap_or(usize::MAX);
        Panel { first, queries: nr.min(attention.tokens - first), window, nr }
    }

    fn queries(&self) -> Range<usize> {
        self.first..self.first + self.queries
    }

    /// Ranges of visible keys, each at most KEYS long, that start at a multiple of MR.
    fn tiles(&self, tile: &Tile) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.first + self.queries;
        let start = (self.first + 1).saturating_sub(self.window) / tile.mr * tile.mr;
        let step = KEYS / tile.mr * tile.mr;
        (start..end).step_by(step).map(move |key| key..(key + step).min(end))
    }

    /// Sets the scores of what the queries do not see to −∞. Row i of `scores` `[.., NR]` is key `first_key + i`.
    fn mask(&self, first_key: usize, scores: &mut [f32]) {
        let keys = scores.len() / self.nr;
        let past_last = self.first + self.nr;
        if first_key + keys <= self.first + 1 && first_key.saturating_add(self.window) >= past_last {
            return;
        }
        for (key, row) in (first_key..).zip(scores.chunks_exact_mut(self.nr)) {
            let not_yet = key.saturating_sub(self.first).min(self.nr);
            let no_more = key.saturating_add(self.window).clamp(self.first, past_last) - self.first;
            row[..not_yet].fill(f32::NEG_INFINITY);
            row[no_more..].fill(f32::NEG_INFINITY);
        }
    }
}
