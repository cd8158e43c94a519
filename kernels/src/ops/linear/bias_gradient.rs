//! The bias's gradient on a GPU: the launches of bias_gradient.cu.

use crate::device::{Buffer, Category, DType, Device, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::kernel_name;

static KERNELS: Source = Source { name: "bias_gradient", ptx: include_str!("../../../ptx/bias_gradient.ptx") };

/// As in bias_gradient.cu.
const WARPS: usize = 8;
/// As in bias_gradient.cu: rows of a block.
const ROWS: usize = 64;

/// Each block's sums, `[blocks, features]`.
pub(super) fn partials(device: &Device, n: usize, features: usize) -> Result<Buffer> {
    device.alloc(Category::Workspace, DType::F32, n.div_ceil(ROWS) * features)
}

pub(super) fn launch(gpu: &Gpu, dy: &Buffer, n: usize, partials: &mut Buffer, d_bias: &mut Buffer) -> Result<()> {
    let features = d_bias.len();
    if dy.is_empty() {
        return Ok(());
    }
    let vector = 16 / dy.dtype().size();
    let whole = features.is_multiple_of(vector);
    let columns = 32 * if whole { vector } else { 1 };
    let launch = gpu
        .launch(&KERNELS, kernel_name!("bias_gradient", dy.dtype(), whole: whole))?
        .grid([n.div_ceil(ROWS), features.div_ceil(columns), 1])
        .block([32, WARPS, 1])
        .read(dy)
        .dimension("rows", n)
        .dimension("features", features)
        .write(partials);
    // SAFETY: `mod.rs` checks that dy has `n` rows; `partials` has a row for each of their blocks.
    unsafe { launch.run() }?;
    let launch = gpu
        .launch(&KERNELS, "bias_gradient_sum")?
        .grid([features.div_ceil(32), 1, 1])
        .block([32, 8, 1])
        .read(partials)
        .dimension("blocks", n.div_ceil(ROWS))
        .dimension("features", features)
        .write(d_bias);
    // SAFETY: as above.
    Ok(unsafe { launch.run() }?)
}
