//! `mma.sp`: which columns of A the kept elements stand in.

use super::block::trouble;
use super::matrix::Maps;
use super::regs::LANES;
use super::warp::Trouble;
use crate::fault::Kind;
use crate::program::*;

/// A row's metadata, lowest first, and the lane that holds the first of it.
///
/// Of floats each word holds 16 bits of row g and, above them, 16 of row g + 8; of integers all 32 bits are of one row,
/// and rows g and g + 8 are two neighbours'. Shapes that need more take the rest from the next threads of the four.
pub(super) fn metadata_of(m: &Mma, words: &[u32; LANES], selector: usize, row: usize) -> (u64, usize) {
    let (group, upper) = (4 * (row % 8), row / 8);
    let deep = usize::from(m.shape.2) * if m.a_type == Type::TF32 { 2 } else { 1 };
    if matches!(m.a_type, Type::F16 | Type::BF16 | Type::TF32) {
        let parts = deep / 16;
        let lane = group + parts * selector;
        let half = |part: usize| u64::from(words[lane + part] >> (16 * upper) & 0xffff) << (16 * part);
        return ((0..parts).map(half).sum(), lane);
    }
    let parts = deep * m.a_type.bits() as usize / 256;
    let lane = group + 2 * parts * selector + upper;
    ((0..parts).map(|part| u64::from(words[lane + 2 * part]) << (32 * part)).sum(), lane)
}

/// A as it is multiplied: kept elements in the columns that the metadata names, zeros between them.
pub(super) fn spread<T: Copy + Default>(
    m: &Mma,
    maps: &Maps,
    kept: &[T],
    metadata: impl Fn(usize) -> (u64, usize),
) -> Result<Vec<T>, Trouble> {
    let held = maps.k / 2;
    // Elements that go together: pairs of the types below a byte.
    let unit = if m.a_type.bits() < 8 { 2 } else { 1 };
    let mut out = vec![T::default(); maps.rows * maps.k];
    for row in 0..maps.rows {
        let (bits, lane) = metadata(row);
        for n in 0..held / unit {
            let place = if m.a_type == Type::TF32 {
                match bits >> (4 * n) & 15 {
                    0b0100 => 2 * n,
                    0b1110 => 2 * n + 1,
                    other => {
                        let what = format!("sparse metadata {other:#06b} of row {row}: expected 0b0100 or 0b1110");
                        return Err(trouble(lane, Kind::InvalidOperand, what));
                    }
                }
            } else {
                let index = |n: usize| (bits >> (2 * n) & 3) as usize;
                if n % 2 == 1 && index(n) <= index(n - 1) {
                    let what = format!("sparse metadata of row {row}: the two places of a group of four must ascend");
                    return Err(trouble(lane, Kind::InvalidOperand, what));
                }
                n / 2 * 4 + index(n)
            };
            let (to, from) = (row * maps.k + place * unit, row * held + n * unit);
            out[to..to + unit].copy_from_slice(&kept[from..from + unit]);
        }
    }
    Ok(out)
}
