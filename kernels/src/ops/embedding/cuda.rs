//! The GPU's embeddings: the launches of embedding.cu, and the sorting of tokens into segments.

use crate::device::{Buffer, Category, DType, Device, Feed, Gpu, Source};
use crate::error::{Error, Result};
use crate::ops::cuda::kernel_name;
use crate::weight::{FrozenWeight, WeightRef};

static KERNELS: Source = Source { name: "embedding", ptx: include_str!("../../../ptx/embedding.ptx") };

/// As in embedding.cu: rows or positions of a block, a warp for each.
const WARPS: usize = 8;
/// As in embedding.cu: warps of a segment's block.
const SEGMENT_WARPS: usize = 4;
/// As in embedding.cu: vectors of a lane of them.
const STEPS: usize = 4;

/// The entries of a table, which must be dense.
pub(super) fn entries<'a>(op: &'static str, table: WeightRef<'a>) -> Result<&'a Buffer> {
    match table {
        WeightRef::Frozen(FrozenWeight::Dense(dense)) => Ok(dense.values()),
        WeightRef::Frozen(FrozenWeight::Sparse(_) | FrozenWeight::Blocks(_) | FrozenWeight::TwoFour(_)) => {
            Err(Error::Unsupported { op, what: "a packed sparse table".into(), device: "cuda" })
        }
        WeightRef::Trainable { value, .. } => Ok(value),
        WeightRef::Adapted(_) => Err(Error::Unsupported { op, what: "an adapted table".into(), device: "cuda" }),
    }
}

/// Elements that a lane moves at once: 16 bytes of the wider type.
fn vector(a: DType, b: DType) -> usize {
    16 / a.size().max(b.size())
}

/// `tokens` are in the table; `ids` has their number.
pub(super) fn lookup(gpu: &Gpu, tokens: &[u32], table: &Buffer, ids: &mut Buffer, y: &mut Buffer) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    ids.write_feed(Feed::Tokens, bytemuck::cast_slice(tokens))?;
    let cols = y.len() / tokens.len();
    let whole = cols.is_multiple_of(vector(table.dtype(), y.dtype()));
    let launch = gpu
        .launch(&KERNELS, kernel_name!("embedding", table.dtype(), whole: whole))?
        .grid([tokens.len().div_ceil(WARPS), 1, 1])
        .block([32, WARPS, 1])
        .read(table)
        .read(ids)
        .dimension("tokens", tokens.len())
        .dimension("features", cols)
        .write(y);
    // SAFETY: `mod.rs` checks the tokens against the table's rows, and allocates a row of y, in bf16, for each.
    Ok(unsafe { launch.run() }?)
}

/// Row n of `rows` stands at row `offset` + n mod `tokens` of a table.
#[derive(Clone, Copy)]
pub(super) struct Positions {
    pub rows: usize,
    pub cols: usize,
    pub tokens: usize,
    pub offset: usize,
}

impl Positions {
    /// Blocks of a warp for each position and 32 vectors of `vector` columns.
    fn grid(&self, vector: usize) -> [usize; 3] {
        [self.tokens.min(self.rows).div_ceil(WARPS), self.cols.div_ceil(32 * vector), 1]
    }
}

pub(super) fn add_positions(gpu: &Gpu, table: &Buffer, positions: Positions, y: &mut Buffer) -> Result<()> {
    let Positions { rows, cols, tokens, offset } = positions;
    if rows == 0 {
        return Ok(());
    }
    let vector = vector(table.dtype(), y.dtype());
    let whole = cols.is_multiple_of(vector);
    let kernel = match table.dtype() {
        DType::BF16 => kernel_name!("add_positions_bf16", y.dtype(), whole: whole),
        DType::F16 => kernel_name!("add_positions_f16", y.dtype(), whole: whole),
        _ => kernel_name!("add_positions_f32", y.dtype(), whole: whole),
    };
    let launch = gpu
        .launch(&KERNELS, kernel)?
        .grid(positions.grid(if whole { vector } else { 1 }))
        .block([32, WARPS, 1])
        .read(table)
        .value((offset * cols) as u64)
        .dimension("rows", rows)
        .dimension("tokens", tokens)
        .dimension("features", cols)
        .write(y);
    // SAFETY: `mod.rs` checks that y has `rows` rows and the table `offset + tokens`.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn position_gradient(gpu: &Gpu, dy: &Buffer, positions: Positions, d_table: &mut Buffer) -> Result<()> {
    let Positions { rows, cols, tokens, offset } = positions;
    if rows == 0 {
        return Ok(());
    }
    let vector = vector(dy.dtype(), d_table.dtype());
    let whole = cols.is_multiple_of(vector);
    let launch = gpu
        .launch(&KERNELS, kernel_name!("position_gradient", dy.dtype(), whole: whole))?
        .grid(positions.grid(if whole { vector } else { 1 }))
        .block([32, WARPS, 1])
        .read(dy)
        .dimension("rows", rows)
        .dimension("tokens", tokens)
        .dimension("features", cols)
        .value((offset * cols) as u64)
        .write(d_table);
    // SAFETY: as in `add_positions`.
    Ok(unsafe { launch.run() }?)
}

/// A batch's rows, sorted by token: as many places as the batch could need, whatever it holds.
pub(super) struct Segments {
    /// u32 `[N, 4]`: token, first and end in `order`, and a word to make it 16 bytes.
    table: Buffer,
    /// u32 `[N]`: rows, those of a token together and in the batch's order.
    order: Buffer,
}

impl Segments {
    pub fn alloc(device: &Device, tokens: usize) -> Result<Segments> {
        let words = |len| device.alloc(Category::Workspace, DType::U32, len);
        Ok(Segments { table: words(4 * tokens)?, order: words(tokens)? })
    }

    fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        let (table, order) = super::segments(tokens);
        self.table.write_feed(Feed::Segments, bytemuck::cast_slice(&table))?;
        self.order.write_feed(Feed::SegmentRows, bytemuck::cast_slice(&order))
    }
}

pub(super) fn lookup_gradient(
    gpu: &Gpu,
    dy: &Buffer,
    tokens: &[u32],
    segments: &mut Segments,
    d_table: &mut Buffer,
) -> Result<()> {
    let cols = dy.len() / tokens.len();
    segments.fill(tokens)?;
    let vector = vector(dy.dtype(), d_table.dtype());
    let whole = cols.is_multiple_of(vector);
    let columns = 32 * STEPS * if whole { vector } else { 1 };
    let launch = gpu
        .launch(&KERNELS, kernel_name!("embedding_gradient", dy.dtype(), whole: whole))?
        // As many segments as there could be: a graph's launches are the same whatever the tokens.
        .grid([tokens.len(), cols.div_ceil(columns), 1])
        .block([32, SEGMENT_WARPS, 1])
        .read(dy)
        .read(&segments.table)
        .read(&segments.order)
        .dimension("features", cols)
        .write(d_table);
    // SAFETY: `mod.rs` checks the tokens against the rows of `d_table`, and that dy has a row for each; each segment's token
    // is its own.
    Ok(unsafe { launch.run() }?)
}
