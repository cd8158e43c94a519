//! The CPU's embeddings. A table has a row for each token, an activation a row for each feature: blocks of a few tokens and
//! features are turned over on the way. A table's gradient is summed a few features a task, each task walking all tokens in
//! order, so that tokens that share a row add up in the same order on any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::shared::SharedRows;
use crate::simd::{Isa, LANES, transpose, transpose_into};
use crate::strips::{Piece, SharedStrips, Strips, lane_groups};
use crate::weight::WeightRef;

/// Features of a block.
const FEATURES: usize = 128;

pub(super) fn lookup(isa: Isa, tokens: &[u32], table: WeightRef<'_>, y: &mut [f32]) {
    write_rows(isa, table, tokens.len(), |n| tokens[n] as usize, y, false);
}

pub(super) fn add_positions(isa: Isa, table: WeightRef<'_>, tokens: usize, offset: usize, y: &mut [f32]) {
    write_rows(isa, table, y.len() / table.cols(), |n| offset + n % tokens, y, true);
}

/// Writes, or adds, the table's row `row(n)` to each token n.
fn write_rows(isa: Isa, table: WeightRef<'_>, n: usize, row: impl Fn(usize) -> usize + Sync, y: &mut [f32], add: bool) {
    let cols = table.cols();
    let y = SharedStrips::new(y, n, cols);
    let groups: Vec<Piece> = lane_groups(n, LANES).collect();
    groups.par_iter().for_each(|group| {
        let mut block = [0.0f32; LANES * FEATURES];
        for features in blocks(cols) {
            for (lane, out) in group.lanes.clone().zip(block.chunks_exact_mut(FEATURES)) {
                table.read(row(group.strip.first + lane), features.clone(), &mut out[..features.len()]);
            }
            let shape = (group.lanes.len(), features.len());
            let to = y.pointer(group, features.start);
            // SAFETY: a group's tokens are one task's alone; its features are `width` apart.
            unsafe { transpose_into(isa, shape, &block, FEATURES, to, group.strip.width, add) };
        }
    });
}

/// table[row(n)] += dy[n] for each n in order; `dy` has `n` tokens of `cols` features.
pub(super) fn add_rows(
    isa: Isa,
    dy: &[f32],
    (n, cols): (usize, usize),
    row: impl Fn(usize) -> usize + Sync,
    table: &mut [f32],
) {
    let (dy, table) = (Strips::new(dy, n, cols), SharedRows::new(table, cols));
    let blocks: Vec<Range<usize>> = blocks(cols).collect();
    blocks.into_par_iter().for_each(|features| {
        let mut block = [0.0f32; LANES * FEATURES];
        for group in lane_groups(n, LANES) {
            let from = &dy.rows(group.strip, features.start)[group.lanes.start..];
            transpose(isa, (features.len(), group.lanes.len()), from, group.strip.width, &mut block, FEATURES);
            for (lane, dy) in group.lanes.clone().zip(block.chunks_exact(FEATURES)) {
                // SAFETY: these features of all rows are one task's alone.
                let sums = unsafe { table.row(row(group.strip.first + lane), features.start, features.len()) };
                sums.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            }
        }
    });
}

fn blocks(cols: usize) -> impl Iterator<Item = Range<usize>> {
    (0..cols).step_by(FEATURES).map(move |first| first..cols.min(first + FEATURES))
}
