//! dA, dB and dW.

use super::plain::{self, Side, Target};
use super::{Shape, is_plain};
use crate::device::{Buffer, DType, Gpu, Source, Span};
use crate::error::Result;

static LORA: Source = Source { name: "lora", ptx: include_str!("../../../../ptx/lora.ptx") };
static FULL: Source = Source { name: "linear", ptx: include_str!("../../../../ptx/linear.ptx") };

/// Tokens whose sums make one part of an adapter's gradient: enough that writing and reading the part, 8 bytes for each of the
/// rank, is little beside 2 bytes a token; few enough that 2,048 tokens give every SM a block.
const SPAN: usize = 512;
/// As in lora.cu: ranks of a block.
const RANKS: usize = 16;

/// A cut of a thin product, as in lora.cu.
pub(super) struct Cut {
    /// Of u and v the rows of a block, of dA and dB the features.
    pub extent: usize,
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    pub bf16: &'static str,
    pub f16: &'static str,
}

/// Blocks that keep memory busy.
const BUSY: usize = 64;

impl Cut {
    /// The first of them, which are smaller and smaller, that leaves blocks enough of `extent` rows or features, of which each is
    /// done by `others` blocks.
    pub fn of(cuts: &'static [Cut], extent: usize, others: usize) -> &'static Cut {
        let (last, larger) = cuts.split_last().expect("a cut");
        larger.iter().find(|cut| extent.div_ceil(cut.extent) * others >= BUSY).unwrap_or(last)
    }

    pub fn kernel(&self, dtype: DType) -> &'static str {
        if dtype == DType::BF16 { self.bf16 } else { self.f16 }
    }
}

const CUTS: [Cut; 2] = [
    Cut { extent: 256, threads: 256, shared: 78_336, bf16: "lora_gradient_256_bf16", f16: "lora_gradient_256_f16" },
    Cut { extent: 128, threads: 128, shared: 45_568, bf16: "lora_gradient_128_bf16", f16: "lora_gradient_128_f16" },
];
/// As in linear.cu: rows and columns of a block's tile of dW, and its threads.
const TILE: usize = 128;
const TILE_THREADS: usize = 128;
/// Threads of a block of `lora_gradient_add`, and its blocks at most.
const ADD_THREADS: usize = 256;
const ADD_BLOCKS: usize = 1024;

/// Sums of workspace for the parts of an adapter's gradients of `n` tokens in `dtype`.
pub(in crate::ops) fn parts_len(dtype: DType, shape: Shape, rank: usize) -> usize {
    let len = |features| if is_plain(dtype, &[features]) { 0 } else { shape.n.div_ceil(SPAN) * rank * features };
    len(shape.rows).max(len(shape.cols))
}

/// dA += scale·vᵀ·x and dB += scale·dyᵀ·u
pub(in crate::ops) fn lora_gradients(
    gpu: &Gpu,
    shape: Shape,
    (rank, scale): (usize, f32),
    (x, dy): (Span<'_>, Span<'_>),
    (u, v): (&Buffer, &Buffer),
    (d_a, d_b): (&mut Buffer, &mut Buffer),
    parts: &mut Buffer,
) -> Result<()> {
    let Shape { n, cols, rows } = shape;
    thin(gpu, (n, cols), (rank, scale), x, v, true, parts, d_a)?;
    thin(gpu, (n, rows), (rank, scale), dy, u, false, parts, d_b)
}

/// sums += scale·xᵀ·down `[features, rank]`, turned for dA.
#[allow(clippy::too_many_arguments)]
fn thin(
    gpu: &Gpu,
    (n, features): (usize, usize),
    (rank, scale): (usize, f32),
    x: Span<'_>,
    down: &Buffer,
    turned: bool,
    parts: &mut Buffer,
    sums: &mut Buffer,
) -> Result<()> {
    let (len, count) = (features * rank, n.div_ceil(SPAN));
    if n == 0 || len == 0 {
        return Ok(());
    }
    if is_plain(x.dtype(), &[features]) {
        let (x, down) = (Side::columns(gpu, x, features)?, Side::columns(gpu, down, rank)?);
        return if turned {
            plain::scaled(gpu, (rank, features, n), down, x, scale, Target::add(gpu, sums, features)?)
        } else {
            plain::scaled(gpu, (features, rank, n), x, down, scale, Target::add(gpu, sums, rank)?)
        };
    }
    let cut = Cut::of(&CUTS, features, count);
    let launch = gpu
        .launch(&LORA, cut.kernel(x.dtype()))?
        .grid([features.div_ceil(cut.extent), rank.div_ceil(RANKS), count])
        .block([cut.threads, 1, 1])
        .shared(cut.shared)
        .read_from(x)
        .read(down)
        .dimension("rows", n)
        .dimension("features", features)
        .dimension("of the rank", rank)
        .dimension("tokens", SPAN)
        .value(i32::from(turned))
        .write(parts);
    // SAFETY: `mod.rs` checks every length against the shape and every element type; `parts_len` is the workspace's.
    unsafe { launch.run() }?;
    add_parts(gpu, (parts, 0), count, len, scale, (sums, 0))
}

/// sums += scale·Σ of `count` parts of `len` numbers, in order; both from an element of their buffers on.
pub(super) fn add_parts(
    gpu: &Gpu,
    (parts, first_part): (&Buffer, usize),
    count: usize,
    len: usize,
    scale: f32,
    (sums, first_sum): (&mut Buffer, usize),
) -> Result<()> {
    let launch = gpu
        .launch(&LORA, "lora_gradient_add")?
        .grid([len.div_ceil(ADD_THREADS).min(ADD_BLOCKS), 1, 1])
        .block([ADD_THREADS, 1, 1])
        .read_from(Span { buffer: parts, first: first_part })
        .dimension("parts", count)
        .value(len as u64)
        .value(scale)
        .write_from(sums, first_sum);
    // SAFETY: both buffers hold as many numbers from there on: `mod.rs` checks the gradients' lengths, and sizes the workspace.
    Ok(unsafe { launch.run() }?)
}

/// dW += scale·dyᵀ·x
pub(in crate::ops) fn weight_gradient(
    gpu: &Gpu,
    shape: Shape,
    scale: f32,
    x: Span<'_>,
    dy: Span<'_>,
    d_weight: &mut Buffer,
) -> Result<()> {
    let Shape { n, cols, rows } = shape;
    let tiles = rows.div_ceil(TILE) * cols.div_ceil(TILE);
    if n == 0 || tiles == 0 {
        return Ok(());
    }
    if is_plain(x.dtype(), &[rows, cols]) {
        let (dy, x) = (Side::columns(gpu, dy, rows)?, Side::columns(gpu, x, cols)?);
        return plain::scaled(gpu, (rows, cols, n), dy, x, scale, Target::add(gpu, d_weight, cols)?);
    }
    let name = if x.dtype() == DType::BF16 { "linear_weight_gradient_bf16" } else { "linear_weight_gradient_f16" };
    let launch = gpu
        .launch(&FULL, name)?
        .grid([tiles, 1, 1])
        .block([TILE_THREADS, 1, 1])
        .read_from(dy)
        .read_from(x)
        .dimension("rows", n)
        .dimension("input features", cols)
        .dimension("output features", rows)
        .value(scale)
        .write(d_weight);
    // SAFETY: as above.
    Ok(unsafe { launch.run() }?)
}
