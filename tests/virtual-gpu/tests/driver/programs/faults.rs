//! Programs with one mistake each.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, PinnedHostSlice, sys};

use super::graphs::scale_node;
use super::{NoStream, ok, ones, open, scale};

/// Two streams that cudarc does not order, and the kernel.
fn two_streams() -> (Arc<CudaContext>, [Arc<CudaStream>; 2], CudaFunction) {
    let (context, first, function) = open("scale");
    let second = context.new_stream().unwrap();
    // SAFETY: the missing order is what these programs are about; no host memory is freed too early.
    unsafe { context.disable_event_tracking() };
    (context, [first, second], function)
}

const ILLEGAL_STATE: sys::CUresult = sys::CUresult::CUDA_ERROR_ILLEGAL_STATE;

#[test]
#[ignore = "needs a virtual GPU"]
fn out_of_bounds() {
    let (_context, stream, function) = open("scale");
    let mut x = stream.clone_htod(&[1.0f32; 64]).unwrap();
    scale(&stream, &function, &mut x, 2.0, 64);
    stream.synchronize().unwrap();
    // 65 elements in one block, so that the one past the end is thread 64.
    let mut launch = stream.launch_builder(&function);
    use cudarc::driver::PushKernelArg;
    launch.arg(&mut x).arg(&2.0f32).arg(&65u32);
    let one_block = cudarc::driver::LaunchConfig { grid_dim: (1, 1, 1), block_dim: (96, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of `scale`; that one is too large is what this program is about.
    unsafe { launch.launch(one_block) }.unwrap();
    let illegal = sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(stream.synchronize().unwrap_err().0, illegal);
    // The context is lost: every later call says so.
    assert_eq!(stream.context().mem_get_info().unwrap_err().0, illegal);
    std::mem::forget(x);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn unordered_kernels() {
    let (context, [first, second], function) = two_streams();
    let mut x = first.clone_htod(&[1.0f32; 64]).unwrap();
    first.synchronize().unwrap();
    scale(&first, &function, &mut x, 2.0, 64);
    scale(&second, &function, &mut x, 3.0, 64);
    assert_eq!(context.synchronize().unwrap_err().0, ILLEGAL_STATE);
    std::mem::forget(x);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn unordered_host_copy() {
    let (_context, [first, _], function) = two_streams();
    let mut x = first.clone_htod(&[1.0f32; 64]).unwrap();
    first.synchronize().unwrap();
    scale(&first, &function, &mut x, 2.0, 64);
    // A synchronous copy is ordered with the default stream alone, which this stream does not wait for.
    let mut host = [0.0f32; 64];
    let (address, _order) = cudarc::driver::DevicePtr::device_ptr(&x, &first);
    // SAFETY: address and buffer hold 256 bytes.
    let status = unsafe { sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), address, 256) };
    assert_eq!(status, ILLEGAL_STATE);
    drop(_order);
    std::mem::forget(x);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn copy_before_the_kernel_on_another_stream() {
    let (context, [first, second], function) = two_streams();
    let mut x = first.alloc_zeros::<f32>(64).unwrap();
    first.synchronize().unwrap();
    first.memcpy_htod(&[1.0f32; 64], &mut x).unwrap();
    scale(&second, &function, &mut x, 2.0, 64);
    assert_eq!(context.synchronize().unwrap_err().0, ILLEGAL_STATE);
    std::mem::forget(x);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn free_while_used() {
    let (context, [first, _], function) = two_streams();
    let (mut address, mut n, mut a) = (0, 64u32, 2.0f32);
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        ok(sys::cuMemAlloc_v2(&mut address, 256));
        ok(sys::cuMemsetD32_v2(address, 0, 64));
        ok(sys::cuCtxSynchronize());
        let mut params: [*mut std::ffi::c_void; 3] =
            [(&raw mut address).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
        let f = function.cu_function();
        let null = std::ptr::null_mut();
        ok(sys::cuLaunchKernel(f, 2, 1, 1, 32, 1, 1, 0, first.cu_stream(), params.as_mut_ptr(), null));
        assert_eq!(sys::cuMemFree_v2(address), ILLEGAL_STATE);
    }
    assert_eq!(context.synchronize().unwrap_err().0, ILLEGAL_STATE);
}

/// A page-locked buffer of ones, and where it is.
fn pinned_ones(context: &Arc<CudaContext>, len: usize) -> (PinnedHostSlice<f32>, *mut f32) {
    // SAFETY: written at once.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(len) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1.0);
    let raw = pinned.as_mut_ptr().unwrap();
    (pinned, raw)
}

#[test]
#[ignore = "needs a virtual GPU"]
fn pinned_buffer_written_too_early() {
    let (context, [first, _], _) = two_streams();
    let (pinned, raw) = pinned_ones(&context, 64);
    let x = first.clone_htod(&pinned).unwrap();
    // SAFETY: the pointer is that of the buffer; to write it here is the mistake.
    unsafe { *raw = 2.0 };
    assert_eq!(first.synchronize().unwrap_err().0, ILLEGAL_STATE);
    std::mem::forget((x, pinned));
}

#[test]
#[ignore = "needs a virtual GPU"]
fn part_of_a_pinned_page_written_too_early() {
    let (context, [first, _], _) = two_streams();
    let (pinned, raw) = pinned_ones(&context, 128);
    let x = first.alloc_zeros::<f32>(64).unwrap();
    let (address, _order) = cudarc::driver::DevicePtr::device_ptr(&x, &first);
    // SAFETY: address and buffer hold 256 bytes; to write them before the copy has run is the mistake.
    unsafe {
        ok(sys::cuMemcpyHtoDAsync_v2(address, raw.cast(), 256, first.cu_stream()));
        *raw = 2.0;
    }
    assert_eq!(first.synchronize().unwrap_err().0, ILLEGAL_STATE);
    drop(_order);
    std::mem::forget((x, pinned));
}

#[test]
#[ignore = "needs a virtual GPU"]
fn pinned_buffer_read_too_early() {
    let (context, [first, _], function) = two_streams();
    let (mut pinned, raw) = pinned_ones(&context, 1500);
    let mut x = first.clone_htod(&pinned).unwrap();
    first.synchronize().unwrap();
    scale(&first, &function, &mut x, 5.0, 1500);
    first.memcpy_dtoh(&x, &mut pinned).unwrap();
    // SAFETY: the pointer is that of the buffer; to read it here is the mistake.
    assert_eq!(unsafe { *raw.add(1200) }, 1.0, "the program goes on with old data");
    assert_eq!(first.synchronize().unwrap_err().0, ILLEGAL_STATE);
    std::mem::forget((x, pinned));
}

#[test]
#[ignore = "needs a virtual GPU"]
fn pinned_buffer_read_after_another_stream_was_waited_for() {
    let (context, [first, second], _) = two_streams();
    let (mut pinned, raw) = pinned_ones(&context, 64);
    let x = first.clone_htod(&[7.0f32; 64]).unwrap();
    first.synchronize().unwrap();
    first.memcpy_dtoh(&x, &mut pinned).unwrap();
    second.synchronize().unwrap();
    // SAFETY: the pointer is that of the buffer; that the other stream was waited for is the mistake.
    assert_eq!(unsafe { *raw }, 1.0);
    assert_eq!(context.synchronize().unwrap_err().0, ILLEGAL_STATE);
    std::mem::forget((x, pinned));
}

#[test]
#[ignore = "needs a virtual GPU"]
fn uninitialised_copy() {
    let (_context, stream, _) = open("scale");
    // SAFETY: that it is read before it is written is the mistake.
    let x = unsafe { stream.alloc::<f32>(64) }.unwrap();
    assert!(stream.clone_dtoh(&x).is_err());
    std::mem::forget(x);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn default_streams_of_two_threads() {
    let (context, _, function) = open("scale");
    let (own, x) = (NoStream::per_thread(), ones());
    own.scale(&function, x, 2.0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            context.bind_to_thread().unwrap();
            // The other thread's work is neither waited for here nor ordered by the legacy stream.
            own.scale(&function, x, 3.0);
            assert_eq!(own.synchronize(), sys::CUresult::CUDA_SUCCESS);
        });
    });
    assert_eq!(own.read(x), Err(ILLEGAL_STATE));
}

#[test]
#[ignore = "needs a virtual GPU"]
fn a_threads_default_stream_beside_a_stream_that_does_not_block() {
    let (_context, [first, _], function) = two_streams();
    let (own, x) = (NoStream::per_thread(), ones());
    let (mut address, mut n, mut a) = (x, 64u32, 2.0f32);
    let mut params: [*mut std::ffi::c_void; 3] = [(&raw mut address).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    let null = std::ptr::null_mut();
    let (f, stream) = (function.cu_function(), first.cu_stream());
    // SAFETY: the parameters are those of `scale`.
    ok(unsafe { sys::cuLaunchKernel(f, 2, 1, 1, 32, 1, 1, 0, stream, params.as_mut_ptr(), null) });
    assert_eq!(own.read(x), Err(ILLEGAL_STATE));
}

#[test]
#[ignore = "needs a virtual GPU"]
fn wild_pointer() {
    let context = CudaContext::new(0).unwrap();
    let _pinned = pinned_ones(&context, 64);
    // SAFETY: there is nothing at this address: the program dies, as it would without a GPU.
    unsafe { std::ptr::with_exposed_provenance_mut::<f32>(0x10000).write_volatile(1.0) };
}

#[test]
#[ignore = "needs a virtual GPU"]
fn branches_of_a_graph() {
    let (context, [first, _], function) = two_streams();
    let x = ones();
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        ok(sys::cuGraphCreate(&mut graph, 0));
        // Element 31 is of both.
        scale_node(graph, &[], &function, (x, 2.0, 32));
        scale_node(graph, &[], &function, (x + 124, 3.0, 32));
        ok(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        ok(sys::cuGraphLaunch(exec, first.cu_stream()));
    }
    assert_eq!(context.synchronize().unwrap_err().0, ILLEGAL_STATE);
}
