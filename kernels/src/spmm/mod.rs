//! C = A·B: the products of linear layers and their gradients. Where B is a pruned weight, its zeros cost nothing.
//!
//! A `[m, k]` holds tokens, B `[k, n]` may be mostly zeros. The tokens lie across the vector lanes, so a weight is one number
//! that is broadcast, and a zero is simply not there: nothing is gathered, nothing is scattered, whatever the pattern.
//!
//! What bounds such a product is not arithmetic but loads: alone, each multiply-add would load its own vector of tokens.
//! So two columns of B are taken together, as three lists: rows where both have an entry, where only the first has, and
//! where only the second has. At half density that is three loads for four multiply-adds, and at full density one for two,
//! as in a dense kernel. Each list is a bit mask over 64 rows and the values in order.
//!
//! Blocking, from the inside out: two columns × one strip of tokens of C in registers, over a block of 64 rows of B, whose
//! 64 rows of tokens stay in the first-level cache while all columns of a task pass over it; a task unpacks its
//! columns for one *pass* of [`PASS`] rows once (second-level cache) and sweeps all tokens with them. Activations lie in
//! [strips](crate::strips), so A is read and C is written where they stand. Only a strip whose tokens are no whole vectors,
//! and a transposed A, whose features take the tokens' place, are packed first, a pass at a time, by all threads, into
//! workspace. Every element of C is summed in an order that depends on neither threads nor tokens beside it.
//!
//! Where the machine has matrix tiles, and B is not mostly zeros, these multiply instead: [`tiles`]. Tasks, passes and places
//! are the same.

mod micro;
mod operand;
mod pairs;
#[cfg(test)]
mod tests;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_tiles.rs")]
mod tiles;

use std::ops::Range;

use rayon::prelude::*;

use crate::simd::{Isa, LANES, transpose_into};
use crate::strips::{STRIP, SharedStrips, Strip, Strips, strips};
pub use operand::{Beside, Columns, Matrix};
use pairs::Pairs;

/// Rows of B that one word of a mask covers.
pub const BLOCK: usize = 64;
/// Columns of B that are [read](Columns::read) at a time.
pub const COLUMNS: usize = 64;
/// Columns of B that a task has at most: so often is a block of tokens used once it is in the first-level cache.
const TASK_COLUMNS: usize = 2 * COLUMNS;
/// Columns whose vectors of sums stay in registers together.
const PAIR: usize = 2;
/// A task is not made narrower than this to occupy a thread: the tokens would stream through the cache for too little.
const LEAST_COLUMNS: usize = 32;
/// Rows of B a pass of vectors: TASK_COLUMNS·PASS·4 bytes of unpacked values stay within the second-level cache.
const PASS: usize = 1024;
/// Blocks a pass holds at most.
const PASS_BLOCKS: usize = PASS / BLOCK;

/// The scratch that each thread of the CPU device keeps.
pub fn thread_scratch_bytes(isa: Isa) -> usize {
    let sums = sums_columns(isa) * STRIP;
    Pairs::BYTES + (sums + 2 * BLOCK * COLUMNS) * 4 + if tiles(isa) { tiles::WEIGHTS_BYTES } else { 0 }
}

/// Columns of the most that any task has.
fn sums_columns(isa: Isa) -> usize {
    if tiles(isa) { TASK_COLUMNS.max(tiles::TASK_COLUMNS) } else { TASK_COLUMNS }
}

/// True where products may be made of matrix tiles.
fn tiles(isa: Isa) -> bool {
    cfg!(target_arch = "x86_64") && isa == Isa::Amx
}

thread_local! {
    static SCRATCH: std::cell::RefCell<Option<Box<Scratch>>> = const { std::cell::RefCell::new(None) };
}

struct Scratch {
    pairs: Pairs,
    /// Cᵀ of a task's columns and one strip, where C itself has another shape.
    sums: Vec<f32>,
    /// A block of B by columns, and what operands need to read it.
    block: Vec<f32>,
    spare: Vec<f32>,
    /// The columns of a task in parts, where the machine has tiles.
    weights: tiles::Weights,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            pairs: Pairs::new(),
            weights: tiles::Weights::new(),
            sums: Vec::new(),
            block: vec![0.0; BLOCK * COLUMNS],
            spare: vec![0.0; BLOCK * COLUMNS],
        }
    }
}

/// Lends the scratch of this thread.
fn with_scratch<T>(isa: Isa, f: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| Box::new(Scratch::new()));
        let sums = sums_columns(isa) * STRIP;
        if scratch.sums.len() < sums {
            scratch.sums.resize(sums, 0.0);
        }
        f(scratch)
    })
}

/// The A operand `[m, k]` of a product: an activation, either way round.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Rows are tokens, read where they stand.
    Tokens(Strips<'a>),
    /// Rows are features and `k` counts tokens: the transpose, which weights' gradients need.
    Features(Strips<'a>),
}

impl<'a> Rows<'a> {
    /// True where a strip of `width` rows must be packed first.
    fn packed(&self, width: usize) -> bool {
        matches!(self, Rows::Features(_)) || !width.is_multiple_of(LANES)
    }

    /// The rows from `k` on of a strip that need no packing, each `strip.width` elements.
    fn in_place(&self, strip: Strip, k: usize) -> Option<&'a [f32]> {
        match self {
            Rows::Tokens(of) if strip.width.is_multiple_of(LANES) => Some(of.rows(strip, k)),
            _ => None,
        }
    }

    /// Packs the rows of `strip` for `k`, each k's rows side by side in `width` places, zeros behind them.
    fn pack(&self, isa: Isa, strip: Strip, k: Range<usize>, width: usize, out: &mut [f32]) {
        match self {
            Rows::Features(of) => of.pack_features(isa, strip.first..strip.first + strip.width, k, width, out),
            Rows::Tokens(of) => {
                let from = of.rows(strip, k.start).chunks_exact(strip.width);
                for (out, from) in out.chunks_exact_mut(width).zip(from).take(k.len()) {
                    out[..strip.width].copy_from_slice(from);
                    out[strip.width..].fill(0.0);
                }
            }
        }
    }
}

/// One term of C = Σ A·B: the weight's product and an adapter's go into C together.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// A `[m, k]`.
    pub a: Rows<'a>,
    /// B `[k, n]`.
    pub b: &'a dyn Columns,
    /// Columns of A, rows of B.
    pub k: usize,
}

/// Where C `[m, n]` goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// An activation of m tokens and n features.
    Strips(&'a mut [f32]),
    /// Row-major, of rows this many elements apart.
    Rows(&'a mut [f32], usize),
    /// Cᵀ `[n, m]` row-major, of rows this many elements apart.
    Transposed(&'a mut [f32], usize),
}

/// What becomes of the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Adds to what C holds instead of replacing it.
    pub accumulate: bool,
    /// Adds `bias[j]` to column j.
    pub bias: Option<&'a [f32]>,
}

/// f32 elements of workspace that [`spmm`] needs for an A whose `m` rows are tokens, and at most two terms of `k` rows of B in
/// all.
pub fn tokens_workspace_len(isa: Isa, m: usize, k: usize) -> usize {
    let rest = m % STRIP;
    let panels = if rest.is_multiple_of(LANES) { 0 } else { rest.next_multiple_of(LANES) * k.min(PASS) };
    if tiles(isa) { panels.max(tiles::workspace_len(m, k)) } else { panels }
}

/// The same where A's `m` rows are features.
pub fn features_workspace_len(isa: Isa, m: usize, k: usize) -> usize {
    let panels = m.next_multiple_of(LANES) * k.min(PASS);
    if tiles(isa) { panels.max(tiles::workspace_len(m, k)) } else { panels }
}

/// C = Σ A·B over `terms`, with all threads. C is `[m, n]`.
///
/// A zero of B yields nothing, even against an infinite token.
///
/// # Panics
/// If a slice is too short for the shape: callers check their operands first.
pub fn spmm(
    isa: Isa,
    (m, n): (usize, usize),
    terms: &[Term<'_>],
    c: Output<'_>,
    epilogue: Epilogue<'_>,
    workspace: &mut [f32],
) {
    if m == 0 || n == 0 {
        return;
    }
    let c = SharedOut::new(c, m, n);
    let threads = rayon::current_num_threads();
    let by_tiles = tiles(isa) && tiles::pay((m, n), terms);
    let (most_columns, together, pass_blocks) = match by_tiles {
        true => (tiles::TASK_COLUMNS, tiles::GROUP, tiles::PASS_BLOCKS),
        false => (TASK_COLUMNS, PAIR, PASS_BLOCKS),
    };
    // Tasks are of whole groups, so that the same columns are taken together, and so summed in the same order, for any number of
    // threads; as many for each thread, and none more than a group larger than another: the last to end is waited for.
    let units = n.div_ceil(together);
    let column_tasks = n.div_ceil(most_columns).next_multiple_of(threads).min(n.div_ceil(LEAST_COLUMNS)).min(units);
    let bound = |task: usize| n.min(task * units / column_tasks * together);
    // Unpacking is repeated for each group of strips, so tokens are shared out only where columns do not suffice.
    let groups = if column_tasks.is_multiple_of(threads) { 1 } else { (2 * threads).div_ceil(column_tasks) };
    let groups = groups.min(m.div_ceil(STRIP));
    let group_strips = m.div_ceil(STRIP).div_ceil(groups);
    let groups = m.div_ceil(group_strips * STRIP);
    // Passes of as many blocks: a short one would touch all of C for little.
    let blocks: usize = terms.iter().map(|term| term.k.div_ceil(BLOCK)).sum();
    let pass_blocks = blocks.div_ceil(blocks.div_ceil(pass_blocks).max(1)).max(1);
    let mut first = true;
    let mut next = (0, 0);
    loop {
        let pass = Pass::collect(terms, &mut next, pass_blocks);
        if pass.rows == 0 && !first {
            break;
        }
        let cut = if by_tiles { tiles::Tokens::cut(&pass, terms, m, workspace) } else { None };
        let tokens = match cut {
            Some(tokens) => Tokens::Parts(tokens),
            None => Tokens::Panels(pass.pack(isa, terms, m, workspace)),
        };
        let task = Task {
            isa,
            terms,
            pass: &pass,
            tokens,
            accumulate: epilogue.accumulate || !first,
            bias: if first { epilogue.bias } else { None },
        };
        (0..column_tasks * groups).into_par_iter().for_each(|index| {
            let (task_index, group) = (index / groups, index % groups * group_strips);
            let columns = bound(task_index)..bound(task_index + 1);
            // SAFETY: tasks own disjoint rectangles of C.
            with_scratch(isa, |scratch| unsafe {
                task.compute(columns, strips(m).skip(group).take(group_strips), c, scratch);
            });
        });
        first = false;
    }
}

/// C, shared between tasks that write disjoint parts.
#[derive(Clone, Copy)]
enum SharedOut<'a> {
    Strips(SharedStrips<'a>),
    Matrix { data: *mut f32, stride: usize, transposed: bool },
}
// SAFETY: every user writes elements that no other task touches.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    fn new(c: Output<'a>, m: usize, n: usize) -> SharedOut<'a> {
        let (data, stride, transposed) = match c {
            Output::Strips(data) => return SharedOut::Strips(SharedStrips::new(data, m, n)),
            Output::Rows(data, stride) => (data, stride, false),
            Output::Transposed(data, stride) => (data, stride, true),
        };
        let (rows, width) = if transposed { (n, m) } else { (m, n) };
        assert!(stride >= width && data.len() >= (rows - 1) * stride + width, "C is too short");
        SharedOut::Matrix { data: data.as_mut_ptr(), stride, transposed }
    }

    /// Writes, or adds, the sums of some columns, `[columns, width]`, of which `strip.width` stand for rows of C.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    unsafe fn put(self, isa: Isa, columns: Range<usize>, strip: Strip, sums: &[f32], width: usize, accumulate: bool) {
        if let SharedOut::Matrix { data, stride, transposed: false } = self {
            // SAFETY: the caller's.
            unsafe {
                let out = data.add(strip.first * stride + columns.start);
                transpose_into(isa, (columns.len(), strip.width), sums, width, out, stride, accumulate);
            }
            return;
        }
        for (column, sums) in columns.zip(sums.chunks_exact(width)) {
            // SAFETY: the caller's; a column of C is a row of Cᵀ, and of a strip.
            let out = unsafe {
                match self {
                    SharedOut::Strips(c) => c.rows(strip, column..column + 1),
                    SharedOut::Matrix { data, stride, .. } => {
                        std::slice::from_raw_parts_mut(data.add(column * stride + strip.first), strip.width)
                    }
                }
            };
            let sums = &sums[..strip.width];
            if accumulate {
                out.iter_mut().zip(sums).for_each(|(out, x)| *out += x);
            } else {
                out.copy_from_slice(sums);
            }
        }
    }
}

/// At most 64 rows of one term.
#[derive(Clone, Copy, Default)]
struct Block {
    term: usize,
    start: usize,
    rows: usize,
}

/// The blocks that are multiplied before C is touched again.
struct Pass {
    blocks: [Block; PASS_BLOCKS],
    len: usize,
    /// Rows of all blocks together.
    rows: usize,
}

impl Pass {
    /// The next blocks, at most `most`, after `next` = (term, row), which moves on.
    fn collect(terms: &[Term<'_>], next: &mut (usize, usize), most: usize) -> Pass {
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

    fn blocks(&self) -> &[Block] {
        &self.blocks[..self.len]
    }

    /// Packs what cannot be read where it stands: for each strip `[rows of the pass, width]`, of which blocks that can be
    /// read in place leave theirs empty. The panels of strips that are packed at all; those of whole vectors come first.
    fn pack<'w>(&self, isa: Isa, terms: &[Term<'_>], m: usize, workspace: &'w mut [f32]) -> Panels<'w> {
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
struct Panels<'a> {
    data: &'a [f32],
    /// The first row of A that has a panel.
    first: usize,
}

impl<'a> Panels<'a> {
    /// `[rows, width]` of a strip, width rounded up to whole vectors.
    fn of(&self, strip: Strip, rows: usize) -> &'a [f32] {
        match strip.first.checked_sub(self.first) {
            Some(at) => &self.data[at * rows..][..strip.width.next_multiple_of(LANES) * rows],
            None => &[],
        }
    }
}

/// A's part of a pass, for one kind of kernel or the other.
enum Tokens<'a> {
    /// For vectors: what of it cannot be read where it stands.
    Panels(Panels<'a>),
    /// For tiles.
    Parts(tiles::Tokens<'a>),
}

/// What all tasks of a pass share.
struct Task<'a> {
    isa: Isa,
    terms: &'a [Term<'a>],
    pass: &'a Pass,
    tokens: Tokens<'a>,
    accumulate: bool,
    bias: Option<&'a [f32]>,
}

impl Task<'_> {
    /// Adds the pass to one rectangle of C.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    unsafe fn compute(
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
