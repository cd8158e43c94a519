//! Packing on the host, group by group: what a GPU's kernel is held against.

use crate::weight::{GROUP, Groups};

/// Places 0 and 1 in each group of a word: what lies past the edges.
const FIRST_TWO: u32 = 0x4444_4444;

/// Fills values and places; the first entry of the first group of which the mask keeps more than two, if there is one.
pub fn gather(groups: Groups, mask: &[u64], source: &[u8], (values, places): (&mut [u16], &mut [u32])) -> Option<u64> {
    values.fill(0);
    places.fill(FIRST_TWO);
    let mut fault = None;
    groups.each_group(|first, group| {
        // A group begins at a multiple of four, as words do: it lies in one.
        let kept = (mask[first / 64] >> (first % 64)) as usize % 16;
        let Some([lower, upper]) = two_of(kept) else {
            fault.get_or_insert(first as u64);
            return;
        };
        for (half, place) in [lower, upper].into_iter().enumerate() {
            if kept >> place & 1 == 1 {
                let at = (first + place) * 2;
                values[group.value + half] = u16::from_ne_bytes([source[at], source[at + 1]]);
            }
        }
        let word = &mut places[group.word];
        *word = *word & !(15 << group.shift) | ((lower + upper * 4) as u32) << group.shift;
    });
    fault
}

/// The places of a group that are stored: those kept, and the first free ones up to two.
fn two_of(kept: usize) -> Option<[usize; 2]> {
    let missing = 2usize.checked_sub(kept.count_ones() as usize)?;
    let free = (0..GROUP).filter(|place| kept >> place & 1 == 0);
    let stored = free.take(missing).fold(kept, |stored, place| stored | 1 << place);
    Some([stored.trailing_zeros() as usize, stored.ilog2() as usize])
}
