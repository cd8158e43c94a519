//! Launches of linear_plain.cu: products of anything.

use super::{Weight, type_number};
use crate::device::{Buffer, CudaResult, Gpu, Launch, Source, Span};
use crate::error::Result;

static KERNELS: Source = Source { name: "linear_plain", ptx: include_str!("../../../../ptx/linear_plain.ptx") };

/// As in plain.cuh.
const TILE: usize = 64;
const THREADS: usize = 256;

/// As in plain.cuh: entry (i, k) lies at i·outer + k·inner.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Side {
    data: u64,
    outer: u64,
    inner: u64,
    dtype: i32,
    unused: i32,
}

impl Side {
    /// The rows of `[.., width]` along k.
    pub fn rows<'a>(gpu: &Gpu, span: impl Into<Span<'a>>, width: usize) -> CudaResult<Side> {
        Side::new(gpu, span.into(), width, 1)
    }

    /// The columns of `[.., width]` along k.
    pub fn columns<'a>(gpu: &Gpu, span: impl Into<Span<'a>>, width: usize) -> CudaResult<Side> {
        Side::new(gpu, span.into(), 1, width)
    }

    fn new(gpu: &Gpu, span: Span<'_>, outer: usize, inner: usize) -> CudaResult<Side> {
        let (outer, inner, dtype) = (outer as u64, inner as u64, type_number(span.dtype()));
        Ok(Side { data: gpu.address_of(span)?, outer, inner, dtype, unused: 0 })
    }

    /// Nothing, for a depth of nothing.
    fn none() -> Side {
        bytemuck::Zeroable::zeroed()
    }
}

/// As in plain.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PackedSide {
    bits: u64,
    starts: u64,
    values: u64,
    dtype: i32,
    cols: i32,
    turned: i32,
    unused: i32,
}

/// As in plain.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TwoFourSide {
    values: u64,
    places: u64,
    dtype: i32,
    cols: i32,
    turned: i32,
    unused: i32,
}

/// As in plain.cuh: C, row-major.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Target {
    data: u64,
    width: u64,
    dtype: i32,
    add: i32,
}

impl Target {
    /// C is written, in its own type.
    pub fn set(gpu: &Gpu, c: &mut Buffer, width: usize) -> CudaResult<Target> {
        Target::set_from(gpu, c, 0, width)
    }

    /// C is written from an element of the buffer on.
    pub fn set_from(gpu: &Gpu, buffer: &mut Buffer, first: usize, width: usize) -> CudaResult<Target> {
        let c = Span { buffer, first };
        Ok(Target { data: gpu.address_of(c)?, width: width as u64, dtype: type_number(c.dtype()), add: 0 })
    }

    /// C, in f32, is added to.
    pub fn add(gpu: &Gpu, c: &mut Buffer, width: usize) -> CudaResult<Target> {
        Ok(Target { add: 1, ..Target::set(gpu, c, width)? })
    }
}

/// The adapter's sides, where both could be addressed.
pub fn both(sides: Option<[CudaResult<Side>; 2]>) -> CudaResult<Option<[Side; 2]>> {
    sides.map(|[down, up]| Ok([down?, up?])).transpose()
}

/// C `[m, n]` = scale·(A·B + the adapter's product of depth `rank`) + bias. B is the weight, whose rows have `cols` entries, turned
/// where its rows run across k.
#[allow(clippy::too_many_arguments)]
pub fn product(
    gpu: &Gpu,
    (m, n, k): (usize, usize, usize),
    a: Side,
    (weight, cols, turned): (Weight<'_>, usize, bool),
    adapter: Option<[Side; 2]>,
    (rank, scale): (usize, f32),
    bias: Option<&Buffer>,
    c: Target,
) -> Result<()> {
    let [down, up] = adapter.unwrap_or([Side::none(); 2]);
    let grid = [m.div_ceil(TILE), n.div_ceil(TILE), 1];
    let name = match weight {
        Weight::Dense(_) => "linear_plain",
        Weight::Packed(_) => "linear_plain_packed",
        Weight::TwoFour(_) => "linear_plain_two_four",
    };
    let launch = weight_argument(gpu, gpu.launch(&KERNELS, name)?.value(a), weight, cols, turned)?;
    let launch = launch
        .grid(grid)
        .block([THREADS, 1, 1])
        .value(down)
        .value(up)
        .dimension("rows", m)
        .dimension("features", n)
        .dimension("features", k)
        .dimension("of the rank", rank)
        .value(scale)
        .read_or_null(bias)
        .value(c);
    // SAFETY: `mod.rs` checks every length against the shape and every element type; the strides are those of the shape.
    Ok(unsafe { launch.run() }?)
}

/// The launch with the weight as its next argument.
pub fn weight_argument<'a>(
    gpu: &Gpu,
    launch: Launch<'a>,
    weight: Weight<'_>,
    cols: usize,
    turned: bool,
) -> CudaResult<Launch<'a>> {
    Ok(match weight {
        Weight::Dense(values) if turned => launch.value(Side::columns(gpu, values, cols)?),
        Weight::Dense(values) => launch.value(Side::rows(gpu, values, cols)?),
        Weight::Packed(packed) => launch.value(PackedSide {
            bits: gpu.address(packed.bits())?,
            starts: gpu.address(packed.starts())?,
            values: gpu.address(packed.values())?,
            dtype: type_number(packed.values().dtype()),
            cols: cols as i32,
            turned: i32::from(turned),
            unused: 0,
        }),
        Weight::TwoFour(packed) => launch.value(TwoFourSide {
            values: gpu.address(packed.values())?,
            places: gpu.address(packed.places())?,
            dtype: type_number(packed.values().dtype()),
            cols: cols as i32,
            turned: i32::from(turned),
            unused: 0,
        }),
    })
}

/// C `[m, n]` = scale · A·B, or C += scale · A·B, of dense operands.
pub fn scaled(gpu: &Gpu, (m, n, k): (usize, usize, usize), a: Side, b: Side, scale: f32, c: Target) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let launch = gpu
        .launch(&KERNELS, "linear_plain")?
        .grid([m.div_ceil(TILE), n.div_ceil(TILE), 1])
        .block([THREADS, 1, 1])
        .value(a)
        .value(b)
        .value(Side::none())
        .value(Side::none())
        .dimension("rows", m)
        .dimension("columns", n)
        .dimension("terms", k)
        .value(0i32)
        .value(scale)
        .read_or_null(None)
        .value(c);
    // SAFETY: as above.
    Ok(unsafe { launch.run() }?)
}
