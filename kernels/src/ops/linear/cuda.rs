//! The GPU's linear layers: dense weights on tensor cores.

use super::Lora;
use crate::device::{Buffer, DType, Gpu, Source};
use crate::error::{Error, Result, expect_dtype};
use crate::weight::{FrozenWeight, WeightRef};

static KERNELS: Source = Source { name: "linear", ptx: include_str!("../../../ptx/linear.ptx") };

/// As in linear.cu.
const THREADS: usize = 128;
/// As in linear.cu: rows and columns of a block's tile.
const TILE: usize = 128;
/// Features must be multiples of this for copies of 16 bytes.
const CHUNK: usize = 8;

/// The entries of a weight that the kernels can multiply with `x`: dense, in x's element type.
pub(super) fn entries<'a>(
    op: &'static str,
    x: &Buffer,
    weight: WeightRef<'a>,
    lora: Option<Lora<'_>>,
) -> Result<&'a Buffer> {
    let unsupported = |what: &str| Err(Error::Unsupported { op, what: what.into(), device: "cuda" });
    if lora.is_some() {
        return unsupported("an adapter");
    }
    let values = match weight {
        WeightRef::Frozen(FrozenWeight::Dense(dense)) => dense.values(),
        WeightRef::Frozen(FrozenWeight::Sparse(_) | FrozenWeight::Blocks(_)) => {
            return unsupported("a packed sparse weight");
        }
        WeightRef::Trainable { .. } => return unsupported("a trainable weight"),
    };
    if !matches!(x.dtype(), DType::BF16 | DType::F16) {
        return Err(Error::DType { op, what: "x", expected: DType::BF16, got: x.dtype() });
    }
    expect_dtype(op, "weight", values.dtype(), x.dtype())?;
    Ok(values)
}

/// Rows and features of x and y.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub n: usize,
    pub cols: usize,
    pub rows: usize,
}

impl Shape {
    fn is_even(self) -> bool {
        self.cols.is_multiple_of(CHUNK) && self.rows.is_multiple_of(CHUNK)
    }
}

/// y = x·Wᵀ + b
pub(super) fn forward(
    gpu: &Gpu,
    shape: Shape,
    x: &Buffer,
    weight: &Buffer,
    bias: Option<&Buffer>,
    y: &mut Buffer,
) -> Result<()> {
    let tiles = shape.n.div_ceil(TILE) * shape.rows.div_ceil(TILE);
    if tiles == 0 {
        return Ok(());
    }
    let kernel = match (x.dtype(), shape.is_even()) {
        (DType::BF16, true) => "linear_forward_bf16",
        (DType::BF16, false) => "linear_forward_bf16_odd",
        (_, true) => "linear_forward_f16",
        (_, false) => "linear_forward_f16_odd",
    };
    let launch = gpu
        .launch(&KERNELS, kernel)?
        .grid([tiles, 1, 1])
        .block([THREADS, 1, 1])
        .read(x)
        .read(weight)
        .read_or_null(bias)
        .dimension("rows", shape.n)
        .dimension("input features", shape.cols)
        .dimension("output features", shape.rows)
        .write(y);
    // SAFETY: `mod.rs` checks every length against the shape, `entries` the element types.
    Ok(unsafe { launch.run() }?)
}

/// dx = dy·W
pub(super) fn backward_input(gpu: &Gpu, shape: Shape, dy: &Buffer, weight: &Buffer, dx: &mut Buffer) -> Result<()> {
    let tiles = shape.n.div_ceil(TILE) * shape.cols.div_ceil(TILE);
    if tiles == 0 {
        return Ok(());
    }
    let kernel = match (dy.dtype(), shape.is_even()) {
        (DType::BF16, true) => "linear_backward_input_bf16",
        (DType::BF16, false) => "linear_backward_input_bf16_odd",
        (_, true) => "linear_backward_input_f16",
        (_, false) => "linear_backward_input_f16_odd",
    };
    let launch = gpu
        .launch(&KERNELS, kernel)?
        .grid([tiles, 1, 1])
        .block([THREADS, 1, 1])
        .read(dy)
        .read(weight)
        .dimension("rows", shape.n)
        .dimension("input features", shape.cols)
        .dimension("output features", shape.rows)
        .write(dx);
    // SAFETY: as in `forward`.
    Ok(unsafe { launch.run() }?)
}
