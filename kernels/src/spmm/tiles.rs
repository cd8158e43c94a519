//! The same products on [matrix tiles](crate::simd::amx), for which a zero costs as much as any other entry.
//!
//! Tiles of A hold columns of C, tiles of B tokens: so a tile of C, features × tokens, lies in a strip as it is. Both operands
//! are cut into parts of bf16: the tokens of a pass once, by all threads, into workspace; the weights by each task for its
//! columns. Of a strip, 32 columns × 32 tokens of C stay in registers over all rows of a pass.

use rayon::prelude::*;

use super::pass::{Block, Pass};
use super::{BLOCK, COLUMNS, Term, with_scratch};
use crate::simd::amx::{self, AHEAD, Ahead, Configured, DEPTH, PARTS, SIDE, TILE, parts_beside, products};
use crate::simd::{Isa, LANES, prefetch};
use crate::strips::{STRIP, Strip, strips};

/// Columns of C that are multiplied together.
pub(super) const GROUP: usize = 2 * SIDE;
/// Columns that a task has at most.
pub(super) const TASK_COLUMNS: usize = 3 * COLUMNS;
/// Blocks of a pass at most: the parts of a task's weights and of a strip's tokens stay within the second-level cache.
pub(super) const PASS_BLOCKS: usize = 13;
/// bf16 of a cache line: tiles begin on one.
const LINE: usize = 32;

/// f32 elements of workspace for the parts of `m` tokens over `k` rows of at most two terms, and what aligning them takes.
pub(super) fn workspace_len(m: usize, k: usize) -> usize {
    let rows = (k.next_multiple_of(DEPTH) + DEPTH).min(PASS_BLOCKS * BLOCK);
    m.next_multiple_of(SIDE) * rows * PARTS / 2 + LINE
}

/// bf16 of a task's columns, and what aligning them takes.
const DATA: usize = TASK_COLUMNS * PASS_BLOCKS * BLOCK * PARTS + LINE;
/// f32 of a group's bias.
const BIAS: usize = GROUP * GROUP;
/// Bytes of a thread's [`Weights`].
pub(super) const WEIGHTS_BYTES: usize = DATA * 2 + TASK_COLUMNS * GROUP * 4;

/// Whether tiles are the faster way to C `[m, n]`.
pub(super) fn pay((m, n): (usize, usize), terms: &[Term<'_>]) -> bool {
    /// Fewer columns do not pay for cutting the tokens.
    const LEAST_COLUMNS: usize = 64;
    /// Nor fewer tokens for cutting the weights.
    const LEAST_TOKENS: usize = 32;
    /// What a multiply-add of parts costs of one of f32 vectors, by whole steps in turn: 0.075 where other machines keep the tiles
    /// busy, 0.04 to 0.05 where they do not.
    const COST: f64 = 0.05;
    let rows = |cost: &dyn Fn(&Term<'_>) -> f64| terms.iter().map(|term| term.k as f64 * cost(term)).sum::<f64>();
    let by_vectors = rows(&|term| term.b.density());
    let by_tiles = rows(&|term| COST * products(parts(terms, term)) as f64);
    n >= LEAST_COLUMNS && m >= LEAST_TOKENS && by_tiles < by_vectors
}

/// Parts of the weights of one of `terms`: an adapter goes no further than the weight of 16 bits beside it.
fn parts(terms: &[Term<'_>], term: &Term<'_>) -> usize {
    let all = terms.iter().map(|term| term.b.parts()).min().unwrap_or(PARTS);
    term.b.parts().min(parts_beside(all))
}

/// Tiles up to some step of a pass.
#[derive(Clone, Copy, Default)]
struct Before {
    /// Of the weights of a group of columns.
    weights: usize,
    /// Of sixteen tokens.
    tokens: usize,
}

/// Steps of a pass that go together: of weights of as many parts.
struct Run {
    steps: usize,
    parts: usize,
    before: Before,
}

/// The tokens of a pass in parts.
pub(super) struct Tokens<'a> {
    /// For each strip, two tiles of tokens by two, and step by step.
    data: &'a [u16],
    runs: Vec<Run>,
    /// For each block of the pass.
    blocks: Vec<Before>,
    all: Before,
}

impl<'a> Tokens<'a> {
    /// Cuts the tokens that `pass` needs; nothing if one of them has no parts, and vectors must do.
    pub fn cut(pass: &Pass, terms: &[Term<'_>], m: usize, workspace: &'a mut [f32]) -> Option<Tokens<'a>> {
        let mut before = Before::default();
        let (mut runs, mut blocks): (Vec<Run>, Vec<_>) = (Vec::new(), Vec::new());
        for block in pass.blocks() {
            let parts = parts(terms, &terms[block.term]);
            blocks.push(before);
            for _ in 0..block.rows.div_ceil(DEPTH) {
                match runs.last_mut() {
                    Some(run) if run.parts == parts => run.steps += 1,
                    _ => runs.push(Run { steps: 1, parts, before }),
                }
                before.weights += 2 * parts;
                before.tokens += parts_beside(parts);
            }
        }
        let data = aligned(bytemuck::cast_slice_mut(workspace));
        let data = &mut data[..m.div_ceil(SIDE) * before.tokens * TILE];
        let a_strip = (STRIP / SIDE * before.tokens * TILE).max(1);
        let finite = data
            .par_chunks_mut(a_strip)
            .zip(strips(m).collect::<Vec<_>>())
            .map(|(data, strip)| {
                let cut = Cut { pass, terms, blocks: &blocks, tiles: before.tokens };
                with_scratch(Isa::Amx, |scratch| cut.strip(strip, data, &mut scratch.sums))
            })
            .reduce(|| true, |x, y| x && y);
        finite.then_some(Tokens { data, runs, blocks, all: before })
    }

    /// Adds the pass to the sums of a strip, `[columns, width]`, whose columns are whole groups. Where it is the `first`, they
    /// begin with the weights' [bias](Weights::begin).
    pub fn sweep(&self, strip: Strip, next: Option<Strip>, weights: &Weights, first: bool, sums: &mut [f32]) {
        let width = strip.width.next_multiple_of(LANES);
        let groups = sums.len() / (GROUP * width);
        let a_tile = self.all.tokens * TILE; // of all steps
        let tokens = &self.data[strip.first / SIDE * a_tile..][..width / SIDE * a_tile];
        // The next strip's tokens were cut long ago: these products ask for a share of them each, in order.
        let mut ahead = next.map_or(tokens, |next| &self.data[next.first / SIDE * a_tile..]).as_ptr();
        let bias = &weights.bias;
        let weights = &aligned_ref(&weights.data)[..groups * self.all.weights * TILE];
        // SAFETY: these products are asked for only where the machine has tiles, and no other lives in this task.
        let configured = unsafe { Configured::new() };
        for run in &self.runs {
            let (steps, parts) = (run.steps, run.parts);
            for (group, sums) in sums.chunks_exact_mut(GROUP * width).enumerate() {
                let a = &weights[(group * self.all.weights + run.before.weights) * TILE..][..steps * 2 * parts * TILE];
                for at in (0..width).step_by(2 * SIDE) {
                    let beside = ((width - at) / SIDE).min(2);
                    let b = &tokens[at / SIDE * a_tile + run.before.tokens * beside * TILE..]
                        [..steps * parts_beside(parts) * beside * TILE];
                    let c = sums[at..].as_mut_ptr();
                    let from = match first && run.before.weights == 0 {
                        true => (bias[group * BIAS..][..BIAS].as_ptr(), GROUP),
                        false => (c.cast_const(), width),
                    };
                    let operands = (a.as_ptr(), b.as_ptr());
                    let next_c = match (at + 2 * SIDE < width, group + 1 < groups) {
                        (true, _) => c.wrapping_add(2 * SIDE),
                        (false, true) => c.wrapping_add(GROUP * width - at),
                        (false, false) => c,
                    };
                    let asked = Ahead { c: next_c, operand: ahead };
                    ahead = ahead.wrapping_add(steps * AHEAD / size_of::<u16>());
                    // SAFETY: the slices were just seen to have the tiles of all steps; the sums have 32 rows of `width`
                    // elements, of which `beside` tiles lie from `at` on, and a group's bias has 32 of 32.
                    unsafe { amx::multiply(&configured, (parts, beside), steps, operands, from, (c, width), asked) };
                }
            }
        }
    }
}

/// The columns of a task in parts.
pub(super) struct Weights {
    /// For each group of columns, step by step.
    data: Vec<u16>,
    /// What the sums of each group begin with, as tiles hold it: `[32, 32]`, every row one number.
    bias: Vec<f32>,
}

impl Weights {
    pub const fn new() -> Weights {
        Weights { data: Vec::new(), bias: Vec::new() }
    }

    /// What the sums of as many columns as `bias` has begin with.
    pub fn begin(&mut self, bias: impl ExactSizeIterator<Item = f32>) {
        self.bias.resize(TASK_COLUMNS * GROUP, 0.0);
        let whole = bias.len().next_multiple_of(GROUP);
        for (row, x) in self.bias.chunks_exact_mut(GROUP).zip(bias.chain(std::iter::repeat(0.0)).take(whole)) {
            row.fill(x);
        }
    }

    /// Where they are kept, with room for what a task may have at most.
    fn room(&mut self) -> &mut [u16] {
        self.data.resize(DATA, 0);
        aligned(&mut self.data)
    }

    /// Cuts `columns` columns of block `index` from `first` on, counted from the task's, as [`Columns::read`](super::Columns::read)
    /// has written them. Whole groups are cut: the last one's missing columns are zeros.
    pub fn cut(
        &mut self,
        tokens: &Tokens<'_>,
        (index, block): (usize, &Block),
        terms: &[Term<'_>],
        (first, columns): (usize, usize),
        by_columns: &mut [f32],
    ) {
        let whole = columns.next_multiple_of(GROUP);
        by_columns[columns * BLOCK..whole * BLOCK].fill(0.0);
        let before = tokens.blocks[index].weights;
        let parts = parts(terms, &terms[block.term]);
        let data = self.room();
        for (group, numbers) in by_columns[..whole * BLOCK].chunks_exact(GROUP * BLOCK).enumerate() {
            let at = (first / GROUP + group) * tokens.all.weights + before;
            for step in 0..block.rows.div_ceil(DEPTH) {
                let tiles = &mut data[(at + step * 2 * parts) * TILE..][..2 * parts * TILE];
                for (row, numbers) in numbers.chunks_exact(BLOCK).enumerate() {
                    let numbers: &[f32; DEPTH] = numbers[step * DEPTH..][..DEPTH].try_into().expect("half a block");
                    let to = &mut tiles[row * DEPTH..][..(parts - 1) * 2 * TILE + DEPTH];
                    // SAFETY: tiles are asked for only where the machine has them and so AVX-512; each part's row of 32 lies
                    // in `to`.
                    unsafe { cut_columns(parts, numbers, to.as_mut_ptr()) };
                }
            }
        }
    }
}

/// # Safety
/// On a machine with AVX-512 F and BW; `to` has room for a row of each part, two tiles apart.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn cut_columns(parts: usize, numbers: &[f32; DEPTH], to: *mut u16) {
    use std::arch::x86_64::_mm512_loadu_ps;
    // SAFETY: the numbers are two vectors; the rest is the caller's.
    unsafe {
        let (left, right) = (_mm512_loadu_ps(numbers.as_ptr()), _mm512_loadu_ps(numbers.as_ptr().add(LANES)));
        amx::cut_row(parts, left, right, to, 2 * TILE);
    }
}

/// What cuts the tokens of a pass.
struct Cut<'a> {
    pass: &'a Pass,
    terms: &'a [Term<'a>],
    blocks: &'a [Before],
    /// Of sixteen tokens.
    tiles: usize,
}

impl Cut<'_> {
    /// Cuts the tokens of a strip; false if one has no parts. `numbers` is scratch for a block of them.
    fn strip(&self, strip: Strip, data: &mut [u16], numbers: &mut [f32]) -> bool {
        let width = strip.width.next_multiple_of(LANES);
        let mut finite = true;
        for (block, before) in self.pass.blocks().iter().zip(self.blocks) {
            let term = &self.terms[block.term];
            let (a, parts) = (&term.a, parts_beside(parts(self.terms, term)));
            let (rows, after) = match a.in_place(strip, block.start) {
                Some(rows) => rows.split_at(block.rows * width),
                None => {
                    let numbers = &mut numbers[..block.rows * width];
                    a.pack(Isa::Amx, strip, block.start..block.start + block.rows, width, numbers);
                    (&*numbers, &[][..])
                }
            };
            let next = rows.chunks(DEPTH * width).skip(1).chain([&after[..after.len().min(DEPTH * width)]]);
            for ((step, rows), next) in rows.chunks(DEPTH * width).enumerate().zip(next) {
                // Sixteen tokens of row after row are no stream that the machine follows by itself.
                prefetch(bytemuck::cast_slice(next));
                for tile in 0..width / SIDE {
                    let (pair, beside) = (tile / 2 * 2, (width / SIDE - tile / 2 * 2).min(2));
                    let at = pair * self.tiles + (before.tokens + step * parts) * beside + tile % 2;
                    let tiles = &mut data[at * TILE..][..((parts - 1) * beside + 1) * TILE];
                    // SAFETY: tiles are asked for only where the machine has them and so AVX-512.
                    finite &= unsafe { cut_tile(parts, rows, width, tile * SIDE, tiles, beside * TILE) };
                }
            }
        }
        finite
    }
}

/// Cuts sixteen tokens from `at` on of all rows, at most 32, of `width` tokens each, into parts `apart` bf16 apart.
///
/// # Safety
/// On a machine with AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn cut_tile(parts: usize, rows: &[f32], width: usize, at: usize, tiles: &mut [u16], apart: usize) -> bool {
    use std::arch::x86_64::{_mm512_loadu_ps, _mm512_setzero_ps};
    assert!(at + SIDE <= width && rows.len() <= DEPTH * width && tiles.len() >= (parts - 1) * apart + TILE);
    let count = rows.len() / width;
    let row = |index: usize| match index < count {
        // SAFETY: the row is there, and has sixteen tokens from `at` on, as was just checked.
        true => unsafe { _mm512_loadu_ps(rows.as_ptr().add(index * width + at)) },
        false => _mm512_setzero_ps(),
    };
    let mut beyond = false;
    for pair in 0..SIDE {
        let (even, odd) = (row(2 * pair), row(2 * pair + 1));
        // SAFETY: the row of each part lies in its tile.
        beyond |= unsafe { amx::cut_pair(parts, even, odd, tiles.as_mut_ptr().add(pair * DEPTH), apart) };
    }
    !beyond
}

/// The part of `data` that begins on a cache line.
fn aligned(data: &mut [u16]) -> &mut [u16] {
    let skip = data.as_ptr().align_offset(2 * LINE);
    &mut data[skip..]
}

/// The same of what is only read.
fn aligned_ref(data: &[u16]) -> &[u16] {
    let skip = data.as_ptr().align_offset(2 * LINE);
    &data[skip..]
}
