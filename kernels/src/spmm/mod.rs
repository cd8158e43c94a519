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
//! Blocking, from the inside out: two columns × one tile of tokens of C in registers, over a block of 64 rows of B, whose
//! 64 vectors of tokens stay in the first-level cache while all [`COLUMNS`] columns of a task pass over it; a task unpacks
//! its columns for one *pass* of [`PASS`] rows once (second-level cache) and sweeps all tokens with them. A is packed a pass
//! at a time, tokens innermost, by all threads, into workspace. Every element of C is summed in an order that depends on
//! neither threads nor tokens beside it.

mod micro;
mod operand;
mod pairs;
#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

use crate::simd::{Isa, LANES, transpose_into};
pub use operand::{Beside, Columns, Matrix};
use pairs::Pairs;

/// Rows of B that one word of a mask covers.
pub const BLOCK: usize = 64;
/// Columns of B that a task unpacks at a time.
pub const COLUMNS: usize = 64;
/// A task is not made narrower than this to occupy a thread: the tokens would stream through the cache for too little.
const LEAST_COLUMNS: usize = 32;
/// Rows of B a pass: COLUMNS·PASS·4 bytes of unpacked values stay within the second-level cache.
const PASS: usize = 1024;
/// Blocks a pass holds at most.
const PASS_BLOCKS: usize = PASS / BLOCK;
/// Tokens of the widest tile.
const WIDEST: usize = 4 * LANES;

/// The scratch that each thread of the CPU device keeps.
pub const THREAD_SCRATCH_BYTES: usize = Pairs::BYTES + (COLUMNS * WIDEST + 2 * BLOCK * COLUMNS) * 4;

thread_local! {
    static SCRATCH: std::cell::RefCell<Option<Box<Scratch>>> = const { std::cell::RefCell::new(None) };
}

struct Scratch {
    pairs: Pairs,
    /// Cᵀ of a task's columns and one tile of tokens, `[COLUMNS, tile]`.
    sums: Vec<f32>,
    /// A block of B by columns, and what operands need to read it.
    block: Vec<f32>,
    spare: Vec<f32>,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            pairs: Pairs::new(),
            sums: vec![0.0; COLUMNS * WIDEST],
            block: vec![0.0; BLOCK * COLUMNS],
            spare: vec![0.0; BLOCK * COLUMNS],
        }
    }
}

/// One term of C = Σ A·B: the weight's product and an adapter's go into C together.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// A `[m, k]`.
    pub a: Matrix<'a>,
    /// B `[k, n]`.
    pub b: &'a dyn Columns,
    /// Columns of A, rows of B.
    pub k: usize,
}

/// Where C goes.
#[derive(Debug)]
pub struct Output<'a> {
    data: &'a mut [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Output<'a> {
    /// C `[m, n]` row-major, its rows `stride` elements apart.
    pub fn rows(data: &'a mut [f32], stride: usize) -> Output<'a> {
        Output { data, stride, transposed: false }
    }

    /// Cᵀ `[n, m]` row-major, its rows `stride` elements apart.
    pub fn transposed(data: &'a mut [f32], stride: usize) -> Output<'a> {
        Output { data, stride, transposed: true }
    }
}

/// What becomes of the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Adds to what C holds instead of replacing it.
    pub accumulate: bool,
    /// Adds `bias[j]` to column j.
    pub bias: Option<&'a [f32]>,
}

/// f32 elements of workspace that [`spmm`] needs for `m` tokens and terms of `k` rows in all.
pub fn workspace_len(m: usize, k: usize) -> usize {
    m.next_multiple_of(LANES) * k.min(PASS)
}

/// C = Σ A·B over `terms`, with all threads. C is `[m, n]`.
///
/// A zero of B is skipped: it yields nothing even against an infinite token.
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
    let (rows, width) = if c.transposed { (n, m) } else { (m, n) };
    assert!(c.stride >= width && c.data.len() >= (rows - 1) * c.stride + width, "C is too short");
    let tile = micro::tile_tokens(isa);
    let threads = rayon::current_num_threads();
    // As many tasks for each thread, of columns enough to pay for packing the tokens' share of them.
    let column_tasks = n.div_ceil(COLUMNS).next_multiple_of(threads).min(n.div_ceil(LEAST_COLUMNS));
    let task_columns = n.div_ceil(column_tasks).next_multiple_of(2);
    let column_tasks = n.div_ceil(task_columns);
    // Unpacking is repeated for each group of tokens, so tokens are shared out only where columns do not suffice.
    let groups = if column_tasks.is_multiple_of(threads) { 1 } else { (2 * threads).div_ceil(column_tasks) };
    let groups = groups.min(m.div_ceil(tile));
    let group_tokens = m.div_ceil(tile).div_ceil(groups) * tile;
    let groups = m.div_ceil(group_tokens);
    let c = SharedOut { data: c.data.as_mut_ptr(), stride: c.stride, transposed: c.transposed };
    let mut first = true;
    let mut next = (0, 0);
    loop {
        let pass = Pass::collect(terms, &mut next);
        if pass.rows == 0 && !first {
            break;
        }
        let panels = &mut workspace[..m.next_multiple_of(LANES) * pass.rows];
        pass.pack_tokens(isa, terms, m, tile, panels);
        let task = Task {
            isa,
            terms,
            pass: &pass,
            panels,
            tile,
            m,
            accumulate: epilogue.accumulate || !first,
            bias: if first { epilogue.bias } else { None },
        };
        (0..column_tasks * groups).into_par_iter().for_each(|index| {
            let (column, token) = (index / groups * task_columns, index % groups * group_tokens);
            let columns = column..n.min(column + task_columns);
            let tokens = token..m.min(token + group_tokens);
            SCRATCH.with_borrow_mut(|scratch| {
                let scratch = scratch.get_or_insert_with(|| Box::new(Scratch::new()));
                // SAFETY: tasks own disjoint rectangles of C, all inside it by the assertion above.
                unsafe { task.compute(columns, tokens, c, scratch) }
            });
        });
        first = false;
    }
}

/// C's address, shared between tasks that write disjoint parts.
#[derive(Clone, Copy)]
struct SharedOut {
    data: *mut f32,
    stride: usize,
    transposed: bool,
}
// SAFETY: every user writes elements that no other task touches.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    /// Writes, or adds, the sums of some columns, `[columns, width]`, of which `tokens` stand for tokens from `token` on.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    unsafe fn put(
        self,
        isa: Isa,
        (columns, tokens): (Range<usize>, Range<usize>),
        sums: &[f32],
        width: usize,
        accumulate: bool,
    ) {
        if !self.transposed {
            // SAFETY: the caller's.
            unsafe {
                let out = self.data.add(tokens.start * self.stride + columns.start);
                transpose_into(isa, (columns.len(), tokens.len()), sums, width, out, self.stride, accumulate);
            }
            return;
        }
        for (column, sums) in columns.zip(sums.chunks_exact(width)) {
            // SAFETY: the caller's; a column of C is a row of Cᵀ.
            let out = unsafe {
                std::slice::from_raw_parts_mut(self.data.add(column * self.stride + tokens.start), tokens.len())
            };
            let sums = &sums[..tokens.len()];
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
    /// The next blocks after `next` = (term, row), which moves on.
    fn collect(terms: &[Term<'_>], next: &mut (usize, usize)) -> Pass {
        let mut pass = Pass { blocks: [Block::default(); PASS_BLOCKS], len: 0, rows: 0 };
        while pass.len < PASS_BLOCKS && next.0 < terms.len() {
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

    /// Packs A tile by tile: `[rows of the pass, tokens of the tile]`, tokens rounded up to whole vectors of zeros.
    fn pack_tokens(&self, isa: Isa, terms: &[Term<'_>], m: usize, tile: usize, panels: &mut [f32]) {
        if self.rows == 0 {
            return;
        }
        panels.par_chunks_mut(tile * self.rows).enumerate().for_each(|(index, mut panel)| {
            let token = index * tile;
            let tokens = tile.min(m - token);
            let width = tokens.next_multiple_of(LANES);
            for block in self.blocks() {
                let (part, rest) = panel.split_at_mut(block.rows * width);
                let k = block.start..block.start + block.rows;
                terms[block.term].a.pack(isa, token..token + tokens, k, width, part);
                panel = rest;
            }
        });
    }
}

/// What all tasks of a pass share.
struct Task<'a> {
    isa: Isa,
    terms: &'a [Term<'a>],
    pass: &'a Pass,
    panels: &'a [f32],
    tile: usize,
    m: usize,
    accumulate: bool,
    bias: Option<&'a [f32]>,
}

impl Task<'_> {
    /// Adds the pass to one rectangle of C.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    unsafe fn compute(&self, columns: Range<usize>, tokens: Range<usize>, c: SharedOut, scratch: &mut Scratch) {
        let Scratch { pairs, sums, block: by_columns, spare } = scratch;
        pairs.clear();
        let blocks = self.pass.blocks();
        for (block, next) in blocks.iter().zip(blocks.iter().skip(1).map(Some).chain([None])) {
            let b = self.terms[block.term].b;
            if let Some(next) = next {
                self.terms[next.term].b.prefetch(next.start..next.start + next.rows, columns.clone());
            }
            b.read(self.isa, block.start..block.start + block.rows, columns.clone(), by_columns, spare);
            pairs.push_block(self.isa, columns.len(), by_columns);
        }
        for token in tokens.clone().step_by(self.tile) {
            let width = self.tile.min(self.m - token).next_multiple_of(LANES);
            let panel = &self.panels[token * self.pass.rows..][..width * self.pass.rows];
            let sums = &mut sums[..COLUMNS * width];
            for (j, sums) in sums.chunks_exact_mut(width).enumerate() {
                sums.fill(self.bias.and_then(|bias| bias[columns.clone()].get(j)).copied().unwrap_or(0.0));
            }
            let mut at = 0;
            for (index, block) in self.pass.blocks().iter().enumerate() {
                let vectors = &panel[at * width..][..block.rows * width];
                micro::sweep(self.isa, width, vectors, pairs.block(index), sums);
                at += block.rows;
            }
            let tokens = token..self.m.min(token + self.tile);
            // SAFETY: the caller's.
            unsafe { c.put(self.isa, (columns.clone(), tokens), sums, width, self.accumulate) };
        }
    }
}
