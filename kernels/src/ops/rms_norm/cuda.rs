//! The GPU's RMSNorm: the launches of rms_norm.cu.

use crate::device::{Buffer, Device, Gpu, Source};
use crate::error::Result;
use crate::ops::InputGradient;
use crate::ops::cuda::kernel_name;
use crate::ops::cuda::norm::Layout;

static KERNELS: Source = Source { name: "rms_norm", ptx: include_str!("../../../ptx/rms_norm.ptx") };

pub(super) fn forward(
    gpu: &Gpu,
    op: &'static str,
    (x, weight, eps): (&Buffer, &Buffer, f32),
    rows: usize,
    y: &mut Buffer,
    rstd: &mut Buffer,
) -> Result<()> {
    let layout = Layout::of(op, x.dtype(), weight.len(), 1)?;
    if rows == 0 {
        return Ok(());
    }
    let launch = layout
        .forward(gpu, &KERNELS, kernel_name!("rms_norm_forward", x.dtype(), whole: layout.whole), rows)?
        .read(x)
        .read(weight)
        .value(eps)
        .dimension("rows", rows)
        .dimension("features", weight.len())
        .write(y)
        .write(rstd);
    // SAFETY: `mod.rs` checks lengths and element types against the rows and features; the layout's threads cover a row.
    Ok(unsafe { launch.run() }?)
}

/// x and what forward saved.
pub(super) struct Saved<'a> {
    pub x: &'a Buffer,
    pub weight: &'a Buffer,
    pub rstd: &'a Buffer,
}

/// What [`backward`] leaves for the sum of dw.
pub(super) fn partials(
    device: &Device,
    op: &'static str,
    x: &Buffer,
    (rows, cols): (usize, usize),
    wanted: bool,
) -> Result<Buffer> {
    Layout::of(op, x.dtype(), cols, 1)?.partials(device, rows, wanted)
}

pub(super) fn backward(
    gpu: &Gpu,
    op: &'static str,
    saved: &Saved<'_>,
    rows: usize,
    dx: &mut Buffer,
    input_gradient: InputGradient<'_>,
    d_weight: Option<&mut Buffer>,
    partials: &mut Buffer,
) -> Result<()> {
    let (cols, dtype) = (saved.weight.len(), saved.x.dtype());
    let layout = Layout::of(op, dtype, cols, 1)?;
    if rows == 0 || !(input_gradient.is_wanted() || d_weight.is_some()) {
        return Ok(());
    }
    let launch = layout
        .backward(gpu, &KERNELS, kernel_name!("rms_norm_backward", dtype, whole: layout.whole), rows)?
        .read(dx)
        .read(saved.x)
        .read(saved.weight)
        .read(saved.rstd)
        .dimension("rows", rows)
        .dimension("features", cols)
        .read_or_null(input_gradient.sum())
        .write_or_null(input_gradient.is_wanted().then_some(dx))
        .write_or_null(d_weight.is_some().then_some(&mut *partials));
    // SAFETY: `mod.rs` checks lengths and element types against `rows` and `cols`; the layout's threads cover a row, and
    // each reads its elements of dy before it writes them as dx. `partials` has a place for each block.
    unsafe { launch.run() }?;
    let Some(d_weight) = d_weight else { return Ok(()) };
    let launch = layout.sum(gpu, &KERNELS, "rms_norm_weight_gradient", rows, partials)?.write(d_weight);
    // SAFETY: as above; dw has `cols` elements.
    Ok(unsafe { launch.run() }?)
}
