//! What one thread does of a pass: some columns of C over all tokens, or a group of them.

use std::ops::Range;

use super::output::SharedOut;
use super::pairs::Pairs;
use super::pass::{Block, Panels, Pass};
use super::{COLUMNS, PAIR, Scratch, Term, micro, tiles};
use crate::simd::{Isa, LANES};
use crate::strips::Strip;

/// A's part of a pass, for one kind of kernel or the other.
pub(super) enum Tokens<'a> {
    /// For vectors: what of it cannot be read where it stands.
    Panels(Panels<'a>),
    /// For tiles.
    Parts(tiles::Tokens<'a>),
}

/// What all tasks of a pass share.
pub(super) struct Task<'a> {
    pub isa: Isa,
    pub terms: &'a [Term<'a>],
    pub pass: &'a Pass,
    pub tokens: Tokens<'a>,
    pub accumulate: bool,
    pub bias: Option<&'a [f32]>,
}

impl Task<'_> {
    /// Adds the pass to one rectangle of C.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    pub unsafe fn compute(
        &self,
        columns: Range<usize>,
        strips: impl Iterator<Item = Strip>,
        c: SharedOut<'_>,
        scratch: &mut Scratch,
    ) {
        self.unpack(&columns, scratch);
        let Scratch { pairs, sums, weights, .. } = scratch;
        let together = match self.tokens {
            Tokens::Panels(_) => PAIR,
            Tokens::Parts(_) => tiles::GROUP,
        };
        let whole = columns.len().next_multiple_of(together);
        let mut strips = strips.peekable();
        while let Some(strip) = strips.next() {
            let next = strips.peek().copied();
            let width = strip.width.next_multiple_of(LANES);
            // What is taken together but is not there has no place in C.
            let in_place = match c {
                SharedOut::Strips(c) if width == strip.width && columns.len() == whole => Some(c),
                _ => None,
            };
            match in_place {
                Some(c) => {
                    // SAFETY: the caller's.
                    let sums = unsafe { c.rows(strip, columns.clone()) };
                    if self.accumulate {
                        self.add_bias(&columns, width, sums);
                    }
                    self.sweep(strip, next, &columns, (pairs, weights), !self.accumulate, sums);
                }
                None => {
                    let sums = &mut sums[..whole * width];
                    // Sums go on from what a strip holds as they do in place: whether a task has whole groups shows in no bit.
                    let resumed = match c {
                        SharedOut::Strips(c) if self.accumulate => {
                            // SAFETY: the caller's.
                            let held = unsafe { c.rows(strip, columns.clone()) };
                            self.resume(&columns, (strip.width, held), width, sums);
                            true
                        }
                        _ => false,
                    };
                    self.sweep(strip, next, &columns, (pairs, weights), !resumed, sums);
                    let add = self.accumulate && !resumed;
                    // SAFETY: the caller's.
                    unsafe { c.put(self.isa, columns.clone(), strip, sums, width, add) };
                }
            }
        }
    }

    /// Reads the columns of B for the whole pass.
    fn unpack(&self, columns: &Range<usize>, scratch: &mut Scratch) {
        let Scratch { pairs, weights, block: by_columns, spare, .. } = scratch;
        pairs.clear();
        if let Tokens::Parts(_) = self.tokens {
            weights.begin(columns.clone().map(|column| self.bias(column)));
        }
        let blocks = self.pass.blocks();
        let prefetch = |block: Option<&Block>| {
            if let Some(block) = block {
                self.terms[block.term].b.prefetch(block.start..block.start + block.rows, columns.clone());
            }
        };
        prefetch(blocks.first());
        for (index, block) in blocks.iter().enumerate() {
            let b = self.terms[block.term].b;
            prefetch(blocks.get(index + 1));
            for start in columns.clone().step_by(COLUMNS) {
                let some = start..columns.end.min(start + COLUMNS);
                b.read(self.isa, block.start..block.start + block.rows, some.clone(), by_columns, spare);
                match &self.tokens {
                    Tokens::Panels(_) => pairs.push(self.isa, some.len(), by_columns),
                    Tokens::Parts(tokens) => {
                        let place = (some.start - columns.start, some.len());
                        weights.cut(tokens, (index, block), self.terms, place, by_columns);
                    }
                }
            }
            pairs.end_block();
        }
    }

    fn bias(&self, column: usize) -> f32 {
        self.bias.and_then(|bias| bias.get(column)).copied().unwrap_or(0.0)
    }

    /// Sums before anything is multiplied.
    fn start(&self, columns: &Range<usize>, width: usize, sums: &mut [f32]) {
        for (column, sums) in (columns.start..).zip(sums.chunks_exact_mut(width)) {
            sums.fill(if column < columns.end { self.bias(column) } else { 0.0 });
        }
    }

    /// Sums that go on from what C holds of a strip, `[columns, held_width]`.
    fn resume(&self, columns: &Range<usize>, (held_width, held): (usize, &[f32]), width: usize, sums: &mut [f32]) {
        sums.fill(0.0);
        for (sums, held) in sums.chunks_exact_mut(width).zip(held.chunks_exact(held_width)) {
            sums[..held_width].copy_from_slice(held);
        }
        self.add_bias(columns, width, sums);
    }

    fn add_bias(&self, columns: &Range<usize>, width: usize, sums: &mut [f32]) {
        if self.bias.is_some() {
            for (column, sums) in columns.clone().zip(sums.chunks_exact_mut(width)) {
                sums.iter_mut().for_each(|x| *x += self.bias(column));
            }
        }
    }

    /// Adds every block of the pass to the sums of a strip, `[columns, width]`, which begin with it if it is the `first`; `next` is
    /// the strip after it.
    fn sweep(
        &self,
        strip: Strip,
        next: Option<Strip>,
        columns: &Range<usize>,
        (pairs, weights): (&Pairs, &tiles::Weights),
        first: bool,
        sums: &mut [f32],
    ) {
        let width = strip.width.next_multiple_of(LANES);
        let panels = match &self.tokens {
            Tokens::Parts(tokens) => return tokens.sweep(strip, next, weights, first, sums),
            Tokens::Panels(panels) => panels,
        };
        if first {
            self.start(columns, width, sums);
        }
        let mut at = 0;
        for (index, block) in self.pass.blocks().iter().enumerate() {
            let tokens = self.rows(panels, strip, block, at);
            at += block.rows;
            // What comes after is far away: by now the last strip has left the second-level cache.
            let ahead = match (self.pass.blocks().get(index + 1), next) {
                (Some(block), _) => self.rows(panels, strip, block, at),
                (None, Some(next)) => self.rows(panels, next, &self.pass.blocks()[0], 0),
                (None, None) => &[],
            };
            micro::sweep(self.isa, width, tokens, pairs.block(index), sums, ahead);
        }
    }

    /// The tokens of a strip that meet a block, `[rows, width]`, `at` rows into the pass.
    fn rows<'s>(&'s self, panels: &Panels<'s>, strip: Strip, block: &Block, at: usize) -> &'s [f32] {
        let width = strip.width.next_multiple_of(LANES);
        let in_place = self.terms[block.term].a.in_place(strip, block.start);
        let rows = in_place.unwrap_or_else(|| &panels.of(strip, self.pass.rows)[at * width..]);
        &rows[..block.rows * width]
    }
}
