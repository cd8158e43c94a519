//! The micro-kernel: two columns × one tile of tokens of C in registers, over 64 rows of B.

use super::pairs::Masks;
use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;

/// Tokens of a tile: two columns of it, and the tokens of one row of B, fill the vector registers and no more.
pub(super) fn tile_tokens(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4 * LANES,
        Isa::Avx2 => 2 * LANES,
        Isa::Portable => LANES,
    }
}

/// sums += B's block · tokens. `tokens` is `[rows, width]`, `sums` `[columns, width]`; `width` is 16, 32, 48 or 64.
pub(super) fn sweep(isa: Isa, width: usize, tokens: &[f32], block: (&[Masks], &[f32]), sums: &mut [f32]) {
    let (masks, values) = block;
    assert!(sums.len() >= 2 * masks.len() * width);
    match width / LANES {
        1 => sweep_1(isa, tokens, masks, values, sums),
        2 => sweep_2(isa, tokens, masks, values, sums),
        3 => sweep_3(isa, tokens, masks, values, sums),
        _ => sweep_4(isa, tokens, masks, values, sums),
    }
}

macro_rules! sweeps {
    ($($name:ident $vectors:literal),*) => { $(
        simd_fn! {
            fn $name(tokens: &[f32], masks: &[Masks], values: &[f32], sums: &mut [f32]) {
                let mut values = values;
                for (masks, sums) in masks.iter().zip(sums.chunks_exact_mut(2 * $vectors * LANES)) {
                    values = pair::<$vectors, FMA>(tokens, *masks, values, sums);
                }
            }
        }
    )* };
}

sweeps!(sweep_1 1, sweep_2 2, sweep_3 3, sweep_4 4);

/// One pair of columns; returns the values of the pairs after it.
#[inline(always)]
fn pair<'a, const V: usize, const FMA: bool>(
    tokens: &[f32],
    masks: Masks,
    values: &'a [f32],
    sums: &mut [f32],
) -> &'a [f32] {
    let (both, first) = (masks.both.count_ones() as usize, masks.first.count_ones() as usize);
    let second = masks.second.count_ones() as usize;
    let (mine, rest) = values.split_at(2 * both + first + second);
    let rows = 64 - (masks.both | masks.first | masks.second).leading_zeros() as usize;
    assert!(tokens.len() >= rows * V * LANES);

    let (of_first, of_second) = sums.split_at_mut(V * LANES);
    let mut x: [F32x16; V] = load(of_first);
    let mut y: [F32x16; V] = load(of_second);
    // SAFETY: every set bit of a mask is below `rows`, for which `tokens` has vectors.
    let vectors = |row: usize| -> [F32x16; V] { load(unsafe { tokens.get_unchecked(row * V * LANES..) }) };
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
    (mask, at) = (masks.first, 2 * both);
    while mask != 0 {
        let (t, a) = (vectors(mask.trailing_zeros() as usize), value(at));
        for v in 0..V {
            x[v] = t[v].madd::<FMA>(a, x[v]);
        }
        mask &= mask - 1;
        at += 1;
    }
    (mask, at) = (masks.second, 2 * both + first);
    while mask != 0 {
        let (t, b) = (vectors(mask.trailing_zeros() as usize), value(at));
        for v in 0..V {
            y[v] = t[v].madd::<FMA>(b, y[v]);
        }
        mask &= mask - 1;
        at += 1;
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
