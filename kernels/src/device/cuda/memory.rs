//! A GPU's memory: of the driver's pool where it has one, in the order of the stream.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::context::Context;
use super::error::{CudaError, CudaResult, check, failure};
use super::pinned::Pinned;
use super::{Buffer, Feed, Gpu};

/// The driver's pool.
pub(super) struct Pool(sys::CUmemoryPool);

const POOL_PEAK: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// The device's pool, told to keep what is given back: a step asks for the same sizes again and again.
pub(super) fn keeping_pool(context: &Context) -> CudaResult<Pool> {
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

impl Gpu {
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

    /// `bytes` of memory, with any contents.
    pub(in crate::device) fn alloc(self: &Arc<Gpu>, bytes: usize) -> CudaResult<Memory> {
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
    pub(super) unsafe fn free(&self, address: u64) {
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
    pub(in crate::device) fn trim(&self) -> CudaResult<()> {
        self.stream.synchronize()?;
        match &self.pool {
            // SAFETY: the pool is the device's own and lives as long as it.
            Some(pool) => check("cuMemPoolTrimTo", unsafe { result::mem_pool::trim_to(pool.0, 0) }),
            None => Ok(()),
        }
    }
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
    pub(super) address: u64,
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
