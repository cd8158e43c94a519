//! The forward pass: a task is one panel of queries of one head.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Head, HeadOut, KEYS, Panel, carve, share};
use crate::ops::attention::Attention;
use crate::shared::SharedRows;
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::strips::SharedStrips;
use crate::tile::{TALLEST, Tile, WIDEST};

/// What forward writes: `out` `[B·T, H·hd]` and `lse` `[B, H, T]`.
pub(in crate::ops::attention) struct Output<'a> {
    pub out: &'a mut [f32],
    pub lse: &'a mut [f32],
}

/// Stands for −∞ in a running maximum, where −∞ − (−∞) would not be a number.
pub(super) const LOWEST: f32 = -1e30;

/// Elements of workspace that all threads share: K and V of one sequence, packed.
pub(in crate::ops::attention) fn shared_len(isa: Isa, attention: &Attention) -> usize {
    #[cfg(target_arch = "x86_64")]
    if tiles::pay(isa, attention) {
        return tiles::shared_len(attention);
    }
    let _ = isa;
    attention.kv_heads * packed_len(attention)
}

/// One head's K, its tokens rounded up to MR, and V, its features rounded up; whatever MR is.
fn packed_len(attention: &Attention) -> usize {
    let (tokens, dim) = (attention.tokens, attention.head_dim);
    (tokens + TALLEST - 1) * dim + tokens * (dim + TALLEST - 1)
}

/// Elements of workspace for each thread: a panel of queries, a tile of scores, a panel of outputs.
pub(in crate::ops::attention) fn slot_len(isa: Isa, attention: &Attention) -> usize {
    #[cfg(target_arch = "x86_64")]
    if tiles::pay(isa, attention) {
        return tiles::forward_slot_len(attention);
    }
    let _ = isa;
    WIDEST * (attention.head_dim + KEYS + attention.head_dim + TALLEST - 1)
}

/// Attention as [`forward`](crate::ops::attention::forward) defines it. `shared` holds [`shared_len`] elements, `slots`
/// a multiple of [`slot_len`].
pub(in crate::ops::attention) fn forward(
    isa: Isa,
    attention: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: Output<'_>,
    shared: &mut [f32],
    slots: &mut [f32],
) {
    let Attention { batch, tokens, heads, kv_heads, head_dim: dim, .. } = *attention;
    if output.out.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if tiles::pay(isa, attention) {
        return tiles::forward(attention, [q, k, v], output, shared, slots);
    }
    let tile = Tile::of(isa);
    let out = SharedStrips::new(output.out, attention.rows(), heads * dim);
    let lse = SharedRows::new(output.lse, tokens);
    let panels = Panel::count(attention, tile.nr);
    for sequence in 0..batch {
        shared.par_chunks_exact_mut(packed_len(attention)).enumerate().for_each(|(head, packed)| {
            let k = Head::new(k, attention, sequence, kv_heads, head);
            let v = Head::new(v, attention, sequence, kv_heads, head);
            Packed::split(attention, &tile, packed).fill(isa, &tile, k, v, tokens);
        });
        let shared: &[f32] = shared;
        share(heads * panels, slots, slot_len(isa, attention), |task, scratch| {
            // The panels that see most go first, so that the last to finish are short.
            let (panel, head) = (panels - 1 - task / heads, task % heads);
            let panel = Panel::new(attention, panel, tile.nr);
            let kv_head = head / (heads / kv_heads);
            let packed = &shared[kv_head * packed_len(attention)..][..packed_len(attention)];
            let (k, v) = packed.split_at((tokens + TALLEST - 1) * dim);
            let q = Head::new(q, attention, sequence, heads, head);
            let scores = Scores { isa, tile, panel, tokens, dim, scale: attention.scale };
            // SAFETY: a panel of queries of a head is one task's alone.
            let lse = unsafe { lse.row(sequence * heads + head, panel.first, panel.queries) };
            let out = HeadOut::new(out, attention, sequence, head);
            // SAFETY: as above.
            unsafe { scores.attend(q, k, v, out, lse, scratch) };
        });
    }
}

/// Where one head's K and V are packed to.
struct Packed<'a> {
    k: &'a mut [f32],
    v: &'a mut [f32],
}

impl<'a> Packed<'a> {
    fn split(attention: &Attention, tile: &Tile, packed: &'a mut [f32]) -> Packed<'a> {
        let (tokens, dim) = (attention.tokens, attention.head_dim);
        let (k, v) = packed.split_at_mut((tokens + TALLEST - 1) * dim);
        Packed {
            k: &mut k[..tokens.next_multiple_of(tile.mr) * dim],
            v: &mut v[..tokens * dim.next_multiple_of(tile.mr)],
        }
    }

    fn fill(self, isa: Isa, tile: &Tile, k: Head<'_>, v: Head<'_>, tokens: usize) {
        for (first, out) in (0..tokens).step_by(tile.mr).zip(self.k.chunks_exact_mut(tile.mr * k.dim)) {
            k.pack_columns(isa, first..tokens.min(first + tile.mr), 1.0, tile.mr, out);
        }
        v.pack_features(isa, 0..tokens, tokens, tile.mr, self.v);
    }
}

/// One task: a panel of queries of one head against all keys that it sees.
struct Scores {
    isa: Isa,
    tile: Tile,
    panel: Panel,
    tokens: usize,
    dim: usize,
    scale: f32,
}

impl Scores {
    /// # Safety
    /// No one else uses these queries of `result` meanwhile.
    unsafe fn attend(
        &self,
        q: Head<'_>,
        k: &[f32],
        v: &[f32],
        result: HeadOut<'_>,
        lse: &mut [f32],
        mut scratch: &mut [f32],
    ) {
        let (mr, nr, dim) = (self.tile.mr, self.tile.nr, self.dim);
        let queries = carve(&mut scratch, dim * nr);
        let scores = carve(&mut scratch, KEYS * nr);
        let out = carve(&mut scratch, dim.next_multiple_of(mr) * nr);
        let (mut largest, mut total, mut shrink) = ([LOWEST; WIDEST], [0.0; WIDEST], [0.0; WIDEST]);
        q.pack_columns(self.isa, self.panel.queries(), self.scale, nr, queries);
        let mut started = false;
        for keys in self.panel.tiles(mr) {
            let scores = &mut scores[..keys.len().next_multiple_of(mr) * nr];
            for (key, scores) in keys.clone().step_by(mr).zip(scores.chunks_exact_mut(mr * nr)) {
                self.tile.multiply(dim, &k[key * dim..], queries, scores, false);
            }
            let scores = &mut scores[..keys.len() * nr];
            self.panel.mask(keys.start, scores);
            soften(self.isa, scores, nr, &mut largest, &mut total, &mut shrink);
            if started {
                scale_rows(self.isa, out, nr, &shrink);
            }
            for (v, out) in v.chunks_exact(self.tokens * mr).zip(out.chunks_exact_mut(mr * nr)) {
                self.tile.multiply(keys.len(), &v[keys.start * mr..], scores, out, started);
            }
            started = true;
        }
        for (query, lse) in lse.iter_mut().enumerate() {
            *lse = largest[query] + total[query].ln();
            shrink[query] = 1.0 / total[query];
        }
        // SAFETY: the caller's.
        unsafe { result.put_columns(self.isa, self.panel.queries(), out, (dim, nr), &shrink) };
    }
}

simd_fn! {
    /// Turns scores `[keys, nr]` into exp(score − largest), with `largest` and `total` (one a query) carried from tile to
    /// tile. `shrink` is what earlier tiles' values must be multiplied by.
    pub(super) fn soften(scores: &mut [f32], nr: usize, largest: &mut [f32], total: &mut [f32], shrink: &mut [f32]) {
        for lane in (0..nr).step_by(LANES) {
            let before = F32x16::load(&largest[lane..]);
            let mut now = before;
            for row in scores.chunks_exact(nr) {
                now = F32x16::load(&row[lane..]).max(now);
            }
            let mut sum = F32x16::ZERO;
            for row in scores.chunks_exact_mut(nr) {
                let p = F32x16::load(&row[lane..]).sub(now).exp::<FMA>();
                p.store(&mut row[lane..]);
                sum = sum.add(p);
            }
            let factor = before.sub(now).exp::<FMA>();
            now.store(&mut largest[lane..]);
            factor.store(&mut shrink[lane..]);
            F32x16::load(&total[lane..]).madd::<FMA>(factor, sum).store(&mut total[lane..]);
        }
    }
}

simd_fn! {
    /// Multiplies each row of `x` `[.., nr]` by `factors`.
    pub(super) fn scale_rows(x: &mut [f32], nr: usize, factors: &[f32]) {
        for row in x.chunks_exact_mut(nr) {
            for lane in (0..nr).step_by(LANES) {
                F32x16::load(&row[lane..]).mul(F32x16::load(&factors[lane..])).store(&mut row[lane..]);
            }
        }
    }
}
