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
pub(crate) use pinned::Pinned;
pub(crate) use ring::Ring;

use context::Context;
use cublas::Cublas;
use error::{check, failure};
use launch::Kernel;
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

struct Pool(sys::CUmemoryPool);

const POOL_PEAK: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

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

    /// Bytes of its memory that nothing holds now; what the pool keeps for reuse counts as held.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_memory(&self) -> CudaResult<usize> {
        self.context.bind()?;
        result::mem_get_info().map(|(free, _)| free).map_err(|e| failure("cuMemGetInfo", e))
    }

    /// The most bytes that buffers have taken of the driver's pool since [`Gpu::reset_pool_peak`], as the driver counts them:
    /// it rounds each up. None where it has no pool.
    ///
    /// # Errors
    /// The driver's.
    pub fn pool_peak(&self) -> CudaResult<Option<u64>> {
        let Some(pool) = &self.pool else { return Ok(None) };
        self.context.bind()?;
        let mut peak = 0u64;
        // SAFETY: this attribute is a cuuint64_t.
        let answer = unsafe {
            sys::cuMemPoolGetAttribute(pool.0, POOL_PEAK, std::ptr::from_mut(&mut peak).cast::<c_void>()).result()
        };
        check("cuMemPoolGetAttribute", answer).map(|()| Some(peak))
    }

    /// Starts [`Gpu::pool_peak`] anew from what is taken now.
    ///
    /// # Errors
    /// The driver's.
    pub fn reset_pool_peak(&self) -> CudaResult<()> {
        let Some(pool) = &self.pool else { return Ok(()) };
        self.context.bind()?;
        set_pool_attribute(pool.0, POOL_PEAK, 0)
    }

    /// Its streaming multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Its compute capability: before the point, and after it.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(&self) -> CudaResult<(usize, usize)> {
        Ok((
            self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    /// The most operations a second that its tensor cores do in 16 bits with sums in f32, dense; a multiply-add is two. From its
    /// multiprocessors, the highest clock that the driver names, and what NVIDIA publishes of GPUs like it; 0 where the driver
    /// names no clock. What is computed in f32 without tensor cores has a lower peak.
    ///
    /// # Errors
    /// The driver's.
    pub fn peak_flops(&self) -> CudaResult<f64> {
        let hertz = 1e3 * self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as f64;
        Ok(self.tensor_operations()? * hertz * self.multiprocessors as f64)
    }

    /// The same of one multiprocessor in a cycle.
    ///
    /// # Errors
    /// The driver's.
    pub fn tensor_operations(&self) -> CudaResult<f64> {
        Ok(tensor_operations(&self.name, self.compute_capability()?))
    }

    /// The most bytes a second between it and its memory: two bits a pin and cycle; 0 where the driver names no clock.
    ///
    /// # Errors
    /// The driver's.
    pub fn peak_bandwidth(&self) -> CudaResult<f64> {
        let hertz = 1e3 * self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? as f64;
        let bits = self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? as f64;
        Ok(2.0 * hertz * bits / 8.0)
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

    /// A copy in pinned memory of `parts` one after the other, each from a multiple of [`VIEW_ALIGNMENT`] bytes on.
    pub(crate) fn pin(self: &Arc<Gpu>, parts: &[&Buffer]) -> CudaResult<Pinned> {
        let sizes: Vec<usize> = parts.iter().map(|part| part.size_bytes()).collect();
        let (offsets, bytes) = places(&sizes);
        let mut pinned = Pinned::new(self.stream.context(), bytes)?;
        for ((part, offset), size) in parts.iter().zip(offsets).zip(sizes) {
            let (memory, first) = part.cuda().expect("a buffer on this GPU");
            memory.download(first, pinned.slice_mut(offset..offset + size))?;
        }
        Ok(pinned)
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

    /// `bytes` of memory, with any contents.
    pub(super) fn alloc(self: &Arc<Gpu>, bytes: usize) -> CudaResult<Memory> {
        let gpu = self.clone();
        if bytes == 0 {
            return Ok(Memory { gpu, address: 0, bytes, owned: false });
        }
        self.context.bind()?;
        let address = match self.try_alloc(bytes) {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                // The pool may hold memory in pieces of the wrong sizes, or wait for work to be done with it.
                self.trim()?;
                self.try_alloc(bytes)
            }
            answer => answer,
        };
        match address {
            Ok(address) => Ok(Memory { gpu, address, bytes, owned: true }),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = result::mem_get_info().map_err(|e| failure("cuMemGetInfo", e))?;
                Err(CudaError::OutOfMemory { requested: bytes, free, total })
            }
            Err(error) => Err(failure("cuMemAllocAsync", error)),
        }
    }

    fn try_alloc(&self, bytes: usize) -> Result<u64, cudarc::driver::DriverError> {
        // SAFETY: the context is bound, the stream is alive; nothing reads the memory before it is written.
        unsafe {
            match self.pool {
                Some(_) => result::malloc_async(self.stream.raw(), bytes),
                None => result::malloc_sync(bytes),
            }
        }
    }

    /// Gives memory back. An error has no one to tell: it is the one that the next call of the driver reports.
    ///
    /// # Safety
    /// It came from `try_alloc`, and is given back once.
    unsafe fn free(&self, address: u64) {
        // SAFETY: the caller vouches for it. With a pool it is freed after the work that the stream has, else no work is left.
        let _ = unsafe {
            match self.pool {
                Some(_) => result::free_async(address, self.stream.raw()),
                None => {
                    let _ = self.stream.synchronize();
                    result::free_sync(address)
                }
            }
        };
    }

    /// Gives memory that the pool keeps for reuse back to the system.
    pub(super) fn trim(&self) -> CudaResult<()> {
        self.stream.synchronize()?;
        match &self.pool {
            // SAFETY: the pool is the device's own and lives as long as it.
            Some(pool) => check("cuMemPoolTrimTo", unsafe { result::mem_pool::trim_to(pool.0, 0) }),
            None => Ok(()),
        }
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

/// Operations of one multiprocessor in a cycle, as published peaks have them: products of 16 bits on tensor cores, dense, with sums
/// in f32. From compute 8.6 on the same multiprocessor sums in f32 at full rate in professional parts, and at half of it in GeForce
/// ones; and in the L40, of which NVIDIA says 181 TFLOP/s, and 362 of the L40S. Assumed: that all GeForce parts are alike in this,
/// and that what is newer than 9.0 and no relation of theirs does what B200 does.
fn tensor_operations(name: &str, capability: (usize, usize)) -> f64 {
    let halved = name.contains("GeForce") || name.ends_with(" L40");
    match capability {
        (8, 0 | 7) => 2048.0,
        (8 | 12, _) if halved => 512.0,
        (8 | 12, _) => 1024.0,
        (9, _) => 4096.0,
        _ => 8192.0,
    }
}

/// The device's pool, told to keep what is given back: a step asks for the same sizes again and again.
fn keeping_pool(context: &Context) -> CudaResult<Pool> {
    // SAFETY: the device is one of the driver's.
    let pool = unsafe { result::device::get_default_mem_pool(context.device()) }
        .map_err(|e| failure("cuDeviceGetDefaultMemPool", e))?;
    set_pool_attribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    Ok(Pool(pool))
}

/// Sets one of the attributes that are a cuuint64_t.
fn set_pool_attribute(pool: sys::CUmemoryPool, which: sys::CUmemPool_attribute, mut value: u64) -> CudaResult<()> {
    // SAFETY: the pool is one of the driver's, and the value has the attribute's type.
    let answer =
        unsafe { result::mem_pool::set_attribute(pool, which, std::ptr::from_mut(&mut value).cast::<c_void>()) };
    check("cuMemPoolSetAttribute", answer)
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

/// What lies in one buffer begins at multiples of so many bytes: as if it had been allocated, for all that kernels ask.
const VIEW_ALIGNMENT: usize = 256;

/// Where parts of these sizes lie one after the other, and the bytes of all.
pub(crate) fn places(sizes: &[usize]) -> (Vec<usize>, usize) {
    let mut end = 0;
    let offsets = sizes.iter().map(|size| {
        let offset = usize::next_multiple_of(end, VIEW_ALIGNMENT);
        end = offset + size;
        offset
    });
    (offsets.collect(), end)
}

/// Memory of a GPU.
pub(crate) struct Memory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
    /// False for a part of other memory, which outlives it, and for none.
    owned: bool,
}

impl Memory {
    /// `bytes` of it from byte `first` on; its owner lives longer.
    pub fn part(&self, first: usize, bytes: usize) -> Memory {
        assert!(first + bytes <= self.bytes, "a part lies within its whole");
        Memory { gpu: self.gpu.clone(), address: self.address + first as u64, bytes, owned: false }
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Fills it with zeros.
    pub fn clear(&mut self) -> CudaResult<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.gpu.context.bind()?;
        // SAFETY: the memory is this one's, in the order of the stream.
        let answer = unsafe { result::memset_d8_async(self.address, 0, self.bytes, self.gpu.stream.raw()) };
        check("cuMemsetD8Async", answer)
    }

    /// Writes all of it.
    pub fn upload(&mut self, feed: Feed, from: &[u8]) -> CudaResult<()> {
        assert_eq!(from.len(), self.bytes, "an upload fills its buffer");
        if from.is_empty() {
            return Ok(());
        }
        self.gpu.context.bind()?;
        // SAFETY: the memory is this one's and has that size; while work is captured, it is of the graph's slab.
        if unsafe { self.gpu.capture_upload(feed, from, self.address) }? {
            return Ok(());
        }
        // SAFETY: the memory is this one's and has that size; it is freed in the order of the stream.
        self.gpu.with_staging(|staging| unsafe { staging.upload(&self.gpu.stream, from, self.address) })
    }

    /// Reads from byte `first` on, when the work before is done.
    pub fn download(&self, first: usize, to: &mut [u8]) -> CudaResult<()> {
        assert!(first + to.len() <= self.bytes, "a download reads what is there");
        self.gpu.refuse_to_wait()?;
        // SAFETY: as above.
        self.gpu.with_staging(|staging| unsafe { staging.download(&self.gpu.stream, self.address + first as u64, to) })
    }

    /// Has the graph that is captured leave `bytes` from byte `first` on for the host; returns their number.
    pub fn keep(&self, first: usize, bytes: usize) -> CudaResult<usize> {
        assert!(first + bytes <= self.bytes, "a result is what is there");
        self.gpu.context.bind()?;
        // SAFETY: the memory is this one's, of the graph's slab.
        unsafe { self.gpu.capture_result(self.address + first as u64, bytes) }
    }

    /// Copies as much as it holds of `from`, which lives on the same GPU, from byte `first` on.
    pub fn copy_from(&mut self, from: &Memory, first: usize) -> CudaResult<()> {
        assert!(first + self.bytes <= from.bytes && Arc::ptr_eq(&from.gpu, &self.gpu), "a copy within one GPU");
        if self.bytes == 0 {
            return Ok(());
        }
        self.gpu.context.bind()?;
        let (to, from) = (self.address, from.address + first as u64);
        // SAFETY: both are alive, in the order of the stream.
        let answer = unsafe { result::memcpy_dtod_async(to, from, self.bytes, self.gpu.stream.raw()) };
        check("cuMemcpyDtoDAsync", answer)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.owned || self.gpu.context.bind().is_err() || self.gpu.defer_free(self.address) {
            return;
        }
        // SAFETY: allocated once by `Gpu::alloc`, and given back once.
        unsafe { self.gpu.free(self.address) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiprocessors, boost clock in MHz and TFLOP/s of data sheets and architecture papers: bf16 or f16, dense, sums in f32.
    #[test]
    fn peaks_are_the_published_ones() {
        for (name, capability, multiprocessors, megahertz, published) in [
            ("NVIDIA A100-SXM4-40GB", (8, 0), 108.0, 1410.0, 312.0),
            ("NVIDIA A30", (8, 0), 56.0, 1440.0, 165.0),
            ("NVIDIA A10", (8, 6), 72.0, 1695.0, 125.0),
            ("NVIDIA A40", (8, 6), 84.0, 1740.0, 149.7),
            ("NVIDIA RTX A6000", (8, 6), 84.0, 1800.0, 154.8),
            ("NVIDIA GeForce RTX 3090", (8, 6), 82.0, 1695.0, 71.0),
            ("NVIDIA L4", (8, 9), 58.0, 2040.0, 121.0),
            ("NVIDIA L40", (8, 9), 142.0, 2490.0, 181.05),
            ("NVIDIA L40S", (8, 9), 142.0, 2520.0, 362.05),
            ("NVIDIA GeForce RTX 4090", (8, 9), 128.0, 2520.0, 165.2),
            ("NVIDIA H100 80GB HBM3", (9, 0), 132.0, 1830.0, 989.4),
            ("NVIDIA GeForce RTX 5090", (12, 0), 170.0, 2407.0, 209.5),
            ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 188.0, 2617.0, 503.8),
        ] {
            let peak = tensor_operations(name, capability) * multiprocessors * megahertz * 1e6 / 1e12;
            // Data sheets round clocks: the L40S's 362.05 is 1.2 % below what its own 733 with sparsity says.
            assert!((peak / published - 1.0).abs() < 0.015, "{name}: {peak} TFLOP/s, published {published}");
        }
    }
}
