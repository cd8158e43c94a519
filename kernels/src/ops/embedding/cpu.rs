//! The CPU's embeddings. Look-ups go row by row; a table's gradient is summed a band of the table a task, each task walking
//! all tokens in order and taking those that fall in its band, so that tokens that share a row add up in the same order on
//! any number of threads. (Finding them costs one comparison a token and band, where a token's row costs D additions.)

use rayon::prelude::*;

use crate::weight::WeightRef;

/// Rows of a task.
const ROWS: usize = 16;
/// Rows of the table of a task where a gradient is summed.
const BAND: usize = 256;

pub(super) fn lookup(tokens: &[u32], table: WeightRef<'_>, y: &mut [f32]) {
    let cols = table.cols();
    y.par_chunks_mut(ROWS * cols).zip(tokens.par_chunks(ROWS)).for_each(|(y, tokens)| {
        for (y, token) in y.chunks_exact_mut(cols).zip(tokens) {
            table.read(*token as usize, 0..cols, y);
        }
    });
}

pub(super) fn add_positions(table: WeightRef<'_>, tokens: usize, offset: usize, y: &mut [f32]) {
    let cols = table.cols();
    y.par_chunks_mut(ROWS * cols).enumerate().for_each(|(chunk, y)| {
        let mut position = [0.0f32; 256];
        for (i, y) in y.chunks_exact_mut(cols).enumerate() {
            let row = offset + (chunk * ROWS + i) % tokens;
            for (part, y) in y.chunks_mut(position.len()).enumerate() {
                let start = part * position.len();
                let position = &mut position[..y.len()];
                table.read(row, start..start + y.len(), position);
                y.iter_mut().zip(position).for_each(|(y, p)| *y += *p);
            }
        }
    });
}

/// table[row(n)] += dy[n] for each n in order.
pub(super) fn add_rows(dy: &[f32], cols: usize, row: impl Fn(usize) -> usize + Sync, table: &mut [f32]) {
    table.par_chunks_mut(BAND * cols).enumerate().for_each(|(band, table)| {
        let first = band * BAND;
        for (n, dy) in dy.chunks_exact(cols).enumerate() {
            let at = row(n).wrapping_sub(first);
            if at < BAND {
                table[at * cols..][..cols].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            }
        }
    });
}
