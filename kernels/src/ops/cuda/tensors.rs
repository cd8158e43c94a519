//! The table of a list of tensors: the host's side of tensors.cuh.

use crate::device::{Buffer, Category, DType, Device, Gpu, Launch};
use crate::error::Result;

/// As in tensors.cuh: threads of a block.
pub(in crate::ops) const THREADS: usize = 256;
/// As in tensors.cuh: elements of a block.
const CHUNK: usize = 4096;

/// Blocks that a list of tensors of these lengths takes.
fn chunks_of(lens: impl Iterator<Item = usize>) -> usize {
    lens.map(|len| len.div_ceil(CHUNK)).sum()
}

/// Tensors whose kernel takes `N` buffers of each.
pub(in crate::ops) struct Table<const N: usize> {
    /// u64: the buffers' addresses and the length of each tensor, then of each chunk its tensor in the lower half and its
    /// number within it in the upper.
    words: Buffer,
    tensors: usize,
    chunks: usize,
}

impl<const N: usize> Table<N> {
    /// A table for tensors of these lengths.
    ///
    /// # Errors
    /// No memory.
    pub fn alloc(device: &Device, lens: impl ExactSizeIterator<Item = usize> + Clone) -> Result<Table<N>> {
        let (tensors, chunks) = (lens.len(), chunks_of(lens));
        let words = device.alloc(Category::Workspace, DType::U64, (N + 1) * tensors + chunks)?;
        Ok(Table { words, tensors, chunks })
    }

    /// Blocks of a launch over all tensors.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Writes the tensors' lengths and buffers; those that a tensor lacks are null.
    ///
    /// # Errors
    /// A buffer of another device, or the GPU's.
    pub fn fill<'a>(
        &mut self,
        gpu: &Gpu,
        tensors: impl Iterator<Item = (usize, [Option<&'a Buffer>; N])> + Clone,
    ) -> Result<()> {
        let mut words = Vec::with_capacity(self.words.len());
        for (len, buffers) in tensors.clone() {
            for buffer in buffers {
                words.push(buffer.map_or(Ok(0), |buffer| gpu.address(buffer))?);
            }
            words.push(len as u64);
        }
        for (tensor, (len, _)) in tensors.enumerate() {
            words.extend((0..len.div_ceil(CHUNK) as u64).map(|chunk| tensor as u64 | chunk << 32));
        }
        self.words.write(bytemuck::cast_slice(&words))
    }

    /// A kernel's first two arguments.
    pub fn give<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        launch.read(&self.words).dimension("tensors", self.tensors)
    }
}
