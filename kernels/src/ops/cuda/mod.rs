//! What the launches of operations share; beside it, what their kernels share.

pub(super) mod norm;
pub(super) mod tensors;

use crate::device::{Buffer, Gpu, Launch, Source};
use crate::error::Result;

/// The name of an operation's kernel for an element type, and for rows of whole vectors or not: `add_bf16`, `add_bf16_odd`.
macro_rules! kernel_name {
    ($name:literal, $dtype:expr) => {
        match $dtype {
            $crate::device::DType::BF16 => concat!($name, "_bf16"),
            $crate::device::DType::F16 => concat!($name, "_f16"),
            _ => concat!($name, "_f32"),
        }
    };
    ($name:literal, $dtype:expr, whole: $whole:expr) => {
        match ($dtype, $whole) {
            ($crate::device::DType::BF16, true) => concat!($name, "_bf16"),
            ($crate::device::DType::BF16, false) => concat!($name, "_bf16_odd"),
            ($crate::device::DType::F16, true) => concat!($name, "_f16"),
            ($crate::device::DType::F16, false) => concat!($name, "_f16_odd"),
            (_, true) => concat!($name, "_f32"),
            (_, false) => concat!($name, "_f32_odd"),
        }
    };
}
pub(super) use kernel_name;

/// As in pointwise.cuh.
const POINTWISE_THREADS: usize = 256;

/// The launch of a map over arrays of `len` elements of x's type: a thread for each vector of 16 bytes. Its arguments are
/// to come.
pub(super) fn pointwise<'a>(
    gpu: &'a Gpu,
    source: &'static Source,
    kernel: &'static str,
    x: &Buffer,
    len: usize,
) -> Result<Launch<'a>> {
    let blocks = (len * x.dtype().size()).div_ceil(16 * POINTWISE_THREADS);
    Ok(gpu.launch(source, kernel)?.grid([blocks, 1, 1]).block([POINTWISE_THREADS, 1, 1]))
}
