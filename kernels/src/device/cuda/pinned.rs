//! Pinned memory.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::result;

use super::context::Context;
use super::error::{CudaResult, failure};

/// Host memory that the GPU can reach by itself.
pub(crate) struct Pinned {
    context: Arc<Context>,
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Pinned {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes` zeros.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> CudaResult<Pinned> {
        context.bind()?;
        // SAFETY: a context is bound.
        let ptr = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(|e| failure("cuMemHostAlloc", e))?;
        let ptr = NonNull::new(ptr.cast::<u8>()).expect("the driver says that it allocated");
        // SAFETY: the memory was just allocated with this size.
        unsafe { ptr.write_bytes(0, bytes) };
        Ok(Pinned { context: context.clone(), ptr, bytes })
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn slice(&self, place: Range<usize>) -> &[u8] {
        assert!(place.start <= place.end && place.end <= self.bytes);
        // SAFETY: `ptr` owns so many initialised bytes, and the place lies within them.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().add(place.start), place.len()) }
    }

    pub fn slice_mut(&mut self, place: Range<usize>) -> &mut [u8] {
        assert!(place.start <= place.end && place.end <= self.bytes);
        // SAFETY: as above, and `&mut self` is the host's only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().add(place.start), place.len()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once; the driver waits for copies that use it.
            let _ = unsafe { result::free_host(self.ptr.as_ptr().cast::<c_void>()) };
        }
    }
}
