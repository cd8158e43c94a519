//! Streams: making, waiting, asking, calling back, capturing.

use std::ffi::{c_int, c_uint, c_void};

use crate::driver::abi::{Handle, HostFn, In, Out, StreamCallback};
use crate::driver::capture::{MODE_RELAXED, THREAD_MODE};
use crate::driver::exports::{aliases, exports, unsupported};
use crate::driver::job::{Action, HostCall};
use crate::driver::session::{Session, context, context_or};
use crate::driver::state::{STREAM_LEGACY, STREAM_PER_THREAD, Stream};
use crate::driver::status::{Result, Status};

/// `CU_STREAM_NON_BLOCKING`, the only flag there is.
const NON_BLOCKING: c_uint = 1;
/// The most urgent priority; 0 is the least.
const GREATEST_PRIORITY: c_int = -5;
/// `CU_EVENT_WAIT_EXTERNAL`.
const WAIT_EXTERNAL: c_uint = 1;

fn create(out: Out<Handle>, flags: c_uint, priority: c_int) -> Result {
    let mut cuda = context()?;
    if out.is_null() || flags & !NON_BLOCKING != 0 {
        return Err(Status::INVALID_VALUE);
    }
    let (handle, context) = (cuda.handle(), cuda.context);
    let id = cuda.schedule.open(context.0 as u64, Session::kind_of(flags));
    let priority = priority.clamp(GREATEST_PRIORITY, 0);
    cuda.streams.insert(handle, Stream { context, id, flags, priority });
    out.set(handle)
}

/// Flags and priority of a stream, also of the default streams.
fn properties(cuda: &mut Session, handle: Handle) -> Result<(c_uint, c_int)> {
    cuda.stream(handle)?;
    Ok(cuda.streams.get(&handle).map_or((0, 0), |stream| (stream.flags, stream.priority)))
}

exports! {
    fn cuStreamCreate(stream: Out<Handle>, flags: c_uint) {
        create(stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: c_uint, priority: c_int) {
        create(stream, flags, priority)
    }

    fn cuStreamDestroy_v2(handle: Handle) {
        let mut cuda = context_or(|cuda| cuda.streams.get(&handle).map(|stream| stream.context))?;
        if handle.is_null() || handle == STREAM_LEGACY || handle == STREAM_PER_THREAD {
            return Err(Status::INVALID_HANDLE);
        }
        let (id, _) = cuda.stream(handle)?;
        if let Some(capture) = cuda.capture_of(id) {
            // Destroying a stream that captures ends the capture without a graph.
            if let Some(capture) = cuda.captures.remove(&capture) {
                cuda.destroy_graph(capture.graph);
            }
        }
        // What waits still runs, when the context is waited for or something ordered after it is.
        cuda.schedule.close(id);
        cuda.streams.remove(&handle);
        Ok(())
    }

    #[ptsz]
    fn cuStreamSynchronize(handle: Handle) {
        let mut cuda = context()?;
        let (id, context) = cuda.stream(handle)?;
        cuda.refuse_wait(id)?;
        let goal = cuda.schedule.stamp(id);
        cuda.synchronize(context, &goal)
    }

    #[ptsz]
    fn cuStreamQuery(handle: Handle) {
        let mut cuda = context()?;
        let (id, context) = cuda.stream(handle)?;
        cuda.refuse_wait(id)?;
        let goal = cuda.schedule.stamp(id);
        if !cuda.schedule.done(&goal) {
            cuda.progress(&goal);
            cuda.context(context)?;
            return Err(Status::NOT_READY);
        }
        cuda.synchronize(context, &goal)
    }

    #[ptsz]
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) {
        let mut cuda = context()?;
        match flags {
            0 => cuda.wait_or_note(stream, event),
            WAIT_EXTERNAL => {
                let (id, _) = cuda.stream(stream)?;
                let capture = cuda.capture_of(id).ok_or(Status::INVALID_VALUE)?;
                cuda.event(event)?;
                cuda.note(capture, id, crate::driver::graph::Task::WaitEvent(event)).map(|_| ())
            }
            _ => Err(Status::INVALID_VALUE),
        }
    }

    #[ptsz]
    fn cuStreamGetFlags(handle: Handle, flags: Out<c_uint>) {
        let found = properties(&mut context()?, handle)?.0;
        flags.set(found)
    }

    #[ptsz]
    fn cuStreamGetPriority(handle: Handle, priority: Out<c_int>) {
        let found = properties(&mut context()?, handle)?.1;
        priority.set(found)
    }

    #[ptsz]
    fn cuStreamGetCtx(handle: Handle, out: Out<Handle>) {
        let found = context()?.stream(handle)?.1;
        out.set(found)
    }

    #[ptsz]
    fn cuStreamGetId(handle: Handle, out: Out<u64>) {
        let found = context()?.stream(handle)?.0;
        out.set(found.0)
    }

    #[ptsz]
    fn cuLaunchHostFunc(stream: Handle, function: HostFn, data: *mut c_void) {
        let mut cuda = context()?;
        function.ok_or(Status::INVALID_VALUE)?;
        let call = HostCall::Function { function, data };
        cuda.submit(stream, "host function", Action::Host(call)).map(|_| ())
    }

    #[ptsz]
    fn cuStreamAddCallback(stream: Handle, callback: StreamCallback, data: *mut c_void, flags: c_uint) {
        let mut cuda = context()?;
        callback.ok_or(Status::INVALID_VALUE)?;
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let (id, _) = cuda.stream(stream)?;
        cuda.refuse_wait(id)?; // a callback, unlike a host function, can't be captured
        let call = HostCall::Callback { callback, stream, data };
        cuda.submit(stream, "callback", Action::Host(call)).map(|_| ())
    }

    #[ptsz]
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) {
        context()?.begin_capture(stream, mode)
    }

    #[ptsz]
    fn cuStreamBeginCapture(stream: Handle) {
        context()?.begin_capture(stream, 0)
    }

    #[ptsz]
    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        let made = context()?.end_capture(stream);
        if let Err(status) = made {
            graph.set_if_wanted(Handle::NULL);
            return Err(status);
        }
        graph.set(made?)
    }

    #[ptsz]
    fn cuStreamIsCapturing(stream: Handle, status: Out<c_int>) {
        let mut cuda = context()?;
        let (id, _) = cuda.stream(stream)?;
        let capture = cuda.capture_of(id);
        status.set(capture.map_or(0, |capture| if cuda.captures[&capture].invalid { 2 } else { 1 }))
    }

    #[ptsz]
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: Out<c_int>, id: Out<u64>, graph: Out<Handle>, nodes: Out<*const Handle>,
        count: Out<usize>,
    ) {
        let mut cuda = context()?;
        let (place, _) = cuda.stream(stream)?;
        let Some(number) = cuda.capture_of(place) else { return status.set(0) };
        let capture = &cuda.captures[&number];
        status.set(if capture.invalid { 2 } else { 1 })?;
        id.set_if_wanted(number);
        graph.set_if_wanted(capture.graph);
        let frontier = &capture.streams[&place];
        nodes.set_if_wanted(frontier.as_ptr());
        count.set_if_wanted(frontier.len());
        Ok(())
    }

    #[ptsz]
    fn cuStreamUpdateCaptureDependencies(stream: Handle, nodes: In<Handle>, count: usize, flags: c_uint) {
        let mut cuda = context()?;
        let (id, _) = cuda.stream(stream)?;
        let number = cuda.capture_of(id).ok_or(Status::ILLEGAL_STATE)?;
        let nodes = nodes.all(count)?;
        let graph = cuda.captures[&number].graph;
        if flags > 1 || nodes.iter().any(|node| cuda.nodes.get(node) != Some(&graph)) {
            return Err(Status::INVALID_VALUE);
        }
        let capture = cuda.captures.get_mut(&number).ok_or(Status::ILLEGAL_STATE)?;
        let frontier = capture.streams.entry(id).or_default();
        if flags == 1 {
            frontier.clear(); // CU_STREAM_SET_CAPTURE_DEPENDENCIES
        }
        frontier.extend(nodes);
        Ok(())
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<c_int>) {
        let wanted = mode.get()?;
        if !(0..=MODE_RELAXED).contains(&wanted) {
            return Err(Status::INVALID_VALUE);
        }
        mode.set(THREAD_MODE.replace(wanted))
    }

    #[ptsz]
    fn cuStreamCopyAttributes(dst: Handle, src: Handle) {
        let mut cuda = context()?;
        cuda.stream(dst)?;
        cuda.stream(src).map(|_| ())
    }

    #[ptsz]
    fn cuStreamGetAttribute(_stream: Handle, _which: c_uint, _value: Out<[u64; 8]>) {
        Err(unsupported("cuStreamGetAttribute", "stream attributes"))
    }

    #[ptsz]
    fn cuStreamSetAttribute(stream: Handle, which: c_uint, value: In<[u64; 8]>) {
        value.get()?;
        context()?.stream(stream)?;
        match which {
            1 | 3 => Ok(()), // access policy window, synchronisation policy: only hints
            _ => Err(unsupported("cuStreamSetAttribute", &format!("attribute {which}"))),
        }
    }

    #[ptsz]
    fn cuStreamWaitValue32_v2(_stream: Handle, _address: u64, _value: u32, _flags: c_uint) {
        Err(unsupported("cuStreamWaitValue32", "stream memory operations"))
    }

    #[ptsz]
    fn cuStreamWriteValue32_v2(_stream: Handle, _address: u64, _value: u32, _flags: c_uint) {
        Err(unsupported("cuStreamWriteValue32", "stream memory operations"))
    }

    #[ptsz]
    fn cuStreamWaitValue64_v2(_stream: Handle, _address: u64, _value: u64, _flags: c_uint) {
        Err(unsupported("cuStreamWaitValue64", "stream memory operations"))
    }

    #[ptsz]
    fn cuStreamWriteValue64_v2(_stream: Handle, _address: u64, _value: u64, _flags: c_uint) {
        Err(unsupported("cuStreamWriteValue64", "stream memory operations"))
    }
}

aliases! {
    cuStreamDestroy = cuStreamDestroy_v2(handle: Handle);
}
