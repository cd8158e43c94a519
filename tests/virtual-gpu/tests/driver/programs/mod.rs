//! The programs: each an ignored test that only runs where a GPU, virtual or not, is found.

mod calls;
mod devices;
mod faults;
mod graphs;
mod right;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg, sys};

/// `scale(x, a, n)`: x[i] *= a for i < n. `add_one(x)`: x[0] += 1. `table`: a variable, and `read_table(x)`: x[0] =
/// table[1]. `wide(x)`: x[0] = 7, by way of the last 4 of 80 KiB of dynamic shared memory.
pub const PTX: &str = include_str!("programs.ptx");

/// The device, a stream that no other waits for, and a function of the programs' module.
pub fn open(name: &str) -> (Arc<CudaContext>, Arc<CudaStream>, CudaFunction) {
    let context = CudaContext::new(0).unwrap();
    let module = context.load_module(PTX.into()).unwrap();
    let function = module.load_function(name).unwrap();
    let stream = context.new_stream().unwrap();
    (context, stream, function)
}

/// One block of 32 threads for each 32 elements.
pub fn blocks_for(n: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (n.div_ceil(32), 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 }
}

/// Launches `scale` on `n` elements.
pub fn scale(stream: &Arc<CudaStream>, function: &CudaFunction, x: &mut CudaSlice<f32>, a: f32, n: u32) {
    let mut launch = stream.launch_builder(function);
    launch.arg(x).arg(&a).arg(&n);
    // SAFETY: the arguments are those of `scale`.
    unsafe { launch.launch(blocks_for(n)) }.unwrap();
}

/// Asserts what a call of the driver answered.
#[track_caller]
pub fn ok(status: sys::CUresult) {
    assert_eq!(status, sys::CUresult::CUDA_SUCCESS);
}
