//! Launches of linear_two_four.cu: products with a 2:4 weight.

use super::type_number;
use crate::device::{Buffer, CudaResult, Gpu, Launch, Source};
use crate::ops::cuda::kernel_name;
use crate::weight::TwoFourWeight;

static KERNELS: Source = Source { name: "linear_two_four", ptx: include_str!("../../../../ptx/linear_two_four.ptx") };

/// As in linear_two_four.cu.
const THREADS: usize = 256;
/// A block's rows and features of y, and dynamic shared memory.
const FORWARD: ([usize; 2], usize) = ([128, 256], 73_728);
/// The same of dx.
const BACKWARD: ([usize; 2], usize) = ([256, 128], 90_112);

/// The launch for y `[n, features]`, with the arguments up to the weight.
pub fn forward<'a>(gpu: &'a Gpu, size: (usize, usize), x: &Buffer, weight: &TwoFourWeight) -> CudaResult<Launch<'a>> {
    launch(gpu, kernel_name!("linear_two_four_forward", x.dtype()), FORWARD, size, x, weight)
}

/// The launch for dx `[n, features]`, with the arguments up to the weight.
pub fn backward_input<'a>(
    gpu: &'a Gpu,
    size: (usize, usize),
    dy: &Buffer,
    weight: &TwoFourWeight,
) -> CudaResult<Launch<'a>> {
    launch(gpu, kernel_name!("linear_two_four_backward_input", dy.dtype()), BACKWARD, size, dy, weight)
}

fn launch<'a>(
    gpu: &'a Gpu,
    name: &'static str,
    (tile, shared): ([usize; 2], usize),
    (n, features): (usize, usize),
    x: &Buffer,
    weight: &TwoFourWeight,
) -> CudaResult<Launch<'a>> {
    Ok(gpu
        .launch(&KERNELS, name)?
        .grid([n.div_ceil(tile[0]) * features.div_ceil(tile[1]), 1, 1])
        .block([THREADS, 1, 1])
        .shared(shared)
        .read(x)
        .read(weight.values())
        .read(weight.places())
        .value(type_number(weight.values().dtype())))
}
