//! The driver's context of one GPU, its streams and its events.

use std::sync::Arc;

use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUevent_flags};

use super::error::{CudaError, CudaResult, check, failure, opening};

/// What the driver must support: PTX 8.2.
const DRIVER: i32 = 12_020;

/// The primary context of a GPU, kept until the last stream, event and buffer is gone.
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: the driver's handles may be used from any thread; each call binds the context to its thread first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what calls share.
unsafe impl Sync for Context {}

impl Context {
    /// The context of the GPU with number `ordinal`, which must be able to run the kernels.
    pub fn open(ordinal: usize) -> CudaResult<Arc<Context>> {
        // SAFETY: looks for libraries by name; a driver's initialisers are sound.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let mut found = 0;
        let failed = |call: &'static str| move |error| opening(call, ordinal, error);
        // SAFETY: the call may come before cuInit, and writes one number. It exists in every driver: what an old one lacks is
        // not looked for before its age is known.
        unsafe { sys::cuDriverGetVersion(&mut found) }.result().map_err(failed("cuDriverGetVersion"))?;
        if found < DRIVER {
            return Err(CudaError::OldDriver { found });
        }
        match result::init() {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
                return Err(CudaError::NoGpu { ordinal, count: 0 });
            }
            answer => answer.map_err(failed("cuInit"))?,
        }
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(CudaError::NoGpu { ordinal, count });
        }
        let device = result::device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
            return Err(CudaError::OldGpu { name, major, minor });
        }
        // SAFETY: the device is one of the driver's; what is retained is released on drop.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        let context = Arc::new(Context { device, raw });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context the calling thread's, as every call of the driver expects.
    pub fn bind(&self) -> CudaResult<()> {
        // SAFETY: the context is alive as long as `self`.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.raw) })
    }

    pub fn device(&self) -> sys::CUdevice {
        self.device
    }

    pub fn attribute(&self, which: Attribute) -> CudaResult<usize> {
        Ok(usize::try_from(attribute(self.device, which)?).unwrap_or(0))
    }
}

fn attribute(device: sys::CUdevice, which: Attribute) -> CudaResult<i32> {
    // SAFETY: the device is one of the driver's.
    unsafe { result::device::get_attribute(device, which) }.map_err(|e| failure("cuDeviceGetAttribute", e))
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `open`. An error here has no one left to tell.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A queue of work: what is put into one stream runs in that order.
pub struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: as for the context.
unsafe impl Send for Stream {}
// SAFETY: as for the context.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that waits for no other.
    pub(super) fn new(context: &Arc<Context>) -> CudaResult<Stream> {
        context.bind()?;
        let raw = result::stream::create(StreamKind::NonBlocking).map_err(|e| failure("cuStreamCreate", e))?;
        Ok(Stream { context: context.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all its work is done.
    ///
    /// # Errors
    /// What went wrong in that work.
    pub fn synchronize(&self) -> CudaResult<()> {
        self.context.bind()?;
        // SAFETY: the stream is alive as long as `self`.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.raw) })
    }

    /// Later work of this stream waits until `event` has come; the host does not.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait(&self, event: &Event) -> CudaResult<()> {
        self.context.bind()?;
        // SAFETY: both are alive.
        let answer =
            unsafe { result::stream::wait_event(self.raw, event.raw, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) };
        check("cuStreamWaitEvent", answer)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created by `new`, destroyed once; the driver finishes its work first.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// A point in a stream's work.
pub struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: as for the context.
unsafe impl Send for Event {}
// SAFETY: as for the context.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has come; `timed` ones can be held against each other.
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> CudaResult<Event> {
        context.bind()?;
        let flags = if timed { CUevent_flags::CU_EVENT_DEFAULT } else { CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let raw = result::event::create(flags).map_err(|e| failure("cuEventCreate", e))?;
        Ok(Event { context: context.clone(), raw })
    }

    /// Comes when the work that `stream` has now is done.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, stream: &Stream) -> CudaResult<()> {
        self.context.bind()?;
        // SAFETY: both are alive.
        check("cuEventRecord", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Waits until it has come.
    ///
    /// # Errors
    /// What went wrong in the work before it.
    pub fn synchronize(&self) -> CudaResult<()> {
        self.context.bind()?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { result::event::synchronize(self.raw) })
    }

    /// Whether it has come.
    ///
    /// # Errors
    /// What went wrong in the work before it.
    pub fn has_come(&self) -> CudaResult<bool> {
        self.context.bind()?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => check("cuEventQuery", answer).map(|()| true),
        }
    }

    /// Seconds on the GPU from `earlier` to this event; both are timed and have come.
    ///
    /// # Errors
    /// The driver's.
    pub fn seconds_since(&self, earlier: &Event) -> CudaResult<f64> {
        self.context.bind()?;
        // SAFETY: both are alive.
        let milliseconds = unsafe { result::event::elapsed(earlier.raw, self.raw) };
        Ok(f64::from(milliseconds.map_err(|e| failure("cuEventElapsedTime", e))?) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created by `new`, destroyed once.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
