//! The Cuda device: one GPU by its driver, which is looked for when the device is opened. Neither building nor running the
//! program needs a toolkit: the kernels are PTX inside the binary, which the driver compiles for its GPU.
//!
//! All work of a device goes through one stream, in the order of the calls, and so does memory: what a buffer's drop gives
//! back is taken again only by later work. The host waits only where it reads a result.

mod context;
mod cublas;
mod error;
mod graph;
mod launch;
mod memory;
mod peak;
mod pinned;
mod ring;
mod staging;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

pub use context::{Event, Stream};
pub(crate) use cublas::{Product, Side, WORKSPACE};
pub use error::{CudaError, CudaResult};
pub(in crate::device) use graph::{Capture, CudaGraph};
pub use launch::{Launch, Source, Span};
pub(crate) use memory::{Memory, places};
pub(crate) use pinned::Pinned;
pub(crate) use ring::Ring;

use context::Context;
use cublas::Cublas;
use error::{check, failure};
use launch::Kernel;
use memory::{Pool, keeping_pool};
use staging::Staging;

use super::{Buffer, Feed, Gemm};

/// An open GPU.
pub struct Gpu {
    // Dropped in this order: what the context must outlive comes before it.
    staging: Mutex<Option<Staging>>,
    capture: Mutex<Option<graph::State>>,
    /// Goes up where events of before are of no use: see [`Gpu::era`].
    era: AtomicU64,
    modules: Mutex<Modules>,
    cublas: Option<Cublas>,
    stream: Stream,
    context: Arc<Context>,
    name: String,
    total_memory: usize,
    multiprocessors: usize,
    max_shared: usize,
    /// The driver's pool for memory in stream order, where it has one.
    pool: Option<Pool>,
}

/// What has been loaded, by operation and by kernel.
#[derive(Default)]
struct Modules {
    loaded: HashMap<&'static str, Module>,
    kernels: HashMap<&'static str, Kernel>,
}

struct Module(sys::CUmodule);

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Module {}

impl Gpu {
    /// Opens the GPU with number `ordinal`, and NVIDIA's library where `gemm` asks for it.
    ///
    /// # Errors
    /// No driver, too old a driver, no such GPU, or one that is too old for the kernels; with [`Gemm::Cublas`] no library, or
    /// too old a one.
    pub fn open(ordinal: usize, gemm: Gemm) -> CudaResult<Arc<Gpu>> {
        let context = Context::open(ordinal)?;
        let cublas = match gemm {
            Gemm::Own => None,
            Gemm::Auto => Cublas::open(&context).ok(),
            Gemm::Cublas => Some(Cublas::open(&context)?),
        };
        let stream = Stream::new(&context)?;
        let name = result::device::get_name(context.device()).map_err(|e| failure("cuDeviceGetName", e))?;
        // SAFETY: the device is one of the driver's.
        let total_memory =
            unsafe { result::device::total_mem(context.device()) }.map_err(|e| failure("cuDeviceTotalMem", e))?;
        let pool = match context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? {
            0 => None,
            _ => Some(keeping_pool(&context)?),
        };
        Ok(Arc::new(Gpu {
            staging: Mutex::default(),
            capture: Mutex::default(),
            era: AtomicU64::new(0),
            modules: Mutex::default(),
            cublas,
            name,
            total_memory,
            multiprocessors: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            max_shared: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            pool,
            stream,
            context,
        }))
    }

    /// Its name, as the driver says it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of cuBLASLt, where it was asked for and is there.
    pub fn cublas_version(&self) -> Option<String> {
        self.cublas.as_ref().map(Cublas::version)
    }

    /// Its memory in bytes.
    pub fn total_memory(&self) -> usize {
        self.total_memory
    }

    /// Its streaming multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Shared memory in bytes that a block can have at most.
    pub fn max_shared(&self) -> usize {
        self.max_shared
    }

    /// The stream of all work.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Another stream, for work that may overlap with the device's own.
    ///
    /// # Errors
    /// The driver's.
    pub fn new_stream(&self) -> CudaResult<Stream> {
        Stream::new(&self.context)
    }

    /// An event; `timed` ones can be held against each other.
    ///
    /// # Errors
    /// The driver's.
    pub fn new_event(&self, timed: bool) -> CudaResult<Event> {
        Event::new(&self.context, timed)
    }

    /// A profiler that was told to wait for it (as Nsight's with `--capture-range=cudaProfilerApi`) begins to look; the virtual GPU
    /// to count calls of the driver.
    ///
    /// # Errors
    /// The driver's.
    pub fn start_profiler(&self) -> CudaResult<()> {
        self.context.bind()?;
        // SAFETY: a context is bound.
        check("cuProfilerStart", unsafe { sys::cuProfilerStart() }.result())
    }

    /// And ends.
    ///
    /// # Errors
    /// The driver's.
    pub fn stop_profiler(&self) -> CudaResult<()> {
        self.context.bind()?;
        // SAFETY: a context is bound.
        check("cuProfilerStop", unsafe { sys::cuProfilerStop() }.result())
    }

    fn context(&self) -> &Context {
        self.stream.context()
    }

    /// A launch of the kernel `name` of `source`, which is loaded the first time.
    ///
    /// # Errors
    /// [`CudaError::Load`] with the driver's log, or no such kernel.
    pub fn launch(&self, source: &'static Source, name: &'static str) -> CudaResult<Launch<'_>> {
        let mut modules = self.modules.lock().expect("no panic while locked");
        if let Some(kernel) = modules.kernels.get(name) {
            return Ok(Launch::new(self, kernel.clone()));
        }
        self.context.bind()?;
        let module = match modules.loaded.get(source.name) {
            Some(module) => module.0,
            None => {
                let module = load(source)?;
                modules.loaded.insert(source.name, Module(module));
                module
            }
        };
        // SAFETY: the module was loaded from this source.
        let kernel = unsafe { Kernel::new(source, module, name) }?;
        modules.kernels.insert(name, kernel.clone());
        Ok(Launch::new(self, kernel))
    }

    /// Where a buffer lies in this GPU's memory: what a kernel takes in a table of its own.
    ///
    /// # Errors
    /// [`CudaError::Elsewhere`] for a buffer of another device.
    pub fn address(&self, buffer: &Buffer) -> CudaResult<u64> {
        match buffer.cuda() {
            Some((memory, first)) if std::ptr::eq(memory.gpu(), self) => Ok(memory.address + first as u64),
            _ => Err(CudaError::Elsewhere { buffer: format!("{buffer:?}"), gpu: self.name.clone() }),
        }
    }

    /// Where a span begins in this GPU's memory.
    ///
    /// # Errors
    /// As [`Gpu::address`].
    pub fn address_of(&self, span: Span<'_>) -> CudaResult<u64> {
        Ok(self.address(span.buffer)? + (span.first * span.dtype().size()) as u64)
    }

    fn with_staging<T>(&self, run: impl FnOnce(&mut Staging) -> CudaResult<T>) -> CudaResult<T> {
        self.context.bind()?;
        let mut staging = self.staging.lock().expect("no panic while locked");
        match &mut *staging {
            Some(staging) => run(staging),
            None => run(staging.insert(Staging::new(&self.context)?)),
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        for module in self.modules.lock().expect("no panic while locked").loaded.values() {
            // SAFETY: loaded once by `load`, and no work of the stream is left to use it.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

/// Has the driver compile PTX; what its compiler says of an error is the error.
fn load(source: &Source) -> CudaResult<sys::CUmodule> {
    const LOG: usize = 8192;
    let fault = |log: String| CudaError::Load { module: source.name, log };
    let ptx = CString::new(source.ptx).map_err(|_| fault("a NUL byte in the PTX".into()))?;
    let mut log = vec![0u8; LOG];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG)];
    let mut module = std::ptr::null_mut();
    // SAFETY: the PTX ends with a NUL, and the log's buffer has the size that the options say.
    let answer = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 2, options, values)
    };
    answer.result().map(|()| module).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(LOG);
        let log = String::from_utf8_lossy(&log[..end]).trim().to_string();
        match failure("cuModuleLoadDataEx", error) {
            CudaError::Driver { reason, .. } if log.is_empty() => fault(reason),
            CudaError::Driver { reason, .. } => fault(format!("{reason}: {log}")),
            other => other,
        }
    })
}
