//! y, dx, u and v.

use super::super::{Epilogue, Lora};
use super::ending::Ending;
use super::gradients::Cut;
use super::plain::{self, Side, Target};
use super::{Shape, Weight, adapted, is_plain, two_four, type_number};
use crate::device::{Buffer, DType, Gpu, Launch, Source, Span};
use crate::error::{Error, Result};
use crate::weight::WeightRef;

static DENSE: Source = Source { name: "linear", ptx: include_str!("../../../../ptx/linear.ptx") };
static PACKED: Source = Source { name: "linear_packed", ptx: include_str!("../../../../ptx/linear_packed.ptx") };
static LORA: Source = Source { name: "lora", ptx: include_str!("../../../../ptx/lora.ptx") };

/// Kernels for one kind of weight.
pub struct Kernel {
    pub source: &'static Source,
    pub forward: &'static str,
    pub backward_input: &'static str,
    pub threads: usize,
    /// Rows of a block's tile; columns are [`TILE_N`].
    pub tile_m: usize,
    /// Dynamic shared memory.
    pub shared: usize,
}

/// As in linear.cu and linear_packed.cu.
pub const TILE_N: usize = 128;

pub const DENSE_BF16: Kernel = Kernel {
    source: &DENSE,
    forward: "linear_forward_bf16",
    backward_input: "linear_backward_input_bf16",
    // As in linear.cu.
    threads: 128,
    tile_m: 128,
    shared: 0,
};

const PACKED_BF16: Kernel = Kernel {
    source: &PACKED,
    forward: "linear_packed_forward_bf16",
    backward_input: "linear_packed_backward_input_bf16",
    // As in linear_packed.cu.
    threads: 256,
    tile_m: 256,
    shared: 96_128,
};

pub const ANY_BF16: Kernel = Kernel {
    forward: "linear_any_forward_bf16",
    backward_input: "linear_any_backward_input_bf16",
    tile_m: 128,
    ..PACKED_BF16
};

pub const ANY_F16: Kernel =
    Kernel { forward: "linear_any_forward_f16", backward_input: "linear_any_backward_input_f16", ..ANY_BF16 };

impl Kernel {
    /// For activations in 16 bits.
    fn of(x: DType, weight: Weight<'_>) -> &'static Kernel {
        match (x, weight, weight.dtype()) {
            (DType::BF16, Weight::Dense(_), DType::BF16) => &DENSE_BF16,
            (DType::BF16, Weight::Packed(_), DType::BF16 | DType::F16) => &PACKED_BF16,
            (DType::BF16, ..) => &ANY_BF16,
            _ => &ANY_F16,
        }
    }

    /// A launch of `name` for `[n, features]`, with the arguments up to the weight.
    pub fn launch<'a>(
        &self,
        gpu: &'a Gpu,
        name: &'static str,
        (n, features): (usize, usize),
        x: Span<'_>,
        weight: Weight<'_>,
    ) -> Result<Launch<'a>> {
        let tiles = n.div_ceil(self.tile_m) * features.div_ceil(TILE_N);
        let launch = gpu
            .launch(self.source, name)?
            .grid([tiles, 1, 1])
            .block([self.threads, 1, 1])
            .shared(self.shared)
            .read_from(x);
        let launch = match weight {
            Weight::Dense(values) if self.shared == 0 => return Ok(launch.read(values)),
            Weight::Dense(values) => launch.read_or_null(None).read_or_null(None).read(values),
            Weight::Packed(packed) => launch.read(packed.bits()).read(packed.starts()).read(packed.values()),
            // Linear layers have kernels of their own for it, heads have none: no one prunes them so.
            Weight::TwoFour(_) => {
                return Err(Error::Unsupported { op: "head_loss", what: "a 2:4 weight".into(), device: "cuda" });
            }
        };
        Ok(launch.value(type_number(weight.dtype())))
    }
}

/// y = f(x·Wᵀ + b + u·Bᵀ) + r, after u = s·x·Aᵀ. Plain products have no epilogue. `factors` is [`adapted::workspace`].
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn forward(
    gpu: &Gpu,
    shape: Shape,
    x: &Buffer,
    weight: WeightRef<'_>,
    bias: Option<&Buffer>,
    mut lora: Option<(Lora<'_>, &mut Buffer)>,
    (epilogue, saved): (Epilogue<'_>, Option<&mut Buffer>),
    factors: &mut Buffer,
    y: &mut Buffer,
) -> Result<()> {
    if let WeightRef::Adapted(adapted) = weight {
        let operands = adapted::Operands { shape, x, adapted, bias, turned: false };
        if shape.n == 0 || shape.rows == 0 {
            return Ok(());
        }
        if is_plain(x.dtype(), &[shape.cols, shape.rows]) {
            return adapted::plain_product(gpu, operands, y);
        }
        let launch = adapted::product(gpu, operands, factors)?.write(y).value(Ending::new(gpu, epilogue, saved)?);
        // SAFETY: as below.
        return Ok(unsafe { launch.run() }?);
    }
    let weight = Weight::of(weight)?;
    if let Some((lora, u)) = &mut lora {
        project(gpu, (shape.n, shape.cols), x.into(), (lora.a, false), *lora, u)?;
    }
    if shape.n == 0 || shape.rows == 0 {
        return Ok(());
    }
    let (u, b) = (lora.as_ref().map(|(_, u)| &**u), lora.as_ref().map(|(lora, _)| lora.b));
    let rank = lora.as_ref().map_or(0, |(lora, _)| lora.rank);
    if is_plain(x.dtype(), &[shape.cols, shape.rows]) {
        let adapter = u.zip(b).map(|(u, b)| [Side::rows(gpu, u, rank), Side::rows(gpu, b, rank)]);
        let target = Target::set(gpu, y, shape.rows)?;
        let size = (shape.n, shape.rows, shape.cols);
        let x = Side::rows(gpu, x, shape.cols)?;
        return plain::product(
            gpu,
            size,
            x,
            (weight, shape.cols, false),
            plain::both(adapter)?,
            (rank, 1.0),
            bias,
            target,
        );
    }
    let size = (shape.n, shape.rows);
    let launch = match weight {
        Weight::TwoFour(weight) => two_four::forward(gpu, size, x, weight)?,
        _ => {
            let kernel = Kernel::of(x.dtype(), weight);
            kernel.launch(gpu, kernel.forward, size, x.into(), weight)?
        }
    };
    let launch = launch
        .read_or_null(bias)
        .read_or_null(u)
        .read_or_null(b)
        .dimension("of the rank", rank)
        .dimension("rows", shape.n)
        .dimension("input features", shape.cols)
        .dimension("output features", shape.rows)
        .write(y)
        .value(Ending::new(gpu, epilogue, saved)?);
    // SAFETY: `mod.rs` checks every length against the shape and every element type, and allocates what is saved.
    Ok(unsafe { launch.run() }?)
}

/// dx = dy·W + v·A
pub(in super::super) fn backward_input(
    gpu: &Gpu,
    shape: Shape,
    dy: &Buffer,
    weight: WeightRef<'_>,
    lora: Option<(Lora<'_>, &Buffer)>,
    factors: &mut Buffer,
    dx: &mut Buffer,
) -> Result<()> {
    if shape.n == 0 || shape.cols == 0 {
        return Ok(());
    }
    if let WeightRef::Adapted(adapted) = weight {
        let operands = adapted::Operands { shape, x: dy, adapted, bias: None, turned: true };
        if is_plain(dy.dtype(), &[shape.cols, shape.rows]) {
            return adapted::plain_product(gpu, operands, dx);
        }
        let launch = adapted::product(gpu, operands, factors)?.write(dx);
        // SAFETY: as in `forward`.
        return Ok(unsafe { launch.run() }?);
    }
    let weight = Weight::of(weight)?;
    let (v, a) = (lora.map(|(_, v)| v), lora.map(|(lora, _)| lora.a));
    let rank = lora.map_or(0, |(lora, _)| lora.rank);
    if is_plain(dy.dtype(), &[shape.cols, shape.rows]) {
        let adapter = v.zip(a).map(|(v, a)| [Side::rows(gpu, v, rank), Side::columns(gpu, a, shape.cols)]);
        let target = Target::set(gpu, dx, shape.cols)?;
        let size = (shape.n, shape.cols, shape.rows);
        let dy = Side::rows(gpu, dy, shape.rows)?;
        return plain::product(
            gpu,
            size,
            dy,
            (weight, shape.cols, true),
            plain::both(adapter)?,
            (rank, 1.0),
            None,
            target,
        );
    }
    let size = (shape.n, shape.cols);
    let launch = match weight {
        Weight::TwoFour(weight) => two_four::backward_input(gpu, size, dy, weight)?,
        _ => {
            let kernel = Kernel::of(dy.dtype(), weight);
            kernel.launch(gpu, kernel.backward_input, size, dy.into(), weight)?
        }
    };
    let launch = launch
        .read_or_null(v)
        .read_or_null(a)
        .dimension("of the rank", rank)
        .dimension("rows", shape.n)
        .dimension("input features", shape.cols)
        .dimension("output features", shape.rows)
        .write(dx);
    // SAFETY: as in `forward`.
    Ok(unsafe { launch.run() }?)
}

/// v = s·dy·B
pub(in super::super) fn lora_down(gpu: &Gpu, shape: Shape, dy: &Buffer, lora: Lora<'_>, v: &mut Buffer) -> Result<()> {
    project(gpu, (shape.n, shape.rows), dy.into(), (lora.b, true), lora, v)
}

/// out `[n, rank]` = s · x `[n, features]` · the factor, which is `[rank, features]`, or `[features, rank]` where `turned`.
pub(in crate::ops) fn project(
    gpu: &Gpu,
    (n, features): (usize, usize),
    x: Span<'_>,
    (factor, turned): (&Buffer, bool),
    lora: Lora<'_>,
    out: &mut Buffer,
) -> Result<()> {
    /// As in lora.cu: ranks of a block, and its rows.
    const RANKS: usize = 16;
    const CUTS: [Cut; 3] = [
        Cut { extent: 128, threads: 128, shared: 45_568, bf16: "lora_project_128_bf16", f16: "lora_project_128_f16" },
        Cut { extent: 64, threads: 128, shared: 41_728, bf16: "lora_project_64_bf16", f16: "lora_project_64_f16" },
        Cut { extent: 32, threads: 64, shared: 37_888, bf16: "lora_project_32_bf16", f16: "lora_project_32_f16" },
    ];
    if n == 0 || lora.rank == 0 {
        return Ok(());
    }
    if is_plain(x.dtype(), &[features]) {
        let factor = if turned { Side::columns(gpu, factor, lora.rank)? } else { Side::rows(gpu, factor, features)? };
        let target = Target::set(gpu, out, lora.rank)?;
        let x = Side::rows(gpu, x, features)?;
        return plain::scaled(gpu, (n, lora.rank, features), x, factor, lora.scale, target);
    }
    let cut = Cut::of(&CUTS, n, 1);
    let launch = gpu
        .launch(&LORA, cut.kernel(x.dtype()))?
        .grid([n.div_ceil(cut.extent), lora.rank.div_ceil(RANKS), 1])
        .block([cut.threads, 1, 1])
        .shared(cut.shared)
        .read_from(x)
        .read(factor)
        .dimension("rows", n)
        .dimension("features", features)
        .dimension("of the rank", lora.rank)
        .value(i32::from(turned))
        .value(lora.scale)
        .write(out);
    // SAFETY: as in `forward`.
    Ok(unsafe { launch.run() }?)
}
