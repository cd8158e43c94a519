//! Graphs, captured and built.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};

use super::{ok, ones, open, scale};

const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

#[test]
#[ignore = "needs a GPU"]
fn captured_from_a_stream() {
    let (context, stream, function) = open("scale");
    // SAFETY: one stream orders all there is.
    unsafe { context.disable_event_tracking() };
    let mut x = stream.clone_htod(&[1.0f32; 64]).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(RELAXED).unwrap();
    scale(&stream, &function, &mut x, 2.0, 64);
    scale(&stream, &function, &mut x, 3.0, 64);
    assert_eq!(stream.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1.0; 64], "captured work does not run");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [36.0; 64]);
}

#[test]
#[ignore = "needs a GPU"]
fn captured_across_two_streams() {
    let (context, first, function) = open("scale");
    let second = context.new_stream().unwrap();
    // SAFETY: the events below order the streams.
    unsafe { context.disable_event_tracking() };
    let mut x = first.clone_htod(&[1.0f32; 64]).unwrap();
    let mut y = first.clone_htod(&[1.0f32; 64]).unwrap();
    first.synchronize().unwrap();
    first.begin_capture(RELAXED).unwrap();
    scale(&first, &function, &mut x, 2.0, 64);
    second.join(&first).unwrap();
    scale(&second, &function, &mut y, 3.0, 64);
    scale(&first, &function, &mut x, 2.0, 64);
    first.join(&second).unwrap();
    scale(&first, &function, &mut y, 2.0, 64);
    let graph = first.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.launch().unwrap();
    assert_eq!(first.clone_dtoh(&x).unwrap(), [4.0; 64]);
    assert_eq!(first.clone_dtoh(&y).unwrap(), [6.0; 64]);
}

#[test]
#[ignore = "needs a GPU"]
fn a_capture_that_does_not_come_back_together_is_refused() {
    let (context, first, function) = open("scale");
    let second = context.new_stream().unwrap();
    // SAFETY: nothing of this runs.
    unsafe { context.disable_event_tracking() };
    let mut x = first.clone_htod(&[1.0f32; 64]).unwrap();
    first.synchronize().unwrap();
    first.begin_capture(RELAXED).unwrap();
    second.join(&first).unwrap();
    scale(&second, &function, &mut x, 3.0, 64);
    let unjoined = sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    assert_eq!(first.end_capture(CUgraphInstantiate_flags(0)).err().unwrap().0, unjoined);
    // To wait for a stream that captures is refused, and loses the capture.
    first.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    assert_eq!(first.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let lost = sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    assert_eq!(first.end_capture(CUgraphInstantiate_flags(0)).err().unwrap().0, lost);
}

extern "C" fn count(data: *mut c_void) {
    // SAFETY: the program passes a counter that outlives the launches.
    unsafe { &*data.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
}

#[test]
#[ignore = "needs a GPU"]
fn built_node_by_node_and_changed() {
    let (_context, stream, function) = open("add_one");
    let called = AtomicU32::new(0);
    let mut host = 0u32;
    let mut x = 0u64;
    // SAFETY: plain calls of the driver with the arguments that they want; what they point to outlives the launches.
    unsafe {
        ok(sys::cuMemAlloc_v2(&mut x, 8));
        let (mut graph, mut exec) = (null_mut(), null_mut());
        let [mut set, mut kernel, mut copy, mut call] = [null_mut(); 4];
        ok(sys::cuGraphCreate(&mut graph, 0));
        let fill = sys::CUDA_MEMSET_NODE_PARAMS { dst: x, pitch: 0, value: 41, elementSize: 4, width: 2, height: 1 };
        let mut context = null_mut();
        ok(sys::cuCtxGetCurrent(&mut context));
        ok(sys::cuGraphAddMemsetNode(&mut set, graph, null(), 0, &fill, context));
        let address = std::cell::Cell::new(x);
        let mut params: [*mut c_void; 1] = [address.as_ptr().cast()];
        let mut launch: sys::CUDA_KERNEL_NODE_PARAMS_v2_st = std::mem::zeroed();
        launch.func = function.cu_function();
        (launch.gridDimX, launch.gridDimY, launch.gridDimZ) = (1, 1, 1);
        (launch.blockDimX, launch.blockDimY, launch.blockDimZ) = (1, 1, 1);
        launch.kernelParams = params.as_mut_ptr();
        ok(sys::cuGraphAddKernelNode_v2(&mut kernel, graph, &set, 1, &launch));
        let transfer = sys::CUDA_MEMCPY3D {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null(),
            srcDevice: x,
            srcArray: null_mut(),
            reserved0: null_mut(),
            srcPitch: 0,
            srcHeight: 0,
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            dstHost: (&raw mut host).cast(),
            dstDevice: 0,
            dstArray: null_mut(),
            reserved1: null_mut(),
            dstPitch: 0,
            dstHeight: 0,
            WidthInBytes: 4,
            Height: 1,
            Depth: 1,
        };
        ok(sys::cuGraphAddMemcpyNode(&mut copy, graph, &kernel, 1, &transfer, context));
        let host_params =
            sys::CUDA_HOST_NODE_PARAMS { fn_: Some(count), userData: (&raw const called).cast_mut().cast() };
        ok(sys::cuGraphAddHostNode(&mut call, graph, &copy, 1, &host_params));
        let mut nodes = 0;
        ok(sys::cuGraphGetNodes(graph, null_mut(), &mut nodes));
        assert_eq!(nodes, 4);

        ok(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        ok(sys::cuGraphLaunch(exec, stream.cu_stream()));
        ok(sys::cuStreamSynchronize(stream.cu_stream()));
        assert_eq!((host, called.load(Ordering::Relaxed)), (42, 1));

        // The second of the two elements instead of the first, in the instantiated graph alone.
        address.set(x + 4);
        ok(sys::cuGraphExecKernelNodeSetParams_v2(exec, kernel, &launch));
        ok(sys::cuGraphLaunch(exec, stream.cu_stream()));
        ok(sys::cuStreamSynchronize(stream.cu_stream()));
        assert_eq!((host, called.load(Ordering::Relaxed)), (41, 2));

        // And back to what the graph says.
        let mut info: sys::CUgraphExecUpdateResultInfo = std::mem::zeroed();
        ok(sys::cuGraphExecUpdate_v2(exec, graph, &mut info));
        ok(sys::cuGraphLaunch(exec, stream.cu_stream()));
        ok(sys::cuStreamSynchronize(stream.cu_stream()));
        assert_eq!((host, called.load(Ordering::Relaxed)), (42, 3));
        ok(sys::cuGraphExecDestroy(exec));
        ok(sys::cuGraphDestroy(graph));
        ok(sys::cuMemFree_v2(x));
    }
}

/// Adds a node that launches `scale` on `n` elements from `x` on.
pub fn scale_node(
    graph: sys::CUgraph,
    after: &[sys::CUgraphNode],
    function: &CudaFunction,
    (x, a, n): (u64, f32, u32),
) -> sys::CUgraphNode {
    let (mut x, mut a, mut n, mut node) = (x, a, n, null_mut());
    let mut params: [*mut c_void; 3] = [(&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    // SAFETY: the parameters are those of `scale`, and are read before the call returns.
    unsafe {
        let mut launch: sys::CUDA_KERNEL_NODE_PARAMS_v2_st = std::mem::zeroed();
        launch.func = function.cu_function();
        (launch.gridDimX, launch.gridDimY, launch.gridDimZ) = (n.div_ceil(32), 1, 1);
        (launch.blockDimX, launch.blockDimY, launch.blockDimZ) = (32, 1, 1);
        launch.kernelParams = params.as_mut_ptr();
        ok(sys::cuGraphAddKernelNode_v2(&mut node, graph, after.as_ptr(), after.len(), &launch));
    }
    node
}

#[test]
#[ignore = "needs a GPU"]
fn branches_that_are_switched_off_children_and_events() {
    let (context, stream, function) = open("scale");
    let other = context.new_stream().unwrap();
    let x = ones();
    let [mut graph, mut child] = [null_mut(); 2];
    let [mut set, mut inside, mut record] = [null_mut(); 3];
    let (mut event, mut exec, mut current) = (null_mut(), null_mut(), null_mut());
    let mut host = [0.0f32; 64];
    // SAFETY: plain calls of the driver with the arguments that they want.
    unsafe {
        ok(sys::cuCtxGetCurrent(&mut current));
        ok(sys::cuEventCreate(&mut event, 0));
        ok(sys::cuGraphCreate(&mut graph, 0));
        ok(sys::cuGraphCreate(&mut child, 0));
        scale_node(child, &[], &function, (x, 5.0, 64));
        // Ones; two halves on two branches; the child on both; an event.
        let one = 1.0f32.to_bits();
        let fill = sys::CUDA_MEMSET_NODE_PARAMS { dst: x, pitch: 0, value: one, elementSize: 4, width: 64, height: 1 };
        ok(sys::cuGraphAddMemsetNode(&mut set, graph, null(), 0, &fill, current));
        let low = scale_node(graph, &[set], &function, (x, 2.0, 32));
        let high = scale_node(graph, &[set], &function, (x + 128, 3.0, 32));
        ok(sys::cuGraphAddChildGraphNode(&mut inside, graph, [low, high].as_ptr(), 2, child));
        ok(sys::cuGraphAddEventRecordNode(&mut record, graph, &inside, 1, event));
        ok(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        for (enabled, expect) in [(1, 15.0), (0, 5.0), (1, 15.0)] {
            ok(sys::cuGraphNodeSetEnabled(exec, high, enabled));
            ok(sys::cuGraphLaunch(exec, stream.cu_stream()));
            // The event of the graph orders another stream.
            ok(sys::cuStreamWaitEvent(other.cu_stream(), event, 0));
            ok(sys::cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), x, 256, other.cu_stream()));
            ok(sys::cuStreamSynchronize(other.cu_stream()));
            assert_eq!(host[..32], [10.0; 32]);
            assert_eq!(host[32..], [expect; 32]);
        }
        ok(sys::cuGraphExecDestroy(exec));
        ok(sys::cuGraphDestroy(graph));
        ok(sys::cuGraphDestroy(child));
        ok(sys::cuEventDestroy_v2(event));
        ok(sys::cuCtxSynchronize());
        ok(sys::cuMemFree_v2(x));
    }
}
