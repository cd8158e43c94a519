//! Embeddings as the formula says, in f64.

/// `y_n = E[token_n] + P[offset + n mod tokens]`; both tables have rows of `cols`.
pub fn embed(ids: &[u32], table: &[f64], positions: &[f64], cols: usize, tokens: usize, offset: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(ids.len() * cols);
    for (n, id) in ids.iter().enumerate() {
        let row = &table[*id as usize * cols..][..cols];
        let place = &positions[(offset + n % tokens) * cols..][..cols];
        y.extend(row.iter().zip(place).map(|(row, place)| row + place));
    }
    y
}
