//! Programs that do everything right: none of the checks may stop them.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, PinnedHostSlice, PushKernelArg, sys};

use super::{NoStream, blocks_for, ok, ones, open, scale};

#[test]
#[ignore = "needs a GPU"]
fn a_kernel_on_a_stream_of_its_own() {
    let (_context, stream, function) = open("scale");
    let mut x = stream.clone_htod(&(0..100).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    scale(&stream, &function, &mut x, 2.0, 100);
    let y = stream.clone_dtoh(&x).unwrap();
    assert!(y.iter().enumerate().all(|(i, y)| *y == 2.0 * i as f32));
}

#[test]
#[ignore = "needs a GPU"]
fn a_kernel_on_the_default_stream() {
    let (context, _, function) = open("scale");
    let stream = context.default_stream();
    let mut x = stream.alloc_zeros::<f32>(64).unwrap();
    scale(&stream, &function, &mut x, 2.0, 64);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0.0; 64]);
}

#[test]
#[ignore = "needs a GPU"]
fn two_streams_that_wait_for_each_other() {
    let (context, first, function) = open("scale");
    let second = context.new_stream().unwrap();
    let mut x = first.clone_htod(&[1.0f32; 64]).unwrap();
    scale(&first, &function, &mut x, 2.0, 64);
    second.join(&first).unwrap();
    scale(&second, &function, &mut x, 3.0, 64);
    first.join(&second).unwrap();
    assert_eq!(first.clone_dtoh(&x).unwrap(), [6.0; 64]);
    assert_eq!(second.clone_dtoh(&x).unwrap(), [6.0; 64]);
}

#[test]
#[ignore = "needs a GPU"]
fn events_come_in_order_and_count_work() {
    let (context, stream, function) = open("scale");
    let mut x = stream.clone_htod(&[1.0f32; 64]).unwrap();
    stream.synchronize().unwrap();
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(flags).unwrap();
    scale(&stream, &function, &mut x, 2.0, 64);
    let middle = stream.record_event(flags).unwrap();
    for _ in 0..3 {
        scale(&stream, &function, &mut x, 2.0, 64);
    }
    let end = stream.record_event(flags).unwrap();
    assert!(!end.is_complete(), "nothing has run yet");
    end.synchronize().unwrap();
    assert!(end.is_complete() && middle.is_complete());
    let (one, three) = (start.elapsed_ms(&middle).unwrap(), middle.elapsed_ms(&end).unwrap());
    assert!(one > 0.0 && (three - 3.0 * one).abs() < one / 2.0, "{one} {three}");
    drop(context);
}

/// A page-locked buffer of ones.
fn pinned_ones(context: &Arc<CudaContext>, len: usize) -> PinnedHostSlice<f32> {
    // SAFETY: written at once.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(len) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1.0);
    pinned
}

#[test]
#[ignore = "needs a GPU"]
fn pinned_memory_goes_back_and_forth() {
    let (context, stream, function) = open("scale");
    // Pages of several sizes: less than one, one, and some with an end.
    for len in [64, 1024, 5000] {
        let mut pinned = pinned_ones(&context, len);
        let mut x = stream.clone_htod(&pinned).unwrap();
        // What a copy waits to read may be read.
        let raw = pinned.as_mut_ptr().unwrap();
        // SAFETY: the pointer is that of the buffer.
        assert_eq!(unsafe { *raw }, 1.0);
        for round in 1..4 {
            scale(&stream, &function, &mut x, 5.0, len as u32);
            stream.memcpy_dtoh(&x, &mut pinned).unwrap();
            stream.record_event(None).unwrap().synchronize().unwrap();
            assert!(pinned.as_slice().unwrap().iter().all(|v| *v == 5f32.powi(round)));
            pinned.as_mut_slice().unwrap().fill(1.0);
            pinned.as_mut_slice().unwrap().fill(5f32.powi(round));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn parts_of_one_pinned_buffer() {
    let (context, stream, _) = open("scale");
    // SAFETY: events below order the host and the stream.
    unsafe { context.disable_event_tracking() };
    let mut pinned = pinned_ones(&context, 4096);
    let raw = pinned.as_mut_ptr().unwrap();
    let x = stream.alloc_zeros::<f32>(4096).unwrap();
    let (address, _order) = cudarc::driver::DevicePtr::device_ptr(&x, &stream);
    // 1,000 elements at a time: parts that share pages.
    for part in (0..4000).step_by(1000) {
        // SAFETY: the ranges are within both buffers, and no copy from or to this part waits yet.
        unsafe {
            let at = raw.add(part);
            std::slice::from_raw_parts_mut(at, 1000).fill(part as f32);
            let to = address + 4 * part as u64;
            ok(sys::cuMemcpyHtoDAsync_v2(to, at.cast(), 4000, stream.cu_stream()));
        }
    }
    stream.synchronize().unwrap();
    drop(_order);
    let back = stream.clone_dtoh(&x).unwrap();
    assert!((0..4000).all(|i| back[i] == (i / 1000 * 1000) as f32));
}

extern "C" fn double_first(data: *mut c_void) {
    // SAFETY: the program passes a buffer that outlives the call and that the stream alone uses then.
    unsafe { *data.cast::<f32>() *= 2.0 };
}

#[test]
#[ignore = "needs a GPU"]
fn a_host_function_uses_what_its_stream_copied_and_will_copy() {
    let (context, stream, _) = open("scale");
    // SAFETY: the stream orders all there is.
    unsafe { context.disable_event_tracking() };
    let mut pinned = pinned_ones(&context, 1024);
    let raw = pinned.as_mut_ptr().unwrap();
    let mut x = stream.clone_htod(&[3.0f32; 1024]).unwrap();
    stream.memcpy_dtoh(&x, &mut pinned).unwrap();
    // SAFETY: the buffer outlives the synchronisation below.
    unsafe { ok(sys::cuLaunchHostFunc(stream.cu_stream(), Some(double_first), raw.cast())) };
    stream.memcpy_htod(&pinned, &mut x).unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap()[..2], [6.0, 3.0]);
    stream.synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn threads_share_a_context() {
    let (_context, stream, function) = open("scale");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut x = stream.clone_htod(&[1.0f32; 32]).unwrap();
                for _ in 0..10 {
                    scale(&stream, &function, &mut x, 2.0, 32);
                }
                assert_eq!(stream.clone_dtoh(&x).unwrap(), [1024.0; 32]);
            });
        }
    });
}

#[test]
#[ignore = "needs a GPU"]
fn halves_of_one_allocation_on_two_streams() {
    let (context, a, function) = open("scale");
    let b = context.new_stream().unwrap();
    // SAFETY: this thread alone orders the streams below.
    unsafe { context.disable_event_tracking() };
    let mut x = a.alloc_zeros::<f32>(64).unwrap();
    a.synchronize().unwrap();
    let (mut low, mut high) = x.split_at_mut(32);
    for (stream, half, value) in [(&a, &mut low, 1.0f32), (&b, &mut high, 2.0)] {
        stream.memcpy_htod(&[value; 32], half).unwrap();
        let mut launch = stream.launch_builder(&function);
        launch.arg(half).arg(&2.0f32).arg(&32u32);
        // SAFETY: the arguments are those of `scale`.
        unsafe { launch.launch(blocks_for(32)) }.unwrap();
    }
    context.synchronize().unwrap();
    assert_eq!(a.clone_dtoh(&x).unwrap()[31..33], [2.0, 4.0]);
}

#[test]
#[ignore = "needs a GPU"]
fn memory_comes_back_and_the_limit_is_the_devices() {
    let (context, stream, _) = open("scale");
    let (free, total) = context.mem_get_info().unwrap();
    assert!(free <= total && total == context.total_mem().unwrap());
    let most = free / 4 * 3;
    for _ in 0..3 {
        // SAFETY: never read.
        let half = unsafe { stream.alloc::<u8>(most) }.unwrap();
        drop(half); // in stream order: the next allocation finds the room
    }
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, free);
}

#[test]
#[ignore = "needs a GPU"]
fn a_threads_own_default_stream_and_the_legacy_one_wait_for_each_other() {
    let (_context, _, function) = open("scale");
    for own in [NoStream::per_thread(), NoStream::per_thread_by_name()] {
        let (legacy, x) = (NoStream::legacy(), ones());
        legacy.scale(&function, x, 2.0);
        own.scale(&function, x, 3.0);
        legacy.scale(&function, x, 5.0);
        assert_eq!(own.read(x), Ok([30.0; 64]));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn threads_with_their_own_default_streams_meet_on_the_legacy_one() {
    let (context, _, function) = open("scale");
    let (legacy, own) = (NoStream::legacy(), NoStream::per_thread());
    let (x, y) = (ones(), ones());
    std::thread::scope(|scope| {
        for z in [x, y] {
            let (context, function) = (&context, &function);
            scope.spawn(move || {
                context.bind_to_thread().unwrap();
                own.scale(function, z, 7.0);
                assert_eq!(own.read(z), Ok([7.0; 64]));
                own.scale(function, z, 2.0);
            });
        }
    });
    // The streams outlive their threads; the legacy stream waits for both.
    assert_eq!((legacy.read(x), legacy.read(y)), (Ok([14.0; 64]), Ok([14.0; 64])));
    legacy.scale(&function, x, 1.0);
    own.scale(&function, y, 1.0);
    assert_eq!(own.synchronize(), sys::CUresult::CUDA_SUCCESS);
}
