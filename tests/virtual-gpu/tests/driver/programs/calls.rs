//! Calls one by one: what they answer to right and to wrong arguments.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};

use super::{PTX, blocks_for, entry, ok, open, scale};

#[test]
#[ignore = "needs a virtual GPU"]
fn versions_errors_and_entry_points() {
    let _context = CudaContext::new(0).unwrap();
    let mut version = 0;
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        ok(sys::cuDriverGetVersion(&mut version));
        assert_eq!(version, 12020);
        let mut text = std::ptr::null();
        ok(sys::cuGetErrorName(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
        assert_eq!(CStr::from_ptr(text), c"CUDA_ERROR_ILLEGAL_ADDRESS");
        ok(sys::cuGetErrorString(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
        assert_eq!(CStr::from_ptr(text), c"an illegal memory access was encountered");
        ok(sys::cuGetErrorName(CUresult::CUDA_SUCCESS, &mut text));
        assert_eq!(CStr::from_ptr(text), c"CUDA_SUCCESS");

        let mut entry = null_mut();
        let mut found = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        ok(sys::cuGetProcAddress_v2(c"cuMemAlloc".as_ptr(), &mut entry, 12020, 0, &mut found));
        let alloc: unsafe extern "C" fn(*mut u64, usize) -> CUresult = std::mem::transmute(entry);
        let mut address = 0;
        ok(alloc(&mut address, 16));
        ok(sys::cuMemFree_v2(address));
        ok(sys::cuGetProcAddress_v2(c"cuNoSuchThing".as_ptr(), &mut entry, 12020, 0, &mut found));
        assert!(entry.is_null());
        assert_eq!(found, sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
        let status = sys::cuGetProcAddress_v2(c"cuNoSuchThing".as_ptr(), &mut entry, 12020, 0, null_mut());
        assert_eq!(status, CUresult::CUDA_ERROR_NOT_FOUND);
    }
}

#[test]
#[ignore = "needs a virtual GPU"]
fn every_attribute_of_a_device_has_a_value() {
    let _context = CudaContext::new(0).unwrap();
    let mut value = 0;
    for attribute in 1..=134 {
        // SAFETY: the enumeration's numbers are those of CUDA; the driver takes any.
        let status = unsafe {
            let call: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> CUresult = entry(c"cuDeviceGetAttribute", 0);
            call(&mut value, attribute, 0)
        };
        ok(status);
    }
}

#[test]
#[ignore = "needs a virtual GPU"]
fn wrong_arguments_are_refused() {
    let (_context, stream, function) = open("scale");
    // SAFETY: plain calls of the driver; what is wrong with their arguments is refused before it is used.
    unsafe {
        let mut address = 0;
        assert_eq!(sys::cuMemAlloc_v2(null_mut(), 16), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 1 << 60), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(sys::cuMemFree_v2(0xdead), CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuMemFree_v2(0));
        ok(sys::cuMemAlloc_v2(&mut address, 16));
        assert_eq!(sys::cuMemFree_v2(address + 8), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemsetD8_v2(address, 0, 17), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemsetD32_v2(address + 2, 0, 1), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemcpyHtoD_v2(address, std::ptr::null(), 4), CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuMemFree_v2(address));
        assert_eq!(sys::cuMemFree_v2(address), CUresult::CUDA_ERROR_INVALID_VALUE);
        let nonsense = 0x12345 as *mut c_void;
        assert_eq!(sys::cuStreamSynchronize(nonsense.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(sys::cuEventDestroy_v2(nonsense.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(sys::cuModuleUnload(nonsense.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(sys::cuCtxSetCurrent(nonsense.cast()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let mut device = 0;
        assert_eq!(sys::cuDeviceGet(&mut device, 1), CUresult::CUDA_ERROR_INVALID_DEVICE);
        let status = sys::cuMemAllocManaged(&mut address, 16, 1);
        assert_eq!(status, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    let mut x = stream.alloc_zeros::<f32>(64).unwrap();
    let mut refuse = |config: LaunchConfig, status: CUresult| {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut x).arg(&1.0f32).arg(&64u32);
        // SAFETY: the arguments are those of `scale`.
        assert_eq!(unsafe { launch.launch(config) }.unwrap_err().0, status);
    };
    let config = blocks_for(64);
    refuse(LaunchConfig { block_dim: (1025, 1, 1), ..config }, CUresult::CUDA_ERROR_INVALID_VALUE);
    refuse(LaunchConfig { block_dim: (1, 1, 65), ..config }, CUresult::CUDA_ERROR_INVALID_VALUE);
    refuse(LaunchConfig { grid_dim: (0, 1, 1), ..config }, CUresult::CUDA_ERROR_INVALID_VALUE);
    refuse(LaunchConfig { shared_mem_bytes: 49153, ..config }, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn modules_variables_functions_and_the_log() {
    let (context, stream, function) = open("read_table");
    let module = context.load_module(PTX.into()).unwrap();
    assert_eq!(module.load_function("nothing").unwrap_err().0, CUresult::CUDA_ERROR_NOT_FOUND);
    let mut x = stream.alloc_zeros::<u32>(1).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut x);
    // SAFETY: the argument is that of `read_table`.
    unsafe { launch.launch(LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 }) }.unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [11]);
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        let bad =
            c".version 8.2\n.target sm_80\n.address_size 64\n.entry e()\n{\n    frobnicate.u32 %r0;\n    ret;\n}\n";
        let mut log = [1u8; 512];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), 512 as *mut c_void];
        let mut loaded = null_mut();
        let status =
            sys::cuModuleLoadDataEx(&mut loaded, bad.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr());
        assert_eq!(status, CUresult::CUDA_ERROR_INVALID_PTX);
        let text = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
        assert!(text.contains("frobnicate") && text.contains("line 6"), "{text}");
        assert_eq!(values[1].addr(), text.len());
        let status = sys::cuModuleLoadData(&mut loaded, b"\x7fELF\x02".as_ptr().cast());
        assert_eq!(status, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);

        let (mut handle, mut address, mut bytes) = (null_mut(), 0, 0);
        ok(sys::cuFuncGetModule(&mut handle, function.cu_function()));
        ok(sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, handle, c"table".as_ptr()));
        assert_eq!(bytes, 16);
        let mut table = [0u32; 4];
        ok(sys::cuMemcpyDtoH_v2(table.as_mut_ptr().cast(), address, 16));
        assert_eq!(table, [10, 11, 12, 13]);
    }
}

#[test]
#[ignore = "needs a virtual GPU"]
fn linked_texts_are_one_module() {
    let (context, stream, _) = open("scale");
    let callee = ".version 8.2\n.target sm_80\n.address_size 64\n\
        .visible .func (.param .b32 r) thrice(.param .b32 x)\n{\n.reg .b32 %r<3>;\nld.param.u32 %r1, [x];\n\
        mul.lo.u32 %r2, %r1, 3;\nst.param.u32 [r], %r2;\nret;\n}\n";
    let caller = ".version 8.2\n.target sm_80\n.address_size 64\n.extern .func (.param .b32 r) thrice(.param .b32 x);\n\
        .visible .entry triple(.param .u64 p)\n{\n.reg .b32 %r<3>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd1, [p];\n\
        ld.global.u32 %r1, [%rd1];\n{\n.param .b32 a;\n.param .b32 b;\nst.param.b32 [a], %r1;\n\
        call.uni (b), thrice, (a);\nld.param.b32 %r2, [b];\n}\nst.global.u32 [%rd1], %r2;\nret;\n}\n";
    let mut x = stream.clone_htod(&[14u32]).unwrap();
    // SAFETY: plain calls of the driver with the arguments that they want; the image outlives the load.
    unsafe {
        let (mut link, mut image, mut size) = (null_mut(), null_mut(), 0);
        ok(sys::cuLinkCreate_v2(0, null_mut(), null_mut(), &mut link));
        for text in [caller, callee] {
            let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
            let data = text.as_ptr().cast_mut().cast();
            ok(sys::cuLinkAddData_v2(link, kind, data, text.len(), c"".as_ptr(), 0, null_mut(), null_mut()));
        }
        ok(sys::cuLinkComplete(link, &mut image, &mut size));
        let (mut module, mut function) = (null_mut(), null_mut());
        ok(sys::cuModuleLoadData(&mut module, image));
        ok(sys::cuLinkDestroy(link));
        ok(sys::cuModuleGetFunction(&mut function, module, c"triple".as_ptr()));
        let (address, _order) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut x, &stream);
        let address = std::cell::Cell::new(address);
        let mut params: [*mut c_void; 1] = [address.as_ptr().cast()];
        ok(sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream.cu_stream(), params.as_mut_ptr(), null_mut()));
    }
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [42]);
    drop(context);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn what_cuda_has_and_this_driver_has_not_says_so() {
    let _context = CudaContext::new(0).unwrap();
    let not_supported = CUresult::CUDA_ERROR_NOT_SUPPORTED;
    let mut texture = 0;
    // SAFETY: the call takes no notice of its arguments.
    let status = unsafe { sys::cuTexObjectCreate(&mut texture, std::ptr::null(), std::ptr::null(), std::ptr::null()) };
    assert_eq!(status, not_supported);
    let mut array = null_mut();
    // SAFETY: as above.
    assert_eq!(unsafe { sys::cuArrayCreate_v2(&mut array, std::ptr::null()) }, not_supported);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn dynamic_shared_memory_must_be_asked_for() {
    use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
    let (_context, stream, function) = open("wide");
    let mut x = stream.alloc_zeros::<u32>(1).unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 81920 };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut x);
    // SAFETY: the argument is that of `wide`.
    assert_eq!(unsafe { launch.launch(config) }.unwrap_err().0, CUresult::CUDA_ERROR_INVALID_VALUE);
    function.set_attribute(DYNAMIC, 81920).unwrap();
    assert!(function.set_attribute(DYNAMIC, 200_000).is_err());
    // SAFETY: as above.
    unsafe { launch.launch(config) }.unwrap();
    drop(launch);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [7]);
    assert_eq!(function.occupancy_max_active_blocks_per_multiprocessor(128, 81920, None).unwrap(), 2);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn pitched_memory() {
    let _context = CudaContext::new(0).unwrap();
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        let (mut address, mut pitch) = (0, 0);
        ok(sys::cuMemAllocPitch_v2(&mut address, &mut pitch, 100, 4, 4));
        assert!(pitch >= 100 && pitch % 512 == 0);
        ok(sys::cuMemsetD2D16_v2(address, pitch, 0x0102, 50, 4));
        let mut host = [0u8; 40];
        let mut copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 90,
            srcY: 2,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: address,
            srcArray: null_mut(),
            srcPitch: pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            dstHost: host.as_mut_ptr().cast(),
            dstDevice: 0,
            dstArray: null_mut(),
            dstPitch: 20,
            WidthInBytes: 10,
            Height: 2,
        };
        ok(sys::cuMemcpy2D_v2(&copy));
        assert_eq!(host[..10], [2, 1, 2, 1, 2, 1, 2, 1, 2, 1]);
        assert_eq!(host[10..20], [0; 10]);
        assert_eq!(host[20..22], [2, 1]);
        copy.Height = 3; // one row too many
        assert_eq!(sys::cuMemcpy2D_v2(&copy), CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuMemFree_v2(address));
    }
}

#[test]
#[ignore = "needs a virtual GPU"]
fn parameters_as_a_buffer_and_pinned_memory_on_the_device() {
    let (_context, stream, function) = open("add_one");
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        let mut host = null_mut();
        ok(sys::cuMemHostAlloc(&mut host, 4, 2));
        let counter = host.cast::<u32>();
        *counter = 1;
        let mut address = 0u64;
        ok(sys::cuMemHostGetDevicePointer_v2(&mut address, host, 0));
        let mut size = 8usize;
        let mut extra: [*mut c_void; 5] =
            [1 as _, (&raw mut address).cast(), 2 as _, (&raw mut size).cast(), null_mut()];
        let (f, s) = (function.cu_function(), stream.cu_stream());
        ok(sys::cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, s, null_mut(), extra.as_mut_ptr()));
        ok(sys::cuStreamSynchronize(s));
        assert_eq!(*counter, 2);
        let mut kind = 0u32;
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        ok(sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, address));
        assert_eq!(kind, 1);
        ok(sys::cuMemFreeHost(host));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_was_made_can_be_given_back_without_a_current_context() {
    let primary = CudaContext::new(0).unwrap();
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        let (mut address, mut host, mut current) = (0, null_mut(), null_mut());
        let (mut stream, mut event, mut module) = (null_mut(), null_mut(), null_mut());
        let text = std::ffi::CString::new(PTX).unwrap();
        ok(sys::cuMemAlloc_v2(&mut address, 16));
        ok(sys::cuMemHostAlloc(&mut host, 16, 0));
        ok(sys::cuStreamCreate(&mut stream, 0));
        ok(sys::cuEventCreate(&mut event, 0));
        ok(sys::cuModuleLoadData(&mut module, text.as_ptr().cast()));
        ok(sys::cuCtxPopCurrent_v2(&mut current));
        assert_eq!(sys::cuCtxSynchronize(), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        ok(sys::cuMemFree_v2(address));
        ok(sys::cuMemFreeHost(host));
        ok(sys::cuStreamDestroy_v2(stream));
        ok(sys::cuEventDestroy_v2(event));
        ok(sys::cuModuleUnload(module));
        ok(sys::cuCtxPushCurrent_v2(current));
        // A primary context that comes again has the handle that it had.
        drop(primary);
        let mut again = null_mut();
        ok(sys::cuDevicePrimaryCtxRetain(&mut again, 0));
        assert_eq!(again, current);
        ok(sys::cuDevicePrimaryCtxRelease_v2(0));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_forked_process_has_no_devices() {
    let _context = CudaContext::new(0).unwrap();
    // SAFETY: the child makes one call of the driver and ends without running anything else of this program.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let mut count = 0;
            libc::_exit(sys::cuDeviceGetCount(&mut count) as i32);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert_eq!(libc::WEXITSTATUS(status), CUresult::CUDA_ERROR_NOT_INITIALIZED as i32);
    }
}

extern "C" fn forbidden(data: *mut c_void) {
    // SAFETY: the program passes a place for the answer that outlives the call.
    unsafe { *data.cast::<CUresult>() = sys::cuCtxSynchronize() };
}

#[test]
#[ignore = "needs a virtual GPU"]
fn host_functions_run_in_order_and_may_not_call_cuda() {
    let (_context, stream, function) = open("scale");
    let mut answer = CUresult::CUDA_SUCCESS;
    let mut x = stream.clone_htod(&[1.0f32; 32]).unwrap();
    scale(&stream, &function, &mut x, 2.0, 32);
    // SAFETY: the answer outlives the synchronisation below.
    unsafe { ok(sys::cuLaunchHostFunc(stream.cu_stream(), Some(forbidden), (&raw mut answer).cast())) };
    assert_eq!(answer, CUresult::CUDA_SUCCESS, "it waits like all work");
    stream.synchronize().unwrap();
    assert_eq!(answer, CUresult::CUDA_ERROR_NOT_PERMITTED);
}

extern "C" fn raise(data: *mut c_void) {
    // SAFETY: the program passes a flag that outlives the call.
    unsafe { &*data.cast::<AtomicBool>() }.store(true, Ordering::Release);
}

#[test]
#[ignore = "needs a GPU"]
fn a_host_function_comes_without_a_call_that_waits() {
    let (_context, stream, _) = open("scale");
    let raised = AtomicBool::new(false);
    // SAFETY: the flag outlives the wait below.
    unsafe { ok(sys::cuLaunchHostFunc(stream.cu_stream(), Some(raise), (&raw const raised).cast_mut().cast())) };
    while !raised.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_a_kernel_writes_to_the_host_comes_without_a_call_that_waits() {
    let (_context, stream, function) = open("add_one");
    // SAFETY: plain calls of the driver with the arguments that they want; the memory outlives the kernel.
    unsafe {
        let mut host = null_mut();
        ok(sys::cuMemHostAlloc(&mut host, 4, 2));
        let counter = AtomicU32::from_ptr(host.cast());
        counter.store(41, Ordering::Release);
        let mut address = 0u64;
        ok(sys::cuMemHostGetDevicePointer_v2(&mut address, host, 0));
        let mut params: [*mut c_void; 1] = [(&raw mut address).cast()];
        let (f, s) = (function.cu_function(), stream.cu_stream());
        ok(sys::cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, s, params.as_mut_ptr(), null_mut()));
        while counter.load(Ordering::Acquire) != 42 {
            std::thread::yield_now();
        }
        ok(sys::cuStreamSynchronize(s));
        ok(sys::cuMemFreeHost(host));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn page_locked_memory_is_set_like_a_devices() {
    let _context = CudaContext::new(0).unwrap();
    // SAFETY: plain calls of the driver with the arguments that they want; the memory is there until it is freed.
    unsafe {
        let mut host = null_mut();
        ok(sys::cuMemHostAlloc(&mut host, 48, 2));
        let bytes = std::slice::from_raw_parts(host.cast::<u8>(), 48);
        ok(sys::cuMemsetD8_v2(host as u64, 9, 48));
        ok(sys::cuMemsetD2D16_v2(host as u64, 16, 0x0102, 3, 3));
        ok(sys::cuCtxSynchronize());
        let row = |i: usize| if i < 6 { [2, 1][i % 2] } else { 9 };
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == row(i % 16)));
        assert_eq!(sys::cuMemsetD8_v2(host as u64, 9, 49), CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuMemFreeHost(host));
    }
}

#[test]
#[ignore = "needs a virtual GPU"]
fn contexts_are_a_stack() {
    let primary = CudaContext::new(0).unwrap();
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        let (mut own, mut current) = (null_mut(), null_mut());
        ok(sys::cuCtxCreate_v2(&mut own, 0, 0));
        ok(sys::cuCtxGetCurrent(&mut current));
        assert_eq!(current, own);
        let mut address = 0;
        ok(sys::cuMemAlloc_v2(&mut address, 16));
        ok(sys::cuCtxPopCurrent_v2(&mut current));
        assert_eq!(current, own);
        ok(sys::cuCtxGetCurrent(&mut current));
        assert_eq!(current, primary.cu_ctx());
        ok(sys::cuCtxDestroy_v2(own));
        // Its memory went with it.
        assert_eq!(sys::cuMemFree_v2(address), CUresult::CUDA_ERROR_INVALID_VALUE);
        let mut value = 0;
        let fifo = sys::CUlimit::CU_LIMIT_PRINTF_FIFO_SIZE;
        ok(sys::cuCtxSetLimit(fifo, 1 << 21));
        ok(sys::cuCtxGetLimit(&mut value, fifo));
        assert_eq!(value, 1 << 21);
    }
}
