//! The GPU's LayerNorm: the launches of layer_norm.cu.

use super::ParamGradients;
use crate::device::{Buffer, Device, Gpu, Source};
use crate::error::Result;
use crate::ops::InputGradient;
use crate::ops::cuda::kernel_name;
use crate::ops::cuda::norm::Layout;

static KERNELS: Source = Source { name: "layer_norm", ptx: include_str!("../../../ptx/layer_norm.ptx") };

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
    let (cols, dtype) = (input.weight.len(), input.x.dtype());
    let layout = Layout::of(op, dtype, cols, 2)?;
    if rows == 0 {
        return Ok(());
    }
    let kernel = kernel_name!("layer_norm_forward", dtype, whole: layout.whole);
    let launch = layout
        .forward(gpu, &KERNELS, kernel, rows)?
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

/// What [`backward`] leaves for the sums of dw and db.
pub(super) fn partials(
    device: &Device,
    op: &'static str,
    x: &Buffer,
    (rows, cols): (usize, usize),
    gradients: &ParamGradients<'_>,
) -> Result<Buffer> {
    let wanted = gradients.weight.is_some() || gradients.bias.is_some();
    Layout::of(op, x.dtype(), cols, 2)?.partials(device, rows, wanted)
}

pub(super) fn backward(
    gpu: &Gpu,
    op: &'static str,
    saved: &Saved<'_>,
    rows: usize,
    dx: &mut Buffer,
    input_gradient: InputGradient<'_>,
    gradients: ParamGradients<'_>,
    partials: &mut Buffer,
) -> Result<()> {
    let (cols, dtype) = (saved.weight.len(), saved.x.dtype());
    let layout = Layout::of(op, dtype, cols, 2)?;
    let param_gradients = !partials.is_empty();
    if rows == 0 || !(input_gradient.is_wanted() || param_gradients) {
        return Ok(());
    }
    let kernel = kernel_name!("layer_norm_backward", dtype, whole: layout.whole);
    let launch = layout
        .backward(gpu, &KERNELS, kernel, rows)?
        .read(dx)
        .read(saved.x)
        .read(saved.weight)
        .read(saved.mean)
        .read(saved.rstd)
        .dimension("rows", rows)
        .dimension("features", cols)
        .read_or_null(input_gradient.sum())
        .write_or_null(input_gradient.is_wanted().then_some(dx))
        .write_or_null(param_gradients.then_some(&mut *partials));
    // SAFETY: `mod.rs` checks lengths and element types against `rows` and `cols`; the layout's threads cover a row, and
    // each reads its elements of dy before it writes them as dx. `partials` has a place for each block.
    unsafe { launch.run() }?;
    if !param_gradients {
        return Ok(());
    }
    let launch = layout
        .sum(gpu, &KERNELS, "layer_norm_param_gradients", rows, partials)?
        .write_or_null(gradients.weight)
        .write_or_null(gradients.bias);
    // SAFETY: as above; dw and db have `cols` elements.
    Ok(unsafe { launch.run() }?)
}
