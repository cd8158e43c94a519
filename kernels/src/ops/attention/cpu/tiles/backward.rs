//! The backward pass: a task is one key/value head of one sequence, as [without tiles](super::super::backward).

use std::ops::Range;

use super::super::backward::{Out, Saved, differentiate_scores, put_sums, statistics};
use super::super::{Head, HeadOut, KEYS, Panel, carve, share};
use super::{
    BLOCK, ISA, Keys, LINE, NUMBERS, ROOM, Unit, aligned, at, blocks, carve_blocks, carve_panel, cut_left, cut_right,
    of, panel, turned,
};
use crate::ops::attention::Attention;
use crate::strips::SharedStrips;

/// Panels of queries that are taken together: so many blocks are summed before a block of dk and dv is stored.
const TOGETHER: usize = 2;
/// Blocks of a tile of keys.
const TILE_BLOCKS: usize = KEYS / BLOCK;

/// Elements of workspace for each thread.
pub(in super::super) fn slot_len(attention: &Attention) -> usize {
    let (tokens, features) = (blocks(attention.tokens), blocks(attention.head_dim));
    let keys = tokens * features * (3 * ROOM + 2 * NUMBERS);
    let queries = features * (TOGETHER * (4 * ROOM + 2 * NUMBERS) + NUMBERS);
    let tiles = 3 * NUMBERS + TOGETHER * (2 + TILE_BLOCKS) * ROOM;
    keys + queries + tiles + LINE
}

/// The gradients as [`backward`](crate::ops::attention::backward) defines them. `slots` holds a multiple of [`slot_len`]
/// elements.
pub(in super::super) fn backward(attention: &Attention, saved: Saved<'_>, gradients: Out<'_>, slots: &mut [f32]) {
    let Attention { batch, heads, kv_heads, head_dim: dim, .. } = *attention;
    let dq = SharedStrips::new(gradients.dq, attention.rows(), heads * dim);
    let dk = SharedStrips::new(gradients.dk, attention.rows(), kv_heads * dim);
    let dv = SharedStrips::new(gradients.dv, attention.rows(), kv_heads * dim);
    share(batch * kv_heads, slots, slot_len(attention), |task, scratch| {
        let group = Group {
            attention,
            tokens: blocks(attention.tokens),
            features: blocks(dim),
            sequence: task / kv_heads,
            head: task % kv_heads,
        };
        group.differentiate(saved, dq, dk, dv, aligned(scratch));
    });
}

/// One key/value head of one sequence.
struct Group<'a> {
    attention: &'a Attention,
    /// Blocks of the sequence and of a head's features.
    tokens: usize,
    features: usize,
    sequence: usize,
    head: usize,
}

/// K and V, cut, and the sums of their gradients: for each block of keys, blocks of features.
struct Packed<'a> {
    k: &'a mut [u16],
    v: &'a mut [u16],
    k_features: &'a mut [u16],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// Panels of queries of one head. What they are multiplied by is cut: for each panel, block after block of features; and turned
/// over, for each block of features, panel after panel.
struct Queries<'a> {
    /// scale·q, of one panel at a time.
    q_columns: &'a mut [f32],
    q: &'a mut [u16],
    d_out: &'a mut [u16],
    q_features: &'a mut [u16],
    d_out_features: &'a mut [u16],
    /// dout `[hd, 32]`, then dq / scale, panel after panel.
    d_columns: &'a mut [f32],
    dq: &'a mut [f32],
    /// One a query.
    lse: [[f32; BLOCK]; TOGETHER],
    delta: [[f32; BLOCK]; TOGETHER],
}

/// A block of scores, then probabilities; of the gradients of either; and these cut, panel after panel.
struct Tiles<'a> {
    p: &'a mut [f32],
    dp: &'a mut [f32],
    ds: &'a mut [f32],
    p_left: &'a mut [u16],
    ds_left: &'a mut [u16],
    /// For each panel, block after block of a tile of keys.
    ds_right: &'a mut [u16],
}

impl Group<'_> {
    fn differentiate(
        &self,
        saved: Saved<'_>,
        dq: SharedStrips<'_>,
        dk: SharedStrips<'_>,
        dv: SharedStrips<'_>,
        mut scratch: &mut [f32],
    ) {
        let Attention { tokens, heads, kv_heads, head_dim: dim, scale, .. } = *self.attention;
        let (features, all) = (self.features, self.tokens * self.features);
        let scratch = &mut scratch;
        let mut packed = Packed {
            k: carve_blocks(scratch, all),
            v: carve_blocks(scratch, all),
            k_features: carve_blocks(scratch, all),
            dk: carve(scratch, all * NUMBERS),
            dv: carve(scratch, all * NUMBERS),
        };
        let mut queries = Queries {
            q_columns: carve_panel(scratch, dim),
            q: carve_blocks(scratch, TOGETHER * features),
            d_out: carve_blocks(scratch, TOGETHER * features),
            q_features: carve_blocks(scratch, TOGETHER * features),
            d_out_features: carve_blocks(scratch, TOGETHER * features),
            d_columns: carve(scratch, TOGETHER * features * NUMBERS),
            dq: carve(scratch, TOGETHER * features * NUMBERS),
            lse: [[0.0; BLOCK]; TOGETHER],
            delta: [[0.0; BLOCK]; TOGETHER],
        };
        queries.d_columns.fill(0.0);
        let mut tiles = Tiles {
            p: carve(scratch, NUMBERS),
            dp: carve(scratch, NUMBERS),
            ds: carve(scratch, NUMBERS),
            p_left: carve_blocks(scratch, TOGETHER),
            ds_left: carve_blocks(scratch, TOGETHER),
            ds_right: carve_blocks(scratch, TOGETHER * TILE_BLOCKS),
        };
        self.pack(saved, &mut packed, queries.q_columns);
        let unit = Unit::new();
        let group = heads / kv_heads;
        for head in self.head * group..(self.head + 1) * group {
            let dq = HeadOut::new(dq, self.attention, self.sequence, head);
            for first in (0..self.tokens).step_by(TOGETHER) {
                let last = self.tokens - 1;
                let panels: [_; TOGETHER] =
                    std::array::from_fn(|index| panel(self.attention, (first + index).min(last)));
                let panels = &panels[..TOGETHER.min(self.tokens - first)];
                for (index, panel) in panels.iter().enumerate() {
                    let columns = &mut queries.d_columns[index * features * NUMBERS..][..features * NUMBERS];
                    // SAFETY: these query heads of this sequence are this task's alone.
                    unsafe { dq.read_columns(ISA, panel.queries(), (dim, BLOCK), columns) };
                    self.load(saved, head, (index, *panel), &mut queries);
                }
                self.accumulate(&unit, panels, &mut packed, &mut queries, &mut tiles);
                for (panel, columns) in panels.iter().zip(queries.dq.chunks_exact(features * NUMBERS)) {
                    // SAFETY: as above.
                    unsafe { dq.put_columns(ISA, panel.queries(), columns, (dim, BLOCK), &[scale; BLOCK]) };
                }
            }
        }
        for (sums, out) in [(packed.dk, dk), (packed.dv, dv)] {
            let out = HeadOut::new(out, self.attention, self.sequence, self.head);
            // SAFETY: this key/value head of this sequence is this task's alone.
            unsafe { put_sums(ISA, out, (tokens, dim), (BLOCK, BLOCK), sums) };
        }
    }

    fn pack(&self, saved: Saved<'_>, packed: &mut Packed<'_>, panel: &mut [f32]) {
        let Attention { tokens, kv_heads, .. } = *self.attention;
        let [k, v] = [saved.k, saved.v].map(|of| Head::new(of, self.attention, self.sequence, kv_heads, self.head));
        Keys { by_keys: packed.k, by_features: packed.k_features }.cut(k, tokens, panel);
        Keys { by_keys: packed.v, by_features: &mut [] }.cut(v, tokens, panel);
        packed.dk.fill(0.0);
        packed.dv.fill(0.0);
    }

    /// Reads a panel of queries whose dout is there already: everything of it that the tiles need, so that dq may then
    /// overwrite dout.
    fn load(&self, saved: Saved<'_>, head: usize, (index, panel): (usize, Panel), queries: &mut Queries<'_>) {
        let Attention { heads, scale, .. } = *self.attention;
        let features = self.features;
        let q = Head::new(saved.q, self.attention, self.sequence, heads, head);
        q.pack_columns(ISA, panel.queries(), scale, BLOCK, queries.q_columns);
        let d_out = &queries.d_columns[index * features * NUMBERS..][..features * NUMBERS];
        for (numbers, cut, cut_features) in [
            (&*queries.q_columns, &mut *queries.q, &mut *queries.q_features),
            (d_out, &mut *queries.d_out, &mut *queries.d_out_features),
        ] {
            for (feature, numbers) in numbers.chunks_exact(NUMBERS).enumerate() {
                cut_right(numbers, at(cut, index * features + feature));
                cut_right(&turned(numbers), at(cut_features, feature * TOGETHER + index));
            }
        }
        let (lse, delta) = (&mut queries.lse[index], &mut queries.delta[index]);
        statistics(ISA, self.attention, saved, (self.sequence, head), panel, d_out, lse, delta);
    }

    /// All tiles of some panels of queries: adds to dk and dv, and leaves dq.
    fn accumulate(
        &self,
        unit: &Unit,
        panels: &[Panel],
        packed: &mut Packed<'_>,
        queries: &mut Queries<'_>,
        tiles: &mut Tiles<'_>,
    ) {
        let (tokens, features) = (self.tokens, self.features);
        let first = panels.first().expect("a panel").visible().start;
        let last = panels.last().expect("a panel").visible().end;
        let mut started = [false; TOGETHER];
        for start in (first / BLOCK..blocks(last)).step_by(TILE_BLOCKS) {
            let tile = start..blocks(last).min(start + TILE_BLOCKS);
            let mut seen: [Range<usize>; TOGETHER] = std::array::from_fn(|_| 0..0);
            for block in tile.clone() {
                let mut by = 0..0;
                for (index, panel) in panels.iter().enumerate() {
                    let visible = panel.visible();
                    if !(visible.start / BLOCK..blocks(visible.end)).contains(&block) {
                        continue;
                    }
                    extend(&mut by, index);
                    extend(&mut seen[index], block - start);
                    self.differentiate_block(unit, (index, panel), (block, block - start), packed, queries, tiles);
                }
                if by.is_empty() {
                    continue;
                }
                let (p, ds) = (of(tiles.p_left, by.clone()), of(tiles.ds_left, by.clone()));
                let sums = block * features * NUMBERS..(block + 1) * features * NUMBERS;
                let d_keys = packed.dk[sums.clone()].chunks_exact_mut(NUMBERS);
                let d_values = packed.dv[sums].chunks_exact_mut(NUMBERS);
                for (feature, (dk, dv)) in d_keys.zip(d_values).enumerate() {
                    let of_panels = feature * TOGETHER + by.start..feature * TOGETHER + by.end;
                    unit.multiply(p, of(queries.d_out_features, of_panels.clone()), dv, true);
                    unit.multiply(ds, of(queries.q_features, of_panels), dk, true);
                }
            }
            let all = queries.dq.chunks_exact_mut(features * NUMBERS);
            for (index, ((seen, dq), started)) in seen.iter().zip(all).zip(&mut started).enumerate() {
                if seen.is_empty() {
                    continue;
                }
                let ds = of(tiles.ds_right, index * TILE_BLOCKS + seen.start..index * TILE_BLOCKS + seen.end);
                for (feature, dq) in dq.chunks_exact_mut(NUMBERS).enumerate() {
                    let keys = feature * tokens + start;
                    unit.multiply(of(packed.k_features, keys + seen.start..keys + seen.end), ds, dq, *started);
                }
                *started = true;
            }
        }
    }

    /// One block of keys and one panel: its probabilities and the gradients of its scores, cut.
    fn differentiate_block(
        &self,
        unit: &Unit,
        (index, panel): (usize, &Panel),
        (block, in_tile): (usize, usize),
        packed: &Packed<'_>,
        queries: &Queries<'_>,
        tiles: &mut Tiles<'_>,
    ) {
        let features = self.features;
        let (keys, of_panel) = (block * features..(block + 1) * features, index * features..(index + 1) * features);
        unit.multiply(of(packed.k, keys.clone()), of(queries.q, of_panel.clone()), tiles.p, false);
        unit.multiply(of(packed.v, keys), of(queries.d_out, of_panel), tiles.dp, false);
        panel.mask(block * BLOCK, tiles.p);
        differentiate_scores(ISA, tiles.p, tiles.dp, tiles.ds, BLOCK, &queries.lse[index], &queries.delta[index]);
        cut_left(tiles.p, at(tiles.p_left, index));
        cut_left(tiles.ds, at(tiles.ds_left, index));
        cut_right(tiles.ds, at(tiles.ds_right, index * TILE_BLOCKS + in_tile));
    }
}

/// Takes the next number into a range of those that follow each other.
fn extend(range: &mut Range<usize>, next: usize) {
    if range.start == range.end {
        range.start = next;
    }
    range.end = next + 1;
}
