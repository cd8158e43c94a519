//! Matrix products on the CPU: C = A·B, with both operands packed into panels and a register-tiled micro-kernel.
//!
//! Both are f32 matrices of any strides. Products with frozen weights, whose zeros cost nothing, are [`spmm`](crate::spmm)'s.
//!
//! Blocking, from the inside out: the micro-kernel keeps an MR×NR tile of C in registers while it walks `KC` rows of a
//! packed B panel (L1/L2) and of a packed A panel (L1). A task owns a rectangle of C: it packs `KC`×`NC` of B into its
//! thread's scratch (L2) and sweeps all its rows of A over it. A is packed once a product, by all threads, into workspace.
//! Every element of C is summed over k in the same order whatever the number of threads.

pub(crate) mod micro;
mod source;

use std::cell::RefCell;

use rayon::prelude::*;

use crate::simd::Isa;
pub use source::Strided;

/// Rows of B packed at a time: KC·NR·4 bytes of B and MR·KC·4 of A share the first-level cache.
const KC: usize = 256;
/// Columns of B packed at a time; a multiple of every NR. KC·NC·4 bytes stay within the second-level cache.
const NC: usize = 192;

/// The packing scratch that each thread of the CPU device keeps.
pub const THREAD_SCRATCH_BYTES: usize = KC * NC * 4;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The dimensions of C = A·B: A is `[m, k]`, B is `[k, n]`, C is `[m, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
}

/// What becomes of the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Adds to what C holds instead of replacing it.
    pub accumulate: bool,
    /// Adds `bias[j]` to column j.
    pub bias: Option<&'a [f32]>,
}

/// f32 elements of workspace that [`gemm`] needs to pack A.
pub fn workspace_len(dims: Dims) -> usize {
    // Rounded up for the tallest tile, so that the plan does not depend on the instruction set.
    dims.m.next_multiple_of(TALLEST_TILE * 6) * dims.k
}

/// The largest MR of any micro-kernel. (14 and 6 and 4 divide 84 = 14·6.)
const TALLEST_TILE: usize = 14;

/// C = A·B with all threads. `c` is row-major with rows `ldc` apart, and `workspace` holds [`workspace_len`] elements.
///
/// # Panics
/// If a slice is too short for the dimensions: callers check their operands first.
pub fn gemm(
    isa: Isa,
    dims: Dims,
    a: Strided<'_>,
    b: Strided<'_>,
    c: &mut [f32],
    ldc: usize,
    epilogue: Epilogue<'_>,
    workspace: &mut [f32],
) {
    let Dims { m, n, k } = dims;
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "C is too short");
    let tile = micro::Tile::of(isa);
    let packed = &mut workspace[..m.next_multiple_of(tile.mr) * k];
    if k > 0 {
        packed
            .par_chunks_mut(tile.mr * k)
            .enumerate()
            .for_each(|(panel, out)| a.pack_rows(panel * tile.mr, tile.mr.min(m - panel * tile.mr), k, tile.mr, out));
    }
    let packed: &[f32] = packed;

    let threads = rayon::current_num_threads();
    // As many rounds as blocks of NC need, each round with a block for every thread.
    let rounds = n.div_ceil(NC * threads);
    let columns = n.div_ceil(rounds * threads).next_multiple_of(tile.nr);
    let column_tasks = n.div_ceil(columns);
    // Where there are few columns (LoRA's rank), rows are what the threads share.
    let row_tasks = if column_tasks >= threads { 1 } else { (2 * threads).div_ceil(column_tasks) };
    let rows = m.div_ceil(row_tasks).next_multiple_of(tile.mr);
    let row_tasks = m.div_ceil(rows);

    let c = SharedOut(c.as_mut_ptr());
    (0..column_tasks * row_tasks).into_par_iter().for_each(|task| {
        let (column, row) = (task / row_tasks * columns, task % row_tasks * rows);
        let block = Block { row, rows: rows.min(m - row), column, columns: columns.min(n - column), k, ldc };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(KC * NC, 0.0);
            // SAFETY: tasks own disjoint rectangles of C, all inside it by the assertion above.
            unsafe { block.compute(&tile, packed, b, c, epilogue, scratch) }
        });
    });
}

/// C's address, shared between tasks that write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut(pub *mut f32);
// SAFETY: every user writes elements that no other task touches.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

/// A rectangle of C.
struct Block {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    k: usize,
    ldc: usize,
}

impl Block {
    /// Computes the rectangle.
    ///
    /// # Safety
    /// The rectangle lies inside C, and no one else touches it meanwhile.
    unsafe fn compute(
        &self,
        tile: &micro::Tile,
        packed_a: &[f32],
        b: Strided<'_>,
        c: SharedOut,
        epilogue: Epilogue<'_>,
        scratch: &mut [f32],
    ) {
        let (mr, nr) = (tile.mr, tile.nr);
        let mut edge = [0.0f32; micro::LARGEST_TILE];
        let mut k0 = 0;
        loop {
            let kc = KC.min(self.k - k0);
            for (panel, out) in scratch.chunks_mut(kc.max(1) * nr).take(self.columns.div_ceil(nr)).enumerate() {
                let column = self.column + panel * nr;
                b.pack_columns(k0..k0 + kc, column..(column + nr).min(self.column + self.columns), nr, out);
            }
            let add = epilogue.accumulate || k0 > 0;
            for row in (self.row..self.row + self.rows).step_by(mr) {
                let height = mr.min(self.row + self.rows - row);
                let a_panel = &packed_a[row / mr * mr * self.k + k0 * mr..][..kc * mr];
                for panel in 0..self.columns.div_ceil(nr) {
                    let column = self.column + panel * nr;
                    let width = nr.min(self.column + self.columns - column);
                    let b_panel = &scratch[panel * kc * nr..][..kc * nr];
                    // SAFETY: (row, column) lies inside C.
                    let out = unsafe { c.0.add(row * self.ldc + column) };
                    let bias = if k0 == 0 { epilogue.bias.map(|bias| &bias[column..column + width]) } else { None };
                    if height == mr && width == nr && bias.is_none() {
                        // SAFETY: the full tile lies inside C, and the panels hold kc rows.
                        unsafe { tile.run(kc, a_panel, b_panel, out, self.ldc, add) };
                        continue;
                    }
                    // SAFETY: the edge tile is mr×nr, and the panels hold kc rows.
                    unsafe { tile.run(kc, a_panel, b_panel, edge.as_mut_ptr(), nr, false) };
                    for i in 0..height {
                        // SAFETY: row `i` of the tile has `width` elements inside C.
                        let out = unsafe { std::slice::from_raw_parts_mut(out.add(i * self.ldc), width) };
                        let from = &edge[i * nr..][..width];
                        if add {
                            out.iter_mut().zip(from).for_each(|(out, x)| *out += x);
                        } else {
                            out.copy_from_slice(from);
                        }
                        if let Some(bias) = bias {
                            out.iter_mut().zip(bias).for_each(|(out, x)| *out += x);
                        }
                    }
                }
            }
            k0 += kc;
            if k0 >= self.k {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
