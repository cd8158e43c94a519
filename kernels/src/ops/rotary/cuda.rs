//! The GPU's rotary embedding: the launch of rotary.cu.

use super::{Direction, RotaryTable};
use crate::device::{Buffer, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::kernel_name;

static KERNELS: Source = Source { name: "rotary", ptx: include_str!("../../../ptx/rotary.ptx") };

/// As in rotary.cu: positions of a block, a warp for each.
const WARPS: usize = 4;
/// As in rotary.cu: heads that a group of lanes turns.
const HEADS: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
}

pub(super) fn rotate(gpu: &Gpu, x: &mut Buffer, table: &RotaryTable, shape: Shape, direction: Direction) -> Result<()> {
    let Shape { rows, tokens, heads, head_dim } = shape;
    let (pairs, vector) = (table.pairs, 16 / x.dtype().size());
    if rows == 0 || pairs == 0 {
        return Ok(());
    }
    let whole = pairs.is_multiple_of(vector) && head_dim.is_multiple_of(vector);
    let lanes = (if whole { pairs / vector } else { pairs }).min(32);
    let heads_of_warp = 32 / lanes * HEADS;
    let launch = gpu
        .launch(&KERNELS, kernel_name!("rotary", x.dtype(), whole: whole))?
        .grid([tokens.min(rows).div_ceil(WARPS), (rows.div_ceil(tokens) * heads).div_ceil(heads_of_warp), 1])
        .block([32, WARPS, 1])
        .write(x)
        .read(&table.cos)
        .read(&table.sin)
        .dimension("rows", rows)
        .dimension("tokens", tokens)
        .dimension("heads", heads)
        .dimension("features of a head", head_dim)
        .dimension("pairs", pairs)
        .value(if direction == Direction::Forward { 1.0f32 } else { -1.0 });
    // SAFETY: `mod.rs` checks that x has `rows` rows of `heads` heads, that the pairs fit into a head, and that the table
    // has `tokens` positions.
    Ok(unsafe { launch.run() }?)
}
