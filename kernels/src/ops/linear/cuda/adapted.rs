//! A weight with an adapter inside: launches of linear_adapted.cu, linear_adapted_gradient.cu and linear_adapted_plain.cu.

use super::gradients::add_parts;
use super::plain::{self, Side, Target};
use super::{Shape, Weight, is_plain, type_number};
use crate::device::{Backend, Buffer, Category, CudaResult, DType, Device, Gpu, Launch, Source, Span};
use crate::error::Result;
use crate::ops::cuda::kernel_name;
use crate::weight::{Adapted, Form, WeightRef};

static PRODUCTS: Source = Source { name: "linear_adapted", ptx: include_str!("../../../../ptx/linear_adapted.ptx") };
static GRADIENT: Source =
    Source { name: "linear_adapted_gradient", ptx: include_str!("../../../../ptx/linear_adapted_gradient.ptx") };
static PLAIN: Source =
    Source { name: "linear_adapted_plain", ptx: include_str!("../../../../ptx/linear_adapted_plain.ptx") };

/// As in adapted.cuh: ranks of a chunk, and features of a tile, of which factors have whole ones.
const RANKS: usize = 16;
const SIDE: usize = 32;
/// Words of a feature and a chunk: high and low parts, in pairs.
const WORDS: usize = RANKS;
/// As in linear_adapted.cu.
const THREADS: usize = 256;
const TILE_N: usize = 128;
const SPLIT_THREADS: usize = 256;
const SHARED: usize = 96_128;
const TWO_FOUR_SHARED: usize = 79_360;
/// As in linear_adapted_gradient.cu: rows and columns of a block's tile of G, its threads.
const TILE: usize = 128;
const TILE_THREADS: usize = 128;
/// As in plain.cuh.
const PLAIN_TILE: usize = 64;
const PLAIN_THREADS: usize = 256;
/// Tiles of G of one launch, whole rows of them: enough for every GPU's SMs, and few enough that what they leave of dA and dB,
/// 1 KiB a tile for each of the rank, is 512 KiB for each, whatever the matrix is.
const TILES: usize = 512;

/// As in adapted.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Inside {
    rows: u64,
    cols: u64,
    height: i32,
    width: i32,
    chunks: i32,
    scaled: i32,
    scale: f32,
    unused: i32,
}

/// As in linear_adapted_plain.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct InsideSide {
    a: u64,
    b: u64,
    rank: i32,
    cols: i32,
    turned: i32,
    scaled: i32,
    scale: f32,
    unused: i32,
}

impl InsideSide {
    fn new(gpu: &Gpu, adapted: Adapted<'_>, turned: bool) -> CudaResult<InsideSide> {
        let (scaled, scale) = numbers(adapted.form);
        Ok(InsideSide {
            a: gpu.address(adapted.a)?,
            b: gpu.address(adapted.b)?,
            rank: adapted.rank as i32,
            cols: adapted.weight.cols() as i32,
            turned: i32::from(turned),
            scaled,
            scale,
            unused: 0,
        })
    }
}

/// Whether entries are scaled, and s.
fn numbers(form: Form) -> (i32, f32) {
    match form {
        Form::Add { scale } => (0, scale),
        Form::Scale => (1, 1.0),
    }
}

/// Words of A's columns' parts, and of B's rows'.
fn split_lens(shape: Shape, rank: usize) -> [usize; 2] {
    [shape.cols, shape.rows].map(|features| rank.div_ceil(RANKS) * features.next_multiple_of(SIDE) * WORDS)
}

/// What lives within a product of x in `dtype`: both factors in two parts, 64 bytes a feature for each 16 of the rank; nothing on
/// the CPU, and for plain products.
pub(in super::super) fn workspace(
    device: &Device,
    dtype: DType,
    shape: Shape,
    weight: WeightRef<'_>,
) -> Result<Buffer> {
    let len = match weight {
        WeightRef::Adapted(adapted)
            if device.backend() == Backend::Cuda && !is_plain(dtype, &[shape.cols, shape.rows]) =>
        {
            split_lens(shape, adapted.rank).iter().sum()
        }
        _ => 0,
    };
    device.alloc(Category::Workspace, DType::U32, len)
}

/// Operations to form all entries, as often as a product does: anew for each tile of rows, on tensor cores in three products of
/// whole chunks of the rank.
pub(in super::super) fn forming_flops(dtype: DType, shape: Shape, adapted: Adapted<'_>) -> usize {
    let entries = shape.rows * shape.cols;
    if is_plain(dtype, &[shape.cols, shape.rows]) {
        return 2 * (adapted.rank + 1) * entries * shape.n.div_ceil(PLAIN_TILE);
    }
    let of_entry = 2 * 3 * adapted.rank.next_multiple_of(RANKS) + 2;
    Weight::of(WeightRef::Frozen(adapted.weight)).map_or(0, |weight| {
        let tile_m = Kernel::of(dtype, weight).tile_m;
        of_entry * entries * shape.n.div_ceil(tile_m)
    })
}

/// Operations of the gradients: G, what becomes of it, and both projections, on tensor cores three of each.
pub(in super::super) fn gradient_flops(dtype: DType, shape: Shape, rank: usize) -> usize {
    let projections = if is_plain(dtype, &[shape.cols, shape.rows]) { rank } else { 3 * rank.next_multiple_of(RANKS) };
    shape.rows * shape.cols * (2 * shape.n + 1 + 4 * projections)
}

/// Kernels for one kind of weight.
struct Kernel {
    forward: &'static str,
    backward_input: &'static str,
    /// Rows of a block's tile.
    tile_m: usize,
    shared: usize,
}

impl Kernel {
    /// For activations in 16 bits.
    fn of(x: DType, weight: Weight<'_>) -> Kernel {
        match (x, weight, weight.dtype()) {
            (DType::BF16, Weight::Packed(_), DType::BF16 | DType::F16) => Kernel {
                forward: "adapted_packed_forward_bf16",
                backward_input: "adapted_packed_backward_input_bf16",
                tile_m: 256,
                shared: SHARED,
            },
            (_, Weight::TwoFour(_), _) => Kernel {
                forward: kernel_name!("adapted_two_four_forward", x),
                backward_input: kernel_name!("adapted_two_four_backward_input", x),
                tile_m: 256,
                shared: TWO_FOUR_SHARED,
            },
            _ => Kernel {
                forward: kernel_name!("adapted_any_forward", x),
                backward_input: kernel_name!("adapted_any_backward_input", x),
                tile_m: 128,
                shared: SHARED,
            },
        }
    }
}

/// The weight's arguments.
fn weight_arguments<'a>(launch: Launch<'a>, weight: Weight<'_>) -> Launch<'a> {
    let launch = match weight {
        Weight::Dense(values) => launch.read_or_null(None).read_or_null(None).read(values),
        Weight::Packed(packed) => launch.read(packed.bits()).read(packed.starts()).read(packed.values()),
        Weight::TwoFour(packed) => launch.read(packed.values()).read(packed.places()),
    };
    launch.value(type_number(weight.dtype()))
}

/// Both factors in two parts, in the order in which lanes take them.
fn split(gpu: &Gpu, shape: Shape, adapted: Adapted<'_>, parts: &mut Buffer) -> Result<Inside> {
    let [of_cols, of_rows] = split_lens(shape, adapted.rank);
    let [width, height] = [shape.cols, shape.rows].map(|features| features.next_multiple_of(SIDE));
    let (scaled, scale) = numbers(adapted.form);
    let chunks = adapted.rank.div_ceil(RANKS) as i32;
    let (width_int, height_int) = (width as i32, height as i32);
    if chunks > 0 {
        // Four words of a thread.
        let blocks = ((of_cols + of_rows) / 4).div_ceil(SPLIT_THREADS);
        let launch = gpu
            .launch(&PRODUCTS, "adapted_split")?
            .grid([blocks, 1, 1])
            .block([SPLIT_THREADS, 1, 1])
            .read(adapted.a)
            .read(adapted.b)
            .dimension("input features", shape.cols)
            .dimension("output features", shape.rows)
            .dimension("of the rank", adapted.rank)
            .dimension("input features", width)
            .dimension("output features", height)
            .write(parts)
            .write_from(parts, of_cols);
        // SAFETY: `mod.rs` checks the factors' lengths; `workspace` has room for both.
        unsafe { launch.run() }?;
    }
    let parts: &Buffer = parts;
    let address = |first| if chunks > 0 { gpu.address_of(Span { buffer: parts, first }) } else { Ok(0) };
    Ok(Inside {
        rows: address(of_cols)?,
        cols: address(0)?,
        height: height_int,
        width: width_int,
        chunks,
        scaled,
        scale,
        unused: 0,
    })
}

/// x·Vᵀ, or dy·V where `turned`.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub shape: Shape,
    /// x or dy.
    pub x: &'a Buffer,
    pub adapted: Adapted<'a>,
    pub bias: Option<&'a Buffer>,
    pub turned: bool,
}

/// The launch on tensor cores, with all arguments up to the output; `parts` is [`workspace`].
pub(super) fn product<'a>(gpu: &'a Gpu, operands: Operands<'_>, parts: &mut Buffer) -> Result<Launch<'a>> {
    let Operands { shape, x, adapted, bias, turned } = operands;
    let inside = split(gpu, shape, adapted, parts)?;
    let weight = Weight::of(WeightRef::Frozen(adapted.weight))?;
    let kernel = Kernel::of(x.dtype(), weight);
    let (name, features) = if turned { (kernel.backward_input, shape.cols) } else { (kernel.forward, shape.rows) };
    let launch = gpu
        .launch(&PRODUCTS, name)?
        .grid([shape.n.div_ceil(kernel.tile_m) * features.div_ceil(TILE_N), 1, 1])
        .block([THREADS, 1, 1])
        .shared(kernel.shared)
        .read(x);
    let launch = weight_arguments(launch, weight).value(inside);
    let launch = if turned { launch } else { launch.read_or_null(bias) };
    Ok(launch
        .dimension("rows", shape.n)
        .dimension("input features", shape.cols)
        .dimension("output features", shape.rows))
}

/// The same by plain multiply-adds, whole.
pub(super) fn plain_product(gpu: &Gpu, operands: Operands<'_>, out: &mut Buffer) -> Result<()> {
    let Operands { shape, x, adapted, bias, turned } = operands;
    let weight = Weight::of(WeightRef::Frozen(adapted.weight))?;
    let (features, depth) = if turned { (shape.cols, shape.rows) } else { (shape.rows, shape.cols) };
    let name = match weight {
        Weight::Dense(_) => "adapted_plain_dense",
        Weight::Packed(_) => "adapted_plain_packed",
        Weight::TwoFour(_) => "adapted_plain_two_four",
    };
    let launch = gpu
        .launch(&PLAIN, name)?
        .grid([shape.n.div_ceil(PLAIN_TILE), features.div_ceil(PLAIN_TILE), 1])
        .block([PLAIN_THREADS, 1, 1])
        .value(Side::rows(gpu, x, depth)?);
    // Entries are found by row and column; the adapter knows what is turned.
    let launch = plain::weight_argument(gpu, launch, weight, shape.cols, false)?
        .value(InsideSide::new(gpu, adapted, turned)?)
        .dimension("rows", shape.n)
        .dimension("features", features)
        .dimension("features", depth)
        .read_or_null(bias)
        .value(Target::set(gpu, out, features)?);
    // SAFETY: `mod.rs` checks every length against the shape and every element type.
    Ok(unsafe { launch.run() }?)
}

/// How G is cut for launches.
struct Slabs {
    /// Rows and columns of a tile.
    tile: usize,
    /// Tiles beside each other.
    wide: usize,
    /// Rows of a launch.
    rows: usize,
}

impl Slabs {
    fn new(dtype: DType, shape: Shape) -> Slabs {
        let tile = if is_plain(dtype, &[shape.cols, shape.rows]) { PLAIN_TILE } else { TILE };
        let wide = shape.cols.div_ceil(tile);
        let high = (TILES / wide.max(1)).max(1);
        Slabs { tile, wide, rows: (high * tile).min(shape.rows) }
    }

    /// Sums of the parts of dB of so many rows, and of dA.
    fn parts(&self, rows: usize, cols: usize, rank: usize) -> [usize; 2] {
        [self.wide * rows * rank, rows.div_ceil(self.tile) * rank * cols]
    }
}

/// Sums of workspace for the gradients' parts of activations in `dtype`.
pub(in super::super) fn parts_len(dtype: DType, shape: Shape, rank: usize) -> usize {
    let slabs = Slabs::new(dtype, shape);
    if shape.n == 0 { 0 } else { slabs.parts(slabs.rows, shape.cols, rank).iter().sum() }
}

/// dA += s·Bᵀ·H and dB += s·H·Aᵀ, with H = M⊙(dyᵀ·x), or W⊙(dyᵀ·x) and no s.
pub(in super::super) fn gradients(
    gpu: &Gpu,
    shape: Shape,
    (x, dy): (&Buffer, &Buffer),
    adapted: Adapted<'_>,
    (d_a, d_b): (&mut Buffer, &mut Buffer),
    parts: &mut Buffer,
) -> Result<()> {
    let (rank, cols) = (adapted.rank, shape.cols);
    if shape.n == 0 || shape.rows * cols * rank == 0 {
        return Ok(());
    }
    let slabs = Slabs::new(x.dtype(), shape);
    let [first_of_a, _] = slabs.parts(slabs.rows, cols, rank);
    let (_, scale) = numbers(adapted.form);
    for first in (0..shape.rows).step_by(slabs.rows) {
        let last = shape.rows.min(first + slabs.rows);
        gradient_parts(gpu, shape, (x, dy), adapted, &slabs, (first, last), (parts, first_of_a))?;
        let high = (last - first).div_ceil(slabs.tile);
        add_parts(gpu, (parts, 0), slabs.wide, (last - first) * rank, scale, (d_b, first * rank))?;
        add_parts(gpu, (parts, first_of_a), high, rank * cols, scale, (d_a, 0))?;
    }
    Ok(())
}

/// The parts of rows `first` to `last` of G: dB's from the workspace's start on, dA's from `first_of_a` on.
fn gradient_parts(
    gpu: &Gpu,
    shape: Shape,
    (x, dy): (&Buffer, &Buffer),
    adapted: Adapted<'_>,
    slabs: &Slabs,
    (first, last): (usize, usize),
    (parts, first_of_a): (&mut Buffer, usize),
) -> Result<()> {
    let Shape { n, cols, rows } = shape;
    let weight = Weight::of(WeightRef::Frozen(adapted.weight))?;
    let high = (last - first).div_ceil(slabs.tile);
    let launch = if is_plain(x.dtype(), &[cols, rows]) {
        let name = match weight {
            Weight::Dense(_) => "adapted_plain_gradient_dense",
            Weight::Packed(_) => "adapted_plain_gradient_packed",
            Weight::TwoFour(_) => "adapted_plain_gradient_two_four",
        };
        let launch = gpu
            .launch(&PLAIN, name)?
            .grid([high, slabs.wide, 1])
            .block([PLAIN_THREADS, 1, 1])
            .value(Side::columns(gpu, dy, rows)?)
            .value(Side::columns(gpu, x, cols)?);
        plain::weight_argument(gpu, launch, weight, cols, false)?
            .value(InsideSide::new(gpu, adapted, false)?)
            .dimension("rows", n)
    } else {
        let name = match weight {
            Weight::Dense(_) => kernel_name!("adapted_gradient_dense", x.dtype()),
            Weight::Packed(_) => kernel_name!("adapted_gradient_packed", x.dtype()),
            Weight::TwoFour(_) => kernel_name!("adapted_gradient_two_four", x.dtype()),
        };
        let launch = gpu.launch(&GRADIENT, name)?.grid([high * slabs.wide, 1, 1]).block([TILE_THREADS, 1, 1]);
        let launch = match weight {
            Weight::Dense(values) => launch.read(values).value(type_number(values.dtype())),
            _ => weight_arguments(launch, weight),
        };
        launch
            .read(dy)
            .read(x)
            .read(adapted.a)
            .read(adapted.b)
            .dimension("rows", n)
            .dimension("input features", cols)
            .dimension("output features", rows)
            .dimension("of the rank", adapted.rank)
            .value(numbers(adapted.form).0)
    };
    let launch = launch
        .dimension("output features", first)
        .dimension("output features", last)
        .write_from(parts, first_of_a)
        .write(parts);
    // SAFETY: `mod.rs` checks every length against the shape and every element type; `parts_len` is the workspace's.
    Ok(unsafe { launch.run() }?)
}
