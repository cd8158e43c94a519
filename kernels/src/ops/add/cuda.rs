//! The GPU's sums: the launch of add.cu.

use crate::device::{Buffer, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::{kernel_name, pointwise};

static KERNELS: Source = Source { name: "add", ptx: include_str!("../../../ptx/add.ptx") };

pub(super) fn add_assign(gpu: &Gpu, sum: &mut Buffer, x: &Buffer) -> Result<()> {
    let len = sum.len();
    if len == 0 {
        return Ok(());
    }
    let kernel = kernel_name!("add", sum.dtype());
    let launch = pointwise(gpu, &KERNELS, kernel, sum, len)?.write(sum).read(x).value(len as u64);
    // SAFETY: `mod.rs` checks that both have the same length and element type.
    Ok(unsafe { launch.run() }?)
}
