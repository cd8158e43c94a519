//! The forward pass: a task is one panel of queries of one head.

use rayon::prelude::*;

use super::super::forward::{LOWEST, Output, scale_rows, soften};
use super::super::{Head, HeadOut, KEYS, Panel, carve, share};
use super::{
    BLOCK, CUT, ISA, Keys, LINE, NUMBERS, ROOM, Unit, aligned, at, blocks, blocks_of, carve_blocks, carve_panel,
    cut_right, of, panel,
};
use crate::ops::attention::Attention;
use crate::shared::SharedRows;
use crate::strips::SharedStrips;

/// Elements of workspace that all threads share: K and V of one sequence, cut.
pub(in super::super) fn shared_len(attention: &Attention) -> usize {
    attention.kv_heads * packed_len(attention) + LINE
}

/// One head's K and V, and a panel to cut them from.
fn packed_len(attention: &Attention) -> usize {
    let (tokens, features) = (blocks(attention.tokens), blocks(attention.head_dim));
    2 * tokens * features * ROOM + features * NUMBERS
}

/// Elements of workspace for each thread: queries, scores and outputs, those that are multiplied cut as well.
pub(in super::super) fn slot_len(attention: &Attention) -> usize {
    let features = blocks(attention.head_dim);
    2 * features * NUMBERS + features * ROOM + KEYS * BLOCK + KEYS / BLOCK * ROOM + LINE
}

/// Attention as [`forward`](crate::ops::attention::forward) defines it. `shared` holds [`shared_len`] elements, `slots`
/// a multiple of [`slot_len`].
pub(in super::super) fn forward(
    attention: &Attention,
    [q, k, v]: [&[f32]; 3],
    output: Output<'_>,
    shared: &mut [f32],
    slots: &mut [f32],
) {
    let Attention { batch, tokens, heads, kv_heads, head_dim: dim, .. } = *attention;
    let out = SharedStrips::new(output.out, attention.rows(), heads * dim);
    let lse = SharedRows::new(output.lse, tokens);
    let panels = Panel::count(attention, BLOCK);
    let a_operand = blocks(tokens) * blocks(dim);
    let shared = aligned(shared);
    for sequence in 0..batch {
        shared.par_chunks_exact_mut(packed_len(attention)).enumerate().for_each(|(head, mut packed)| {
            let (by_keys, by_features) = (carve_blocks(&mut packed, a_operand), carve_blocks(&mut packed, a_operand));
            let panel = carve_panel(&mut packed, dim);
            let [k, v] = [k, v].map(|of| Head::new(of, attention, sequence, kv_heads, head));
            Keys { by_keys, by_features: &mut [] }.cut(k, tokens, panel);
            Keys { by_keys: &mut [], by_features }.cut(v, tokens, panel);
        });
        let shared: &[f32] = shared;
        share(heads * panels, slots, slot_len(attention), |task, scratch| {
            // The panels that see most go first, so that the last to finish are short.
            let (index, head) = (panels - 1 - task / heads, task % heads);
            let kv_head = head / (heads / kv_heads);
            let packed: &[u16] = bytemuck::cast_slice(&shared[kv_head * packed_len(attention)..]);
            let (k, v) = packed[..2 * a_operand * CUT].split_at(a_operand * CUT);
            let q = Head::new(q, attention, sequence, heads, head);
            let panel = panel(attention, index);
            // SAFETY: a panel of queries of a head is one task's alone.
            let lse = unsafe { lse.row(sequence * heads + head, panel.first, panel.queries) };
            let out = HeadOut::new(out, attention, sequence, head);
            let scores = Scores { panel, tokens: blocks(tokens), features: blocks(dim), scale: attention.scale };
            // SAFETY: as above.
            unsafe { scores.attend(q, k, v, out, lse, aligned(scratch)) };
        });
    }
}

/// One task: a panel of queries of one head against all keys that it sees.
struct Scores {
    panel: Panel,
    /// Blocks of the sequence and of a head's features.
    tokens: usize,
    features: usize,
    scale: f32,
}

impl Scores {
    /// # Safety
    /// No one else uses these queries of `result` meanwhile.
    unsafe fn attend(
        &self,
        q: Head<'_>,
        k: &[u16],
        v: &[u16],
        result: HeadOut<'_>,
        lse: &mut [f32],
        mut scratch: &mut [f32],
    ) {
        let (features, dim) = (self.features, q.dim);
        let columns = carve_panel(&mut scratch, dim);
        let out = carve(&mut scratch, features * NUMBERS);
        let queries = carve_blocks(&mut scratch, features);
        let scores = carve(&mut scratch, KEYS * BLOCK);
        let probabilities = carve_blocks(&mut scratch, KEYS / BLOCK);
        let (mut largest, mut total, mut shrink) = ([LOWEST; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        q.pack_columns(ISA, self.panel.queries(), self.scale, BLOCK, columns);
        for (feature, numbers) in columns.chunks_exact(NUMBERS).enumerate() {
            cut_right(numbers, at(queries, feature));
        }
        let unit = Unit::new();
        let mut started = false;
        for keys in self.panel.tiles(BLOCK) {
            let range = blocks_of(&keys);
            // Rows past the last key that a query sees are those of keys that none sees.
            let scores = &mut scores[..range.len() * NUMBERS];
            for (block, scores) in range.clone().zip(scores.chunks_exact_mut(NUMBERS)) {
                unit.multiply(of(k, block * features..(block + 1) * features), queries, scores, false);
            }
            self.panel.mask(keys.start, scores);
            soften(ISA, scores, BLOCK, &mut largest, &mut total, &mut shrink);
            if started {
                scale_rows(ISA, out, BLOCK, &shrink);
            }
            for (block, numbers) in scores.chunks_exact(NUMBERS).enumerate() {
                cut_right(numbers, at(probabilities, block));
            }
            let probabilities = of(probabilities, 0..range.len());
            for (feature, out) in out.chunks_exact_mut(NUMBERS).enumerate() {
                let first = feature * self.tokens;
                unit.multiply(of(v, first + range.start..first + range.end), probabilities, out, started);
            }
            started = true;
        }
        for (query, lse) in lse.iter_mut().enumerate() {
            *lse = largest[query] + total[query].ln();
            shrink[query] = 1.0 / total[query];
        }
        // SAFETY: the caller's.
        unsafe { result.put_columns(ISA, self.panel.queries(), out, (dim, BLOCK), &shrink) };
    }
}
