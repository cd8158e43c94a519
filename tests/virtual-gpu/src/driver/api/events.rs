//! Events.
//!
//! `cuEventElapsedTime` gives no time: no GPU ran. It gives the work counted between the two events, a millionth of a
//! millisecond for each thread-instruction of a kernel and each byte of a copy. It grows with the work, and nothing else.

use std::ffi::c_uint;
use std::sync::atomic::Ordering;

use crate::driver::abi::{Handle, Out};
use crate::driver::exports::{aliases, exports, unsupported};
use crate::driver::graph::Task;
use crate::driver::session::{context, context_or};
use crate::driver::state::{Event, Recorded};
use crate::driver::status::{Result, Status};

/// `CU_EVENT_BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS`.
const FLAGS: c_uint = 7;
const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;
/// `CU_EVENT_RECORD_EXTERNAL`.
const RECORD_EXTERNAL: c_uint = 1;
/// Counted work for each millisecond that `cuEventElapsedTime` answers.
const WORK_PER_MILLISECOND: f64 = 1e6;

fn record(event: Handle, stream: Handle, flags: c_uint) -> Result {
    let mut cuda = context()?;
    match flags {
        0 => cuda.record_or_note(event, stream),
        RECORD_EXTERNAL => {
            let (id, _) = cuda.stream(stream)?;
            cuda.event(event)?;
            match cuda.capture_of(id) {
                Some(capture) => cuda.note(capture, id, Task::RecordEvent(event)).map(|_| ()),
                None => Err(Status::INVALID_VALUE),
            }
        }
        _ => Err(Status::INVALID_VALUE),
    }
}

exports! {
    fn cuEventCreate(event: Out<Handle>, flags: c_uint) {
        let mut cuda = context()?;
        if event.is_null() || flags & !FLAGS != 0 {
            return Err(Status::INVALID_VALUE);
        }
        if flags & INTERPROCESS != 0 {
            return Err(unsupported("cuEventCreate", "an event shared between processes"));
        }
        let (handle, context) = (cuda.handle(), cuda.context);
        cuda.events.insert(handle, Event { context, flags, recorded: None });
        event.set(handle)
    }

    fn cuEventDestroy_v2(event: Handle) {
        let mut cuda = context_or(|cuda| cuda.events.get(&event).map(|event| event.context))?;
        cuda.event(event)?;
        cuda.events.remove(&event);
        Ok(())
    }

    #[ptsz]
    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream, 0)
    }

    #[ptsz]
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: c_uint) {
        record(event, stream, flags)
    }

    fn cuEventQuery(event: Handle) {
        let mut cuda = context()?;
        let Event { context, recorded, .. } = cuda.event(event)?.clone();
        match recorded {
            None => Ok(()),
            Some(Recorded::Capture { .. }) => Err(Status::CAPTURED_EVENT),
            Some(Recorded::Stream { clock, .. }) if cuda.schedule.done(&clock) => cuda.synchronize(context, &clock),
            Some(Recorded::Stream { clock, .. }) => {
                cuda.progress(&clock);
                cuda.context(context)?;
                Err(Status::NOT_READY)
            }
        }
    }

    fn cuEventSynchronize(event: Handle) {
        let mut cuda = context()?;
        let Event { context, recorded, .. } = cuda.event(event)?.clone();
        match recorded {
            None => Ok(()),
            Some(Recorded::Capture { .. }) => Err(Status::CAPTURED_EVENT),
            Some(Recorded::Stream { clock, .. }) => cuda.synchronize(context, &clock),
        }
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        let mut cuda = context()?;
        let mut work = [0; 2];
        for (work, handle) in work.iter_mut().zip([start, end]) {
            let event = cuda.event(handle)?.clone();
            if event.flags & DISABLE_TIMING != 0 {
                return Err(Status::INVALID_HANDLE);
            }
            match event.recorded {
                None => return Err(Status::INVALID_HANDLE),
                Some(Recorded::Capture { .. }) => return Err(Status::CAPTURED_EVENT),
                Some(Recorded::Stream { clock, .. }) if !cuda.schedule.done(&clock) => return Err(Status::NOT_READY),
                Some(Recorded::Stream { time, .. }) => *work = time.load(Ordering::Relaxed),
            }
        }
        milliseconds.set(((work[1] as f64 - work[0] as f64) / WORK_PER_MILLISECOND) as f32)
    }
}

aliases! {
    cuEventDestroy = cuEventDestroy_v2(event: Handle);
    cuEventElapsedTime_v2 = cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle);
}
