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
//! columns for one *pass* of `PASS` rows once (second-level cache) and sweeps all tokens with them. Activations lie in
//! [strips](crate::strips), so A is read and C is written where they stand. Only a strip whose tokens are no whole vectors,
//! and a transposed A, whose features take the tokens' place, are packed first, a pass at a time, by all threads, into
//! workspace. Every element of C is summed in an order that depends on neither threads nor tokens beside it.
//!
//! Where the machine has matrix tiles, and B is not mostly zeros, these multiply instead (`tiles`). Tasks, passes and places
//! are the same.

mod micro;
mod operand;
mod output;
mod pairs;
mod pass;
mod task;
#[cfg(test)]
mod tests;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_tiles.rs")]
mod tiles;

use std::ops::Range;

use rayon::prelude::*;

use crate::simd::{Isa, LANES};
use crate::strips::{STRIP, Strip, Strips, strips};
pub use operand::{Beside, Columns, Matrix};
pub use output::Output;
use output::SharedOut;
use pairs::Pairs;
use pass::Pass;
use task::{Task, Tokens};

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
