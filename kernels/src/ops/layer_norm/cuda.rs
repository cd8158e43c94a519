//! The GPU's LayerNorm: how rows are laid over threads and blocks.

use super::ParamGradients;
use crate::device::{Buffer, Category, DType, Device, Gpu, Source};
use crate::error::{Error, Result};

static KERNELS: Source = Source { name: "layer_norm", ptx: include_str!("../../../ptx/layer_norm.ptx") };

/// As in layer_norm.cu.
const MAX_THREADS: usize = 640;
/// Blocks of forward that an SM holds: 48 registers a thread.
const FORWARD_BLOCKS_PER_SM: usize = 2;
/// Rows that a block of backward takes at least: its part of dw and db, written and read, is the traffic of 2.7 rows of bf16
/// (through L2, which holds it), and fewer blocks would leave SMs idle at 2,048 tokens.
const BACKWARD_ROWS: usize = 16;
/// Rows that each team of a block of backward takes at least.
const BACKWARD_ROUNDS: usize = 2;
/// Blocks of backward at most: two for each SM of an A100.
const BACKWARD_BLOCKS: usize = 256;

/// How a row is read, as in the kernels' names.
struct Layout {
    dtype: DType,
    /// By vectors of 16 bytes.
    whole: bool,
    /// Threads of a team, which takes a row.
    threads: usize,
    /// Teams of a block.
    teams: usize,
    /// Columns a thread.
    columns: usize,
}

impl Layout {
    fn of(op: &'static str, dtype: DType, cols: usize) -> Result<Layout> {
        let vector = 16 / dtype.size();
        let whole = cols.is_multiple_of(vector);
        let columns = if whole { 2 * vector } else { 8 };
        let threads = cols.div_ceil(columns).next_multiple_of(32);
        if threads > MAX_THREADS {
            let most = MAX_THREADS * columns;
            return Err(Error::Domain {
                op,
                reason: format!("rows of {cols} features, a GPU takes {most} of {dtype}"),
            });
        }
        Ok(Layout { dtype, whole, threads, teams: MAX_THREADS / threads, columns })
    }

    fn block(&self) -> [usize; 3] {
        [self.threads, self.teams, 1]
    }

    /// Columns of a parameter as the kernels lay them out: at least a row's.
    fn places(&self) -> usize {
        self.threads * self.columns
    }

    /// Bytes of dynamic shared memory: two parameters' columns.
    fn shared(&self) -> usize {
        2 * self.places() * 4
    }

    /// Elements of a vector.
    fn vector(&self) -> usize {
        if self.whole { 16 / self.dtype.size() } else { 1 }
    }

    /// Blocks of backward for `rows` rows, whatever the GPU.
    fn backward_blocks(&self, rows: usize) -> usize {
        rows.div_ceil(BACKWARD_ROWS.max(BACKWARD_ROUNDS * self.teams)).min(BACKWARD_BLOCKS)
    }

    fn forward(&self) -> &'static str {
        match (self.dtype, self.whole) {
            (DType::BF16, true) => "layer_norm_forward_bf16",
            (DType::BF16, false) => "layer_norm_forward_bf16_odd",
            (DType::F16, true) => "layer_norm_forward_f16",
            (DType::F16, false) => "layer_norm_forward_f16_odd",
            (_, true) => "layer_norm_forward_f32",
            (_, false) => "layer_norm_forward_f32_odd",
        }
    }

    fn backward(&self) -> &'static str {
        match (self.dtype, self.whole) {
            (DType::BF16, true) => "layer_norm_backward_bf16",
            (DType::BF16, false) => "layer_norm_backward_bf16_odd",
            (DType::F16, true) => "layer_norm_backward_f16",
            (DType::F16, false) => "layer_norm_backward_f16_odd",
            (_, true) => "layer_norm_backward_f32",
            (_, false) => "layer_norm_backward_f32_odd",
        }
    }
}

/// x, the weight and the bias.
pub(super) struct Input<'a> {
    pub x: &'a Buffer,
    pub weight: &'a Buffer,
    pub bias: &'a Buffer,
    pub eps: f32,
}

pub(super) fn forward(
    gpu: &Gpu,
    op: &'static str,
    input: &Input<'_>,
    rows: usize,
    y: &mut Buffer,
    mean: &mut Buffer,
    rstd: &mut Buffer,
) -> Result<()> {
    let cols = input.weight.len();
    let layout = Layout::of(op, input.x.dtype(), cols)?;
    if rows == 0 {
        return Ok(());
    }
    let resident = gpu.multiprocessors() * FORWARD_BLOCKS_PER_SM;
    let launch = gpu
        .launch(&KERNELS, layout.forward())?
        .grid([rows.div_ceil(layout.teams).min(resident), 1, 1])
        .block(layout.block())
        .shared(layout.shared())
        .read(input.x)
        .read(input.weight)
        .read(input.bias)
        .value(input.eps)
        .dimension("rows", rows)
        .dimension("features", cols)
        .write(y)
        .write(mean)
        .write(rstd);
    // SAFETY: `mod.rs` checks lengths and element types against `rows` and `cols`; the layout's threads cover a row.
    Ok(unsafe { launch.run() }?)
}

/// x and what forward saved.
pub(super) struct Saved<'a> {
    pub x: &'a Buffer,
    pub weight: &'a Buffer,
    pub mean: &'a Buffer,
    pub rstd: &'a Buffer,
}

/// Each block's part of dw and db, `[blocks, 2, places]`; empty where neither is wanted.
pub(super) fn partials(
    device: &Device,
    op: &'static str,
    x: &Buffer,
    (rows, cols): (usize, usize),
    gradients: &ParamGradients<'_>,
) -> Result<Buffer> {
    let wanted = gradients.weight.is_some() || gradients.bias.is_some();
    let layout = Layout::of(op, x.dtype(), cols)?;
    let len = layout.backward_blocks(rows) * 2 * layout.places();
    device.alloc(Category::Workspace, DType::F32, if wanted { len } else { 0 })
}

pub(super) fn backward(
    gpu: &Gpu,
    op: &'static str,
    saved: &Saved<'_>,
    rows: usize,
    dx: &mut Buffer,
    input_gradient: bool,
    gradients: ParamGradients<'_>,
    partials: &mut Buffer,
) -> Result<()> {
    let cols = saved.weight.len();
    let layout = Layout::of(op, saved.x.dtype(), cols)?;
    let param_gradients = !partials.is_empty();
    if rows == 0 || !(input_gradient || param_gradients) {
        return Ok(());
    }
    let blocks = layout.backward_blocks(rows);
    let launch = gpu
        .launch(&KERNELS, layout.backward())?
        .grid([blocks, 1, 1])
        .block(layout.block())
        .shared(layout.shared())
        .read(dx)
        .read(saved.x)
        .read(saved.weight)
        .read(saved.mean)
        .read(saved.rstd)
        .dimension("rows", rows)
        .dimension("features", cols)
        .write_or_null(input_gradient.then_some(dx))
        .write_or_null(param_gradients.then_some(&mut *partials));
    // SAFETY: `mod.rs` checks lengths and element types against `rows` and `cols`; the layout's threads cover a row, and
    // each reads its elements of dy before it writes them as dx. `partials` has a place for each block.
    unsafe { launch.run() }?;
    if !param_gradients {
        return Ok(());
    }
    let launch = gpu
        .launch(&KERNELS, "layer_norm_param_gradients")?
        .grid([layout.places().div_ceil(32), 2, 1])
        .block([32, 8, 1])
        .read(partials)
        .dimension("blocks", blocks)
        .dimension("places", layout.places())
        .dimension("threads", layout.threads)
        .dimension("elements of a vector", layout.vector())
        .dimension("features", cols)
        .write_or_null(gradients.weight)
        .write_or_null(gradients.bias);
    // SAFETY: as above; dw and db have `cols` elements.
    Ok(unsafe { launch.run() }?)
}
