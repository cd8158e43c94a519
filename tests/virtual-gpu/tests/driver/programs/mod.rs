//! The programs: each an ignored test that only runs where a GPU, virtual or not, is found.

mod calls;
mod devices;
mod faults;
mod graphs;
mod right;

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
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

/// An entry point by name, with the flags of `cuGetProcAddress`.
///
/// # Safety
/// `F` must be the type of the function.
pub unsafe fn entry<F: Copy>(name: &CStr, flags: u64) -> F {
    let mut entry = null_mut();
    // SAFETY: the arguments are those that the call wants; the caller vouches for the type.
    unsafe {
        ok(sys::cuGetProcAddress_v2(name.as_ptr(), &mut entry, 12020, flags, null_mut()));
        std::mem::transmute_copy(&entry)
    }
}

type LaunchKernel = unsafe extern "C" fn(
    sys::CUfunction,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    sys::CUstream,
    *mut *mut c_void,
    *mut *mut c_void,
) -> sys::CUresult;
type Synchronize = unsafe extern "C" fn(sys::CUstream) -> sys::CUresult;
type CopyToHost = unsafe extern "C" fn(*mut c_void, u64, usize) -> sys::CUresult;

/// Calls as a program makes them that names no stream.
#[derive(Clone, Copy)]
pub struct NoStream {
    launch: LaunchKernel,
    synchronize: Synchronize,
    copy: CopyToHost,
}

impl NoStream {
    /// Compiled as usual: no stream means the legacy default stream.
    pub fn legacy() -> NoStream {
        NoStream::exported("cuLaunchKernel", "cuStreamSynchronize", "cuMemcpyDtoH_v2")
    }

    /// Compiled with `--default-stream per-thread`.
    pub fn per_thread() -> NoStream {
        NoStream::exported("cuLaunchKernel_ptsz", "cuStreamSynchronize_ptsz", "cuMemcpyDtoH_v2_ptds")
    }

    fn exported(launch: &str, synchronize: &str, copy: &str) -> NoStream {
        // SAFETY: the types are those of `cuda.h`; the driver stays loaded, by cudarc if by no one else.
        unsafe {
            let library = libloading::Library::new("libcuda.so").unwrap();
            NoStream {
                launch: *library.get(launch).unwrap(),
                synchronize: *library.get(synchronize).unwrap(),
                copy: *library.get(copy).unwrap(),
            }
        }
    }

    /// The same calls by `cuGetProcAddress`.
    pub fn per_thread_by_name() -> NoStream {
        // SAFETY: the types are those of `cuda.h`.
        unsafe {
            NoStream {
                launch: entry(c"cuLaunchKernel", 2),
                synchronize: entry(c"cuStreamSynchronize", 2),
                copy: entry(c"cuMemcpyDtoH", 2),
            }
        }
    }

    /// Launches `scale` on 64 elements.
    pub fn scale(self, function: &CudaFunction, x: u64, a: f32) {
        let (mut x, mut a, mut n) = (x, a, 64u32);
        let mut params: [*mut c_void; 3] = [(&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
        let (f, params) = (function.cu_function(), params.as_mut_ptr());
        // SAFETY: the parameters are those of `scale`.
        ok(unsafe { (self.launch)(f, 2, 1, 1, 32, 1, 1, 0, null_mut(), params, null_mut()) });
    }

    /// Waits for the default stream.
    pub fn synchronize(self) -> sys::CUresult {
        // SAFETY: null is a stream.
        unsafe { (self.synchronize)(null_mut()) }
    }

    /// What 64 elements hold.
    pub fn read(self, x: u64) -> Result<[f32; 64], sys::CUresult> {
        let mut host = [0.0f32; 64];
        // SAFETY: the buffer holds 256 bytes.
        match unsafe { (self.copy)(host.as_mut_ptr().cast(), x, 256) } {
            sys::CUresult::CUDA_SUCCESS => Ok(host),
            status => Err(status),
        }
    }
}

/// 64 ones on the device, that all is quiet about.
pub fn ones() -> u64 {
    let mut x = 0;
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        ok(sys::cuMemAlloc_v2(&mut x, 256));
        ok(sys::cuMemsetD32_v2(x, 1.0f32.to_bits(), 64));
        ok(sys::cuCtxSynchronize());
    }
    x
}

/// Asserts what a call of the driver answered.
#[track_caller]
pub fn ok(status: sys::CUresult) {
    assert_eq!(status, sys::CUresult::CUDA_SUCCESS);
}
