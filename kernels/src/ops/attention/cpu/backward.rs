//! The backward pass: a task is one key/value head of one sequence, with all the queries that see it. Each of its tiles is
//! computed once and serves dq, dk and dv, and nothing is summed across tasks.

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Head, HeadOut, KEYS, Panel, carve, share};
use crate::ops::attention::Attention;
use crate::simd::{F32x16, Isa, LANES, transpose};
use crate::simd_fn;
use crate::strips::SharedStrips;
use crate::tile::{TALLEST, Tile, WIDEST};

/// What forward left.
#[derive(Clone, Copy)]
pub(in crate::ops::attention) struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

/// What backward writes. `dq` holds the output's gradient before.
pub(in crate::ops::attention) struct Out<'a> {
    pub dq: &'a mut [f32],
    pub dk: &'a mut [f32],
    pub dv: &'a mut [f32],
}

/// Elements of workspace for each thread, whatever MR and NR are.
pub(in crate::ops::attention) fn slot_len(isa: Isa, attention: &Attention) -> usize {
    #[cfg(target_arch = "x86_64")]
    if tiles::pay(isa, attention) {
        return tiles::backward_slot_len(attention);
    }
    let _ = isa;
    let (tokens, dim) = (attention.tokens, attention.head_dim);
    let (tall_tokens, tall_dim, wide_dim) = (tokens + TALLEST - 1, dim + TALLEST - 1, dim + WIDEST - 1);
    let packed = 2 * tall_tokens * dim + tall_dim * tokens;
    let gradients = 2 * tall_tokens * wide_dim;
    let panel = WIDEST * (2 * dim + 2 * wide_dim + tall_dim);
    let tiles = WIDEST * (2 * TALLEST + KEYS);
    packed + gradients + panel + tiles
}

/// The gradients as [`backward`](crate::ops::attention::backward) defines them. `slots` holds a multiple of [`slot_len`]
/// elements.
pub(in crate::ops::attention) fn backward(
    isa: Isa,
    attention: &Attention,
    saved: Saved<'_>,
    gradients: Out<'_>,
    slots: &mut [f32],
) {
    let Attention { batch, heads, kv_heads, head_dim: dim, .. } = *attention;
    if gradients.dk.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if tiles::pay(isa, attention) {
        return tiles::backward(attention, saved, gradients, slots);
    }
    let dq = SharedStrips::new(gradients.dq, attention.rows(), heads * dim);
    let dk = SharedStrips::new(gradients.dk, attention.rows(), kv_heads * dim);
    let dv = SharedStrips::new(gradients.dv, attention.rows(), kv_heads * dim);
    share(batch * kv_heads, slots, slot_len(isa, attention), |task, scratch| {
        let (sequence, head) = (task / kv_heads, task % kv_heads);
        let group = Group { isa, tile: Tile::of(isa), attention, sequence, head };
        group.differentiate(saved, dq, dk, dv, scratch);
    });
}

/// One key/value head of one sequence.
struct Group<'a> {
    isa: Isa,
    tile: Tile,
    attention: &'a Attention,
    sequence: usize,
    head: usize,
}

/// K and V as the micro-kernel reads them.
struct Packed<'a> {
    /// Panels of MR keys, `[hd, MR]` each.
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// Panels of MR features, `[T, MR]` each.
    k_features: &'a mut [f32],
}

/// The gradients of K and V: for each MR keys, panels of NR features, `[MR, NR]` each.
struct Sums<'a> {
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// A panel of queries of one head.
struct Queries<'a> {
    /// scale·q and dout, `[hd, NR]`.
    q: &'a mut [f32],
    d_out: &'a mut [f32],
    /// scale·q and dout again: panels of NR features, `[NR, NR]` each.
    q_features: &'a mut [f32],
    d_out_features: &'a mut [f32],
    /// dq / scale, `[hd, NR]`, features rounded up to MR.
    dq: &'a mut [f32],
    /// One a query.
    lse: [f32; WIDEST],
    delta: [f32; WIDEST],
}

/// Scores, then probabilities, `[MR, NR]`; gradients of the probabilities; gradients of the scores, `[KEYS, NR]`.
struct Tiles<'a> {
    p: &'a mut [f32],
    dp: &'a mut [f32],
    ds: &'a mut [f32],
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
        let (mr, nr) = (self.tile.mr, self.tile.nr);
        let (tall_tokens, tall_dim) = (tokens.next_multiple_of(mr), dim.next_multiple_of(mr));
        let wide_dim = dim.next_multiple_of(nr);
        let packed = Packed {
            k: carve(&mut scratch, tall_tokens * dim),
            v: carve(&mut scratch, tall_tokens * dim),
            k_features: carve(&mut scratch, tall_dim * tokens),
        };
        let mut sums =
            Sums { dk: carve(&mut scratch, tall_tokens * wide_dim), dv: carve(&mut scratch, tall_tokens * wide_dim) };
        let mut queries = Queries {
            q: carve(&mut scratch, dim * nr),
            d_out: carve(&mut scratch, dim * nr),
            q_features: carve(&mut scratch, nr * wide_dim),
            d_out_features: carve(&mut scratch, nr * wide_dim),
            dq: carve(&mut scratch, tall_dim * nr),
            lse: [0.0; WIDEST],
            delta: [0.0; WIDEST],
        };
        let mut tiles = Tiles {
            p: carve(&mut scratch, mr * nr),
            dp: carve(&mut scratch, mr * nr),
            ds: carve(&mut scratch, KEYS * nr),
        };
        let packed = self.pack(saved, packed);
        sums.dk.fill(0.0);
        sums.dv.fill(0.0);
        let group = heads / kv_heads;
        for head in self.head * group..(self.head + 1) * group {
            let dq = HeadOut::new(dq, self.attention, self.sequence, head);
            for panel in 0..Panel::count(self.attention, nr) {
                let panel = Panel::new(self.attention, panel, nr);
                // SAFETY: these query heads of this sequence are this task's alone.
                unsafe { dq.read_columns(self.isa, panel.queries(), (dim, nr), queries.d_out) };
                self.load(saved, head, panel, &mut queries);
                self.accumulate(panel, &packed, &mut queries, &mut tiles, &mut sums);
                // SAFETY: as above.
                unsafe { dq.put_columns(self.isa, panel.queries(), queries.dq, (dim, nr), &[scale; WIDEST]) };
            }
        }
        for (sums, out) in [(sums.dk, dk), (sums.dv, dv)] {
            let out = HeadOut::new(out, self.attention, self.sequence, self.head);
            // SAFETY: this key/value head of this sequence is this task's alone.
            unsafe { put_sums(self.isa, out, (tokens, dim), (mr, nr), sums) };
        }
    }

    fn pack<'a>(&self, saved: Saved<'_>, packed: Packed<'a>) -> Packed<'a> {
        let Attention { tokens, kv_heads, head_dim: dim, .. } = *self.attention;
        let mr = self.tile.mr;
        let k = Head::new(saved.k, self.attention, self.sequence, kv_heads, self.head);
        let v = Head::new(saved.v, self.attention, self.sequence, kv_heads, self.head);
        for first in (0..tokens).step_by(mr) {
            let keys = first..tokens.min(first + mr);
            k.pack_columns(self.isa, keys.clone(), 1.0, mr, &mut packed.k[first * dim..][..mr * dim]);
            v.pack_columns(self.isa, keys, 1.0, mr, &mut packed.v[first * dim..][..mr * dim]);
        }
        k.pack_features(self.isa, 0..tokens, tokens, mr, packed.k_features);
        packed
    }

    /// Reads a panel of queries whose `d_out` is there already: everything of it that the tiles need, so that dq may then
    /// overwrite dout.
    fn load(&self, saved: Saved<'_>, head: usize, panel: Panel, queries: &mut Queries<'_>) {
        let Attention { heads, scale, head_dim: dim, .. } = *self.attention;
        let (isa, nr) = (self.isa, self.tile.nr);
        let q = Head::new(saved.q, self.attention, self.sequence, heads, head);
        q.pack_columns(isa, panel.queries(), scale, nr, queries.q);
        turn(isa, dim, nr, queries.q, queries.q_features);
        turn(isa, dim, nr, queries.d_out, queries.d_out_features);
        let of_head = (self.sequence, head);
        statistics(isa, self.attention, saved, of_head, panel, queries.d_out, &mut queries.lse, &mut queries.delta);
    }

    /// All tiles of one panel of queries: adds to dk and dv, and leaves dq.
    fn accumulate(
        &self,
        panel: Panel,
        packed: &Packed<'_>,
        queries: &mut Queries<'_>,
        tiles: &mut Tiles<'_>,
        sums: &mut Sums<'_>,
    ) {
        let Attention { tokens, head_dim: dim, .. } = *self.attention;
        let (mr, nr, tile) = (self.tile.mr, self.tile.nr, &self.tile);
        let wide_dim = dim.next_multiple_of(nr);
        let mut started = false;
        for keys in panel.tiles(mr) {
            for (key, ds) in keys.clone().step_by(mr).zip(tiles.ds.chunks_exact_mut(mr * nr)) {
                tile.multiply(dim, &packed.k[key * dim..], queries.q, tiles.p, false);
                tile.multiply(dim, &packed.v[key * dim..], queries.d_out, tiles.dp, false);
                panel.mask(key, tiles.p);
                differentiate_scores(self.isa, tiles.p, tiles.dp, ds, nr, &queries.lse, &queries.delta);
                let block = key * wide_dim..(key + mr) * wide_dim;
                for (sum, d_out) in
                    sums.dv[block.clone()].chunks_exact_mut(mr * nr).zip(queries.d_out_features.chunks_exact(nr * nr))
                {
                    tile.multiply_tile(tiles.p, d_out, sum, true);
                }
                for (sum, q) in sums.dk[block].chunks_exact_mut(mr * nr).zip(queries.q_features.chunks_exact(nr * nr)) {
                    tile.multiply_tile(ds, q, sum, true);
                }
            }
            for (k, dq) in packed.k_features.chunks_exact(tokens * mr).zip(queries.dq.chunks_exact_mut(mr * nr)) {
                tile.multiply(keys.len(), &k[keys.start * mr..], tiles.ds, dq, started);
            }
            started = true;
        }
    }
}

/// lse and δ of a panel of queries of (sequence, head), whose dout is `[hd, NR]`, one a lane.
#[allow(clippy::too_many_arguments)]
pub(super) fn statistics(
    isa: Isa,
    attention: &Attention,
    saved: Saved<'_>,
    (sequence, head): (usize, usize),
    panel: Panel,
    d_out: &[f32],
    lse: &mut [f32],
    delta: &mut [f32],
) {
    let Attention { tokens, heads, .. } = *attention;
    // A lane without a query has p = exp(s − ∞) = 0 and adds nothing anywhere.
    lse.fill(f32::INFINITY);
    lse[..panel.queries].copy_from_slice(&saved.lse[(sequence * heads + head) * tokens..][..tokens][panel.queries()]);
    delta.fill(0.0);
    let out = Head::new(saved.out, attention, sequence, heads, head);
    let mut at = 0;
    for piece in out.pieces(panel.queries()) {
        for (feature, d_out) in d_out.chunks_exact(panel.nr).enumerate().take(out.dim) {
            add_products(isa, &d_out[at..], out.data.row(&piece, feature), &mut delta[at..]);
        }
        at += piece.lanes.len();
    }
}

/// Writes the sums of a key/value head's gradient: for each `mr` keys, blocks of `nr` features, `[mr, nr]` each.
///
/// # Safety
/// No one else uses the head of `out` meanwhile.
pub(super) unsafe fn put_sums(
    isa: Isa,
    out: HeadOut<'_>,
    (tokens, dim): (usize, usize),
    (mr, nr): (usize, usize),
    sums: &[f32],
) {
    for (first, block) in (0..tokens).step_by(mr).zip(sums.chunks_exact(mr * dim.next_multiple_of(nr))) {
        let keys = first..tokens.min(first + mr);
        for (feature, tile) in (0..dim).step_by(nr).zip(block.chunks_exact(mr * nr)) {
            // SAFETY: the caller's.
            unsafe { out.put_rows(isa, keys.clone(), (feature, nr.min(dim - feature)), tile, nr) };
        }
    }
}

simd_fn! {
    /// `p` holds scores `[.., nr]`: p ← exp(p − lse), ds ← p·(dp − δ); lse and δ are one a column.
    pub(super) fn differentiate_scores(p: &mut [f32], dp: &[f32], ds: &mut [f32], nr: usize, lse: &[f32], delta: &[f32]) {
        for lane in (0..nr).step_by(LANES) {
            let (lse, delta) = (F32x16::load(&lse[lane..]), F32x16::load(&delta[lane..]));
            for ((p, dp), ds) in p.chunks_exact_mut(nr).zip(dp.chunks_exact(nr)).zip(ds.chunks_exact_mut(nr)) {
                let probability = F32x16::load(&p[lane..]).sub(lse).exp::<FMA>();
                probability.store(&mut p[lane..]);
                probability.mul(F32x16::load(&dp[lane..]).sub(delta)).store(&mut ds[lane..]);
            }
        }
    }
}

/// Turns `[dim, nr]` into panels of NR features, `[nr, nr]` each; features past the last are zero.
fn turn(isa: Isa, dim: usize, nr: usize, from: &[f32], to: &mut [f32]) {
    for (first, to) in (0..dim).step_by(nr).zip(to.chunks_exact_mut(nr * nr)) {
        let features = nr.min(dim - first);
        if features < nr {
            to.fill(0.0);
        }
        transpose(isa, (features, nr), &from[first * nr..], nr, to, nr);
    }
}

simd_fn! {
    /// sums += a·b, lane by lane, as far as `b` goes.
    fn add_products(a: &[f32], b: &[f32], sums: &mut [f32]) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}
