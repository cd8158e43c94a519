//! The CPU's embeddings. Look-ups go row by row; a table's gradient is summed a few columns a task, each task walking all
//! tokens in order, so that tokens that share a row add up in the same order on any number of threads.

use rayon::prelude::*;

use crate::weight::WeightRef;

/// Rows of a task.
const ROWS: usize = 16;
/// Columns of a task where rows are summed: one cache line, so that tasks share none.
const COLUMNS: usize = 16;

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
    let table = SharedTable(table.as_mut_ptr(), table.len());
    let table = &table;
    (0..cols.div_ceil(COLUMNS)).into_par_iter().for_each(|chunk| {
        let columns = chunk * COLUMNS..cols.min((chunk + 1) * COLUMNS);
        for (n, dy) in dy.chunks_exact(cols).enumerate() {
            let at = row(n) * cols;
            assert!(at + cols <= table.1, "rows were checked");
            for column in columns.clone() {
                // SAFETY: inside the table by the assertion; only this task touches these columns.
                unsafe { *table.0.add(at + column) += dy[column] };
            }
        }
    });
}

/// A table's address and length, shared between tasks that write disjoint columns.
struct SharedTable(*mut f32, usize);
// SAFETY: every task writes columns that no other task touches.
unsafe impl Sync for SharedTable {}
