//! Attention on the CPU, out of the matrix product's micro-kernel.
//!
//! Scores are computed transposed: a tile has keys as rows and a panel of NR queries as columns. Three things follow.
//! The softmax over keys runs down the columns, sixteen queries a vector, with no sum across lanes. The tile that the
//! micro-kernel writes is at once the packed B operand of the next product (out ᵀ = vᵀ·pᵀ). And what must be packed, K
//! and V, is packed once for all queries that see it.
//!
//! Both directions skip what a panel of queries cannot see in steps of MR keys. Where the machine has matrix tiles, these
//! multiply instead: [`tiles`].

pub(super) mod backward;
pub(super) mod forward;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::Attention;
use crate::simd::{Isa, scale_block, scale_block_from, transpose, transpose_into};
use crate::simd_fn;
use crate::strips::{Piece, SharedStrips, Strips, pieces};

/// Keys of a tile (the largest multiple of MR up to it): a tile of scores, KEYS·NR·4 = 16 KiB, fits the first-level cache
/// beside the panel of queries. 14 and 6 divide 126, matrix tiles take 32 keys together.
const KEYS: usize = 128;

/// One head of one sequence: `dim` features of some tokens.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// The head's features, and those after it.
    data: Strips<'a>,
    /// The sequence's first token.
    first: usize,
    dim: usize,
}

impl<'a> Head<'a> {
    /// Head `head` of `heads` of sequence `batch` in a `[B·T, heads·hd]` matrix.
    fn new(data: &'a [f32], attention: &Attention, batch: usize, heads: usize, head: usize) -> Head<'a> {
        let dim = attention.head_dim;
        let data = Strips::new(data, attention.rows(), heads * dim).from_feature(head * dim);
        Head { data, first: batch * attention.tokens, dim }
    }

    /// Some tokens of the sequence, strip by strip.
    fn pieces(&self, tokens: Range<usize>) -> impl Iterator<Item = Piece> + use<> {
        pieces(self.data.tokens(), self.first + tokens.start..self.first + tokens.end)
    }

    /// Packs tokens as the columns of a `[dim, width]` panel, scaled; columns past them are zero.
    fn pack_columns(&self, isa: Isa, tokens: Range<usize>, scale: f32, width: usize, out: &mut [f32]) {
        if tokens.len() < width {
            out.fill(0.0);
        }
        let mut at = 0;
        for piece in self.pieces(tokens) {
            let from = &self.data.rows(piece.strip, 0)[piece.lanes.start..];
            scale_block(isa, (self.dim, piece.lanes.len()), scale, from, piece.strip.width, &mut out[at..], width);
            at += piece.lanes.len();
        }
    }

    /// Packs tokens into panels of `width` features, each `[count, width]`; features past the last and rows past the tokens
    /// are zero.
    fn pack_features(&self, isa: Isa, tokens: Range<usize>, count: usize, width: usize, out: &mut [f32]) {
        for (panel, out) in out.chunks_exact_mut(count * width).enumerate() {
            let features = width.min(self.dim - panel * width);
            if features < width || tokens.len() < count {
                out.fill(0.0);
            }
            let mut at = 0;
            for piece in self.pieces(tokens.clone()) {
                let from = &self.data.rows(piece.strip, panel * width)[piece.lanes.start..];
                let to = &mut out[at * width..];
                transpose(isa, (features, piece.lanes.len()), from, piece.strip.width, to, width);
                at += piece.lanes.len();
            }
        }
    }
}

/// One head of one sequence, for writing.
#[derive(Clone, Copy)]
struct HeadOut<'a> {
    data: SharedStrips<'a>,
    tokens: usize,
    /// The head's first feature, and the sequence's first token.
    feature: usize,
    first: usize,
}

impl HeadOut<'_> {
    fn new<'a>(data: SharedStrips<'a>, attention: &Attention, batch: usize, head: usize) -> HeadOut<'a> {
        let (tokens, feature) = (attention.rows(), head * attention.head_dim);
        HeadOut { data, tokens, feature, first: batch * attention.tokens }
    }

    /// Packs tokens as the columns of a `[dim, width]` panel; columns past them are zero.
    ///
    /// # Safety
    /// No one writes these tokens of the head meanwhile.
    unsafe fn read_columns(&self, isa: Isa, tokens: Range<usize>, (dim, width): (usize, usize), panel: &mut [f32]) {
        if tokens.len() < width {
            panel.fill(0.0);
        }
        let mut at = 0;
        for piece in pieces(self.tokens, self.first + tokens.start..self.first + tokens.end) {
            let from = self.data.pointer(&piece, self.feature);
            let (shape, stride) = ((dim, piece.lanes.len()), piece.strip.width);
            // SAFETY: the caller's; the features of a strip are `width` apart.
            unsafe { scale_block_from(isa, shape, 1.0, from, stride, &mut panel[at..], width) };
            at += piece.lanes.len();
        }
    }

    /// Writes the columns of a `[dim, width]` panel as tokens, each times its factor.
    ///
    /// # Safety
    /// No one else uses these tokens of the head meanwhile.
    unsafe fn put_columns(
        &self,
        isa: Isa,
        tokens: Range<usize>,
        panel: &[f32],
        (dim, width): (usize, usize),
        factors: &[f32],
    ) {
        let mut at = 0;
        for piece in pieces(self.tokens, self.first + tokens.start..self.first + tokens.end) {
            for (feature, panel) in panel.chunks_exact(width).enumerate().take(dim) {
                // SAFETY: the caller's.
                let out = unsafe { self.data.row(&piece, self.feature + feature) };
                put_products(isa, &panel[at..], &factors[at..], out);
            }
            at += piece.lanes.len();
        }
    }

    /// Writes the rows of a tile of `features` from `feature` on, `[tokens, stride]`, as tokens.
    ///
    /// # Safety
    /// No one else uses these tokens of the head meanwhile.
    unsafe fn put_rows(
        &self,
        isa: Isa,
        tokens: Range<usize>,
        (feature, features): (usize, usize),
        tile: &[f32],
        stride: usize,
    ) {
        let mut at = 0;
        for piece in pieces(self.tokens, self.first + tokens.start..self.first + tokens.end) {
            let to = self.data.pointer(&piece, self.feature + feature);
            let shape = (piece.lanes.len(), features);
            // SAFETY: the caller's; the features of a strip are `width` apart.
            unsafe { transpose_into(isa, shape, &tile[at * stride..], stride, to, piece.strip.width, false) };
            at += piece.lanes.len();
        }
    }
}

simd_fn! {
    /// out = x·factors, as far as `out` goes.
    fn put_products(x: &[f32], factors: &[f32], out: &mut [f32]) {
        for ((out, x), factor) in out.iter_mut().zip(x).zip(factors) {
            *out = x * factor;
        }
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

    /// The keys that any of the queries sees.
    fn visible(&self) -> Range<usize> {
        (self.first + 1).saturating_sub(self.window)..self.first + self.queries
    }

    /// Ranges of visible keys, each at most KEYS long, that start at a multiple of `mr`.
    fn tiles(&self, mr: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let Range { start, end } = self.visible();
        let step = KEYS / mr * mr;
        (start / mr * mr..end).step_by(step).map(move |key| key..(key + step).min(end))
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
