//! The rows of B that are multiplied before C is touched again, and A's part of them.

use rayon::prelude::*;

use super::{BLOCK, PASS_BLOCKS, Term};
use crate::simd::{Isa, LANES};
use crate::strips::{STRIP, Strip, strips};

/// At most 64 rows of one term.
#[derive(Clone, Copy, Default)]
pub(super) struct Block {
    pub term: usize,
    pub start: usize,
    pub rows: usize,
}

/// The blocks that are multiplied before C is touched again.
pub(super) struct Pass {
    blocks: [Block; PASS_BLOCKS],
    len: usize,
    /// Rows of all blocks together.
    pub rows: usize,
}

impl Pass {
    /// The next blocks, at most `most`, after `next` = (term, row), which moves on.
    pub fn collect(terms: &[Term<'_>], next: &mut (usize, usize), most: usize) -> Pass {
        let mut pass = Pass { blocks: [Block::default(); PASS_BLOCKS], len: 0, rows: 0 };
        while pass.len < most && next.0 < terms.len() {
            let (term, start) = *next;
            let rows = BLOCK.min(terms[term].k - start);
            if rows > 0 {
                pass.blocks[pass.len] = Block { term, start, rows };
                pass.len += 1;
                pass.rows += rows;
            }
            *next = if start + rows < terms[term].k { (term, start + rows) } else { (term + 1, 0) };
        }
        pass
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks[..self.len]
    }

    /// Packs what cannot be read where it stands: for each strip `[rows of the pass, width]`, of which blocks that can be
    /// read in place leave theirs empty. The panels of strips that are packed at all; those of whole vectors come first.
    pub fn pack<'w>(&self, isa: Isa, terms: &[Term<'_>], m: usize, workspace: &'w mut [f32]) -> Panels<'w> {
        let all = self.blocks().iter().any(|block| terms[block.term].a.packed(STRIP));
        let first = if all { 0 } else { m / STRIP * STRIP };
        let in_place = !all && (m - first).is_multiple_of(LANES);
        if self.rows == 0 || first == m || in_place {
            return Panels { data: &[], first: m };
        }
        let data = &mut workspace[..(m - first).next_multiple_of(LANES) * self.rows];
        data.par_chunks_mut(STRIP * self.rows).zip(strips(m).skip(first / STRIP).collect::<Vec<_>>()).for_each(
            |(mut panel, strip)| {
                let width = strip.width.next_multiple_of(LANES);
                for block in self.blocks() {
                    let (part, rest) = panel.split_at_mut(block.rows * width);
                    let a = &terms[block.term].a;
                    if a.packed(strip.width) {
                        a.pack(isa, strip, block.start..block.start + block.rows, width, part);
                    }
                    panel = rest;
                }
            },
        );
        Panels { data, first }
    }
}

/// The packed parts of A in a pass.
pub(super) struct Panels<'a> {
    data: &'a [f32],
    /// The first row of A that has a panel.
    first: usize,
}

impl<'a> Panels<'a> {
    /// `[rows, width]` of a strip, width rounded up to whole vectors.
    pub fn of(&self, strip: Strip, rows: usize) -> &'a [f32] {
        match strip.first.checked_sub(self.first) {
            Some(at) => &self.data[at * rows..][..strip.width.next_multiple_of(LANES) * rows],
            None => &[],
        }
    }
}
