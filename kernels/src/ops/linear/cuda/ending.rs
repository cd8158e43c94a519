//! An epilogue as the kernels know it.

use super::super::Epilogue;
use crate::device::{Buffer, CudaResult, Gpu};
use crate::ops::activation::cuda::number;

/// As in ending.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Ending {
    residual: u64,
    saved: u64,
    function: i32,
    unused: i32,
}

impl Ending {
    pub fn new(gpu: &Gpu, epilogue: Epilogue<'_>, saved: Option<&mut Buffer>) -> CudaResult<Ending> {
        const NO_FUNCTION: i32 = -1;
        let address = |buffer: Option<&Buffer>| buffer.map_or(Ok(0), |buffer| gpu.address(buffer));
        Ok(Ending {
            residual: address(epilogue.residual)?,
            saved: address(saved.as_deref())?,
            function: epilogue.activation.map_or(NO_FUNCTION, number),
            unused: 0,
        })
    }
}
