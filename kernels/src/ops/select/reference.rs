//! Selection by sorting.

/// Which entries stay when the `k` smallest go, lower indices first.
pub fn keep_largest(scores: &[f32], k: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].partial_cmp(&scores[*b]).expect("no NaN").then(a.cmp(b)));
    let mut keep = vec![true; scores.len()];
    order[..k].iter().for_each(|i| keep[*i] = false);
    keep
}
