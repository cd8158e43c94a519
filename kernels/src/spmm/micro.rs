//! The micro-kernel: two columns × a few vectors of tokens of C in registers, over 64 rows of B. Where the rows of four columns
//! have no zero, all four: each vector of tokens is then loaded for twice as many multiply-adds.

use super::pairs::Masks;
use crate::simd::{F32x16, Isa, LANES, prefetch};
use crate::simd_fn;
use crate::strips::STRIP;

/// Vectors of tokens that two columns of C, and one row of the tokens, may take in registers.
fn most_vectors(isa: Isa) -> usize {
    match isa {
        // 12 sums and 6 vectors of tokens of 32 registers. Eight would fit too, but 64 rows of them not the first-level cache.
        Isa::Avx512 | Isa::Amx => 6,
        Isa::Avx2 => 2,
        Isa::Portable => 1,
    }
}

/// sums += B's block · tokens. `tokens` is `[rows, width]` and `sums` `[columns, width]`; `width` is a multiple of 16 and at
/// most [`STRIP`]. `ahead` are the tokens of the sweep after this one: they are fetched meanwhile.
pub(super) fn sweep(
    isa: Isa,
    width: usize,
    tokens: &[f32],
    block: (&[Masks], &[f32]),
    sums: &mut [f32],
    mut ahead: &[f32],
) {
    let (masks, values) = block;
    assert!(width.is_multiple_of(LANES) && sums.len() >= 2 * masks.len() * width);
    let most = most_vectors(isa);
    for at in (0..width / LANES).step_by(most) {
        let (tokens, sums) = (tokens.get(at * LANES..).unwrap_or(&[]), &mut sums[at * LANES..]);
        match (most.min(width / LANES - at), width) {
            (6, STRIP) => whole_strip(isa, tokens, masks, values, sums, ahead),
            (6, _) => sweep_6(isa, width, tokens, masks, values, sums, ahead),
            (5, _) => sweep_5(isa, width, tokens, masks, values, sums, ahead),
            (4, _) => sweep_4(isa, width, tokens, masks, values, sums, ahead),
            (3, _) => sweep_3(isa, width, tokens, masks, values, sums, ahead),
            (2, _) => sweep_2(isa, width, tokens, masks, values, sums, ahead),
            _ => sweep_1(isa, width, tokens, masks, values, sums, ahead),
        }
        ahead = &[];
    }
}

macro_rules! sweeps {
    ($($name:ident $vectors:literal),*) => { $(
        simd_fn! {
            fn $name(stride: usize, tokens: &[f32], masks: &[Masks], values: &[f32], sums: &mut [f32], ahead: &[f32]) {
                pairs::<$vectors, FMA>(stride, tokens, masks, values, sums, ahead);
            }
        }
    )* };
}

sweeps!(sweep_1 1, sweep_2 2, sweep_3 3, sweep_4 4, sweep_5 5, sweep_6 6);

simd_fn! {
    /// [`sweep_6`] where the stride is known to the compiler.
    fn whole_strip(tokens: &[f32], masks: &[Masks], values: &[f32], sums: &mut [f32], ahead: &[f32]) {
        pairs::<6, FMA>(STRIP, tokens, masks, values, sums, ahead);
    }
}

#[inline(always)]
fn pairs<const V: usize, const FMA: bool>(
    stride: usize,
    tokens: &[f32],
    masks: &[Masks],
    mut values: &[f32],
    mut sums: &mut [f32],
    mut ahead: &[f32],
) {
    // A whole number of cache lines with each pair, so that no more are on their way at once than the processor can track.
    let share = ahead.len().div_ceil(masks.len().max(1)).next_multiple_of(LANES);
    let mut at = 0;
    while at < masks.len() {
        let dense = match &masks[at..] {
            [one, other, ..] if V >= QUAD_VECTORS => one.dense().filter(|rows| other.dense() == Some(*rows)),
            _ => None,
        };
        let taken = if dense.is_some() { 2 } else { 1 };
        let (now, later) = ahead.split_at((taken * share).min(ahead.len()));
        prefetch(bytemuck::cast_slice(now));
        ahead = later;
        values = match dense {
            Some(rows) => quad::<V, FMA>(stride, tokens, rows, values, sums),
            None => pair::<V, FMA>(stride, tokens, masks[at], values, sums),
        };
        at += taken;
        let next = sums.len().min(2 * taken * stride);
        sums = &mut sums[next..];
    }
}

/// Four columns are taken together from so many vectors of tokens on, which only AVX-512 has registers for: 24 sums, 6 vectors
/// of tokens and a weight are 31 of 32. With fewer, the loads of weights would outweigh what is saved.
const QUAD_VECTORS: usize = 3;

/// Two pairs of columns that have an entry in each of `rows` rows; returns the values of the pairs after them. Every sum is that
/// of [`pair`], bit for bit.
#[inline(always)]
fn quad<'a, const V: usize, const FMA: bool>(
    stride: usize,
    tokens: &[f32],
    rows: usize,
    values: &'a [f32],
    sums: &mut [f32],
) -> &'a [f32] {
    let (mine, rest) = values.split_at(4 * rows);
    assert!(rows == 0 || tokens.len() >= (rows - 1) * stride + V * LANES);
    assert!(sums.len() >= 3 * stride + V * LANES);
    let mut x: [[F32x16; V]; 4] = std::array::from_fn(|column| load(&sums[column * stride..]));
    for row in 0..rows {
        // SAFETY: `tokens` has vectors for all rows.
        let t: [F32x16; V] = load(unsafe { tokens.get_unchecked(row * stride..) });
        for (column, x) in x.iter_mut().enumerate() {
            // SAFETY: there are as many values for each column as rows.
            let a = F32x16::splat(unsafe { *mine.get_unchecked(column * rows + row) });
            for v in 0..V {
                x[v] = t[v].madd::<FMA>(a, x[v]);
            }
        }
    }
    for (x, sums) in x.iter().zip(sums.chunks_mut(stride)) {
        for v in 0..V {
            x[v].store(&mut sums[v * LANES..]);
        }
    }
    rest
}

/// One pair of columns; returns the values of the pairs after it.
#[inline(always)]
fn pair<'a, const V: usize, const FMA: bool>(
    stride: usize,
    tokens: &[f32],
    masks: Masks,
    values: &'a [f32],
    sums: &mut [f32],
) -> &'a [f32] {
    let (both, first) = (masks.both.count_ones() as usize, masks.first.count_ones() as usize);
    let second = masks.second.count_ones() as usize;
    let (mine, rest) = values.split_at(2 * both + first + second);
    let rows = 64 - (masks.both | masks.first | masks.second).leading_zeros() as usize;
    assert!(rows == 0 || tokens.len() >= (rows - 1) * stride + V * LANES);

    let (of_first, of_second) = sums.split_at_mut(stride);
    let mut x: [F32x16; V] = load(of_first);
    let mut y: [F32x16; V] = load(of_second);
    // SAFETY: every set bit of a mask is below `rows`, for which `tokens` has vectors.
    let vectors = |row: usize| -> [F32x16; V] { load(unsafe { tokens.get_unchecked(row * stride..) }) };
    // SAFETY: each list is walked as often as its mask has bits, and `mine` has a value for each.
    let value = |at: usize| F32x16::splat(unsafe { *mine.get_unchecked(at) });

    let (mut mask, mut at) = (masks.both, 0);
    while mask != 0 {
        let (t, a, b) = (vectors(mask.trailing_zeros() as usize), value(at), value(both + at));
        for v in 0..V {
            x[v] = t[v].madd::<FMA>(a, x[v]);
            y[v] = t[v].madd::<FMA>(b, y[v]);
        }
        mask &= mask - 1;
        at += 1;
    }
    // The rows of one column alone, side by side with those of the other: twelve sums that do not wait for each other, where
    // one column's six would.
    let (mut of_x, mut of_y) = (masks.first, masks.second);
    let (mut at_x, mut at_y) = (2 * both, 2 * both + first);
    for _ in 0..first.min(second) {
        let (t, a) = (vectors(of_x.trailing_zeros() as usize), value(at_x));
        let (u, b) = (vectors(of_y.trailing_zeros() as usize), value(at_y));
        for v in 0..V {
            x[v] = t[v].madd::<FMA>(a, x[v]);
            y[v] = u[v].madd::<FMA>(b, y[v]);
        }
        (of_x, of_y) = (of_x & (of_x - 1), of_y & (of_y - 1));
        (at_x, at_y) = (at_x + 1, at_y + 1);
    }
    while of_x != 0 {
        let (t, a) = (vectors(of_x.trailing_zeros() as usize), value(at_x));
        for v in 0..V {
            x[v] = t[v].madd::<FMA>(a, x[v]);
        }
        of_x &= of_x - 1;
        at_x += 1;
    }
    while of_y != 0 {
        let (t, b) = (vectors(of_y.trailing_zeros() as usize), value(at_y));
        for v in 0..V {
            y[v] = t[v].madd::<FMA>(b, y[v]);
        }
        of_y &= of_y - 1;
        at_y += 1;
    }
    for v in 0..V {
        x[v].store(&mut of_first[v * LANES..]);
        y[v].store(&mut of_second[v * LANES..]);
    }
    rest
}

/// The vectors that `from` starts with.
#[inline(always)]
fn load<const V: usize>(from: &[f32]) -> [F32x16; V] {
    debug_assert!(from.len() >= V * LANES);
    // SAFETY: callers have checked that V vectors are there; F32x16 is sixteen f32, and the read needs no alignment.
    unsafe { from.as_ptr().cast::<[F32x16; V]>().read_unaligned() }
}
