//! Tensors: what flows through a tape, and what trains.

mod param;

use std::sync::{Arc, Weak};

use kernels::Buffer;

use crate::error::Result;
pub use param::Param;

/// An activation: a `[rows, cols]` matrix whose rows are tokens, its elements in the device's own order. Clones share the
/// buffer.
#[derive(Clone, Debug)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A matrix over `buffer`.
    ///
    /// # Panics
    /// If the buffer has another number of elements: an error of the calling function.
    pub fn new(buffer: Buffer, rows: usize, cols: usize) -> Tensor {
        assert_eq!(buffer.len(), rows * cols, "a tensor's buffer has rows·cols elements");
        Tensor { buffer: Arc::new(buffer), rows, cols }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// A mark by which this buffer is told from every other, also after it is freed. It keeps the buffer from nobody.
    pub(crate) fn mark(&self) -> Weak<Buffer> {
        Arc::downgrade(&self.buffer)
    }

    /// True where no other tensor shares the buffer, so that it may be written in place.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// The buffer for writing in place: itself where nobody shares it, a copy otherwise.
    ///
    /// # Errors
    /// No memory for the copy.
    pub fn into_buffer(self) -> Result<Buffer> {
        let category = self.buffer.category();
        match Arc::try_unwrap(self.buffer) {
            Ok(buffer) => Ok(buffer),
            Err(shared) => Ok(shared.duplicate(category)?),
        }
    }
}
