//! Selection by sorting.

/// Which entries stay when the `k` of the smallest magnitudes go, lower indices first.
pub fn keep_largest(entries: &[f32], k: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|a, b| entries[*a].abs().partial_cmp(&entries[*b].abs()).expect("no NaN").then(a.cmp(b)));
    let mut keep = vec![true; entries.len()];
    order[..k].iter().for_each(|i| keep[*i] = false);
    keep
}
