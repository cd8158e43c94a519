//! Rotary embedding as the formula says, pair by pair, in f64.

/// y `[B·T, H·head_dim]`; row n has position n mod `tokens`.
pub fn rotate(x: &[f64], tokens: usize, heads: usize, head_dim: usize, frequencies: &[f64], factor: f64) -> Vec<f64> {
    let (width, pairs) = (heads * head_dim, frequencies.len());
    let mut y = x.to_vec();
    for (row, y) in y.chunks_mut(width).enumerate() {
        for head in y.chunks_mut(head_dim) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let angle = (row % tokens) as f64 * frequency;
                let (a, b) = (head[i], head[i + pairs]);
                head[i] = factor * (a * angle.cos() - b * angle.sin());
                head[i + pairs] = factor * (b * angle.cos() + a * angle.sin());
            }
        }
    }
    y
}
