//! Buffers: typed, accounted memory of a device.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use memmap2::Mmap;

use super::arena::{Noted, Place};
use super::cuda::{CudaError, Memory};
use super::{Category, Device, Feed};
use crate::error::{Error, Result};

/// The element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float: the upper half of an f32.
    BF16,
    /// Token ids, indices.
    U32,
    /// 64-bit masks.
    U64,
    /// Bytes.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::U64 => 8,
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::U8 => "u8",
        })
    }
}

/// A Rust type that a buffer can hold.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its element type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f32 => F32, f16 => F16, bf16 => BF16, u32 => U32, u64 => U64, u8 => U8);

/// Memory of a device: `len` elements of one type, counted under one category from creation to drop.
pub struct Buffer {
    device: Device,
    category: Category,
    dtype: DType,
    len: usize,
    data: Data,
    claim: Claim,
}

/// Who else hears when a buffer goes.
#[derive(Default)]
struct Claim {
    /// A recording.
    #[expect(dead_code, reason = "its drop tells")]
    noted: Option<Noted>,
    /// The slab that it lies in.
    placed: Option<Place>,
}

enum Data {
    /// Meta: accounted, not there.
    Absent,
    Owned(Block),
    /// On a GPU.
    Cuda(Memory),
    /// Part of a mapped file: read-only.
    Mapped(Arc<Mmap>, usize),
    /// From a byte on of another buffer, which accounts for it: read-only.
    View(Arc<Buffer>, usize),
}

impl Buffer {
    pub(super) fn alloc(device: &Device, category: Category, dtype: DType, len: usize, zeroed: bool) -> Result<Buffer> {
        let bytes = len * dtype.size();
        if let Some(place) = device.place(bytes)? {
            device.memory().lend(category, bytes as u64);
            let data = match &place.slab.buffer().data {
                Data::Cuda(memory) => Data::Cuda(memory.part(place.start, bytes)),
                _ => Data::Absent,
            };
            let claim = Claim { noted: device.note(bytes), placed: Some(place) };
            let mut buffer = Buffer { device: device.clone(), category, dtype, len, data, claim };
            if zeroed && let Data::Cuda(memory) = &mut buffer.data {
                memory.clear()?;
            }
            return Ok(buffer);
        }
        device.memory().take(category, bytes as u64)?;
        let data = match device.gpu() {
            _ if device.is_meta() => Data::Absent,
            None => Data::Owned(device.pool().take(bytes, zeroed)),
            Some(gpu) => {
                let memory = gpu.alloc(bytes).and_then(|mut memory| {
                    if zeroed {
                        memory.clear()?;
                    }
                    Ok(memory)
                });
                Data::Cuda(memory.map_err(|error| {
                    device.memory().give(category, bytes as u64);
                    match error {
                        CudaError::OutOfMemory { total, .. } => Error::OutOfMemory {
                            requested: bytes as u64,
                            category: category.name(),
                            in_use: device.memory().in_use(),
                            limit: total as u64,
                        },
                        other => other.into(),
                    }
                })?)
            }
        };
        let claim = Claim { noted: device.note(bytes), placed: None };
        Ok(Buffer { device: device.clone(), category, dtype, len, data, claim })
    }

    /// A read-only buffer over `len` elements of a mapped file from byte `offset`, without a copy where the alignment
    /// allows it. It is accounted as if it were allocated, because its pages are in memory once they are read.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) past the device's limit.
    ///
    /// # Panics
    /// If the range lies outside the file: the reader of the file checks its ranges first.
    pub fn mapped(
        device: &Device,
        category: Category,
        dtype: DType,
        len: usize,
        file: &Arc<Mmap>,
        offset: usize,
    ) -> Result<Buffer> {
        let bytes = &file[offset..offset + len * dtype.size()];
        if device.is_meta() || device.gpu().is_none() && bytes.as_ptr().align_offset(dtype.size()) == 0 {
            device.memory().take(category, bytes.len() as u64)?;
            let data = if device.is_meta() {
                Data::Absent
            } else {
                device.memory().map(bytes.len() as u64);
                Data::Mapped(file.clone(), offset)
            };
            return Ok(Buffer { device: device.clone(), category, dtype, len, data, claim: Claim::default() });
        }
        let mut copy = Buffer::alloc(device, category, dtype, len, false)?;
        copy.write(bytes)?;
        Ok(copy)
    }

    /// `len` elements from byte `offset` on of a buffer on a GPU or Meta, which alone is accounted.
    ///
    /// # Panics
    /// If they lie outside of it.
    pub(crate) fn view(whole: &Arc<Buffer>, offset: usize, dtype: DType, len: usize) -> Buffer {
        assert!(offset + len * dtype.size() <= whole.size_bytes(), "a view lies within its buffer");
        let (device, category) = (whole.device.clone(), whole.category);
        Buffer { device, category, dtype, len, data: Data::View(whole.clone(), offset), claim: Claim::default() }
    }

    /// Fills the buffer with `bytes`, on any device but Meta.
    ///
    /// # Errors
    /// The GPU's.
    ///
    /// # Panics
    /// On a mapped buffer, or if the size differs.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_feed(Feed::Fixed, bytes)
    }

    /// The same; `feed` says what the bytes are when the work that they are for is captured and launched again.
    pub(crate) fn write_feed(&mut self, feed: Feed, bytes: &[u8]) -> Result<()> {
        match &mut self.data {
            Data::Cuda(memory) => memory.upload(feed, bytes)?,
            _ => self.bytes_mut().copy_from_slice(bytes),
        }
        Ok(())
    }

    /// Fills the buffer by what `fill` writes into host memory: its own on the CPU, a copy that is then uploaded on a GPU. On
    /// Meta nothing is called.
    ///
    /// # Errors
    /// Those of `fill`, and the GPU's.
    ///
    /// # Panics
    /// On a mapped buffer, or if `T` is not the buffer's element type.
    pub fn fill<T: Element>(&mut self, fill: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
        match &mut self.data {
            Data::Absent => Ok(()),
            Data::Cuda(memory) => {
                assert_eq!(T::DTYPE, self.dtype, "buffer written as the wrong type");
                let mut values = vec![T::zeroed(); self.len];
                fill(&mut values)?;
                Ok(memory.upload(Feed::Fixed, bytemuck::cast_slice(&values))?)
            }
            _ => fill(self.as_mut_slice()),
        }
    }

    /// The elements in host memory: themselves on the CPU, a copy on a GPU, when all kernels that write them have run.
    ///
    /// # Errors
    /// The GPU's.
    ///
    /// # Panics
    /// On Meta, or if `T` is not the buffer's element type.
    pub fn read<T: Element>(&self) -> Result<Cow<'_, [T]>> {
        match &self.data {
            Data::Cuda(_) | Data::View(..) => Ok(Cow::Owned(self.download()?)),
            _ => Ok(Cow::Borrowed(self.as_slice())),
        }
    }

    /// A copy of the elements in host memory, when all kernels that write them have run.
    ///
    /// # Errors
    /// The GPU's.
    ///
    /// # Panics
    /// On Meta, or if `T` is not the buffer's element type.
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        let Some((memory, offset)) = self.cuda() else { return Ok(self.as_slice().to_vec()) };
        assert_eq!(T::DTYPE, self.dtype, "buffer read as the wrong type");
        let mut values = vec![T::zeroed(); self.len];
        memory.download(offset, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The memory that it lies in and from which byte on, where it is on a GPU.
    pub(crate) fn cuda(&self) -> Option<(&Memory, usize)> {
        match &self.data {
            Data::Cuda(memory) => Some((memory, 0)),
            Data::View(whole, offset) => whole.cuda().map(|(memory, first)| (memory, first + offset)),
            _ => None,
        }
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it is counted under.
    pub fn category(&self) -> Category {
        self.category
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a buffer of no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// True where the elements stand in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.data, Data::Mapped(..))
    }

    /// The elements.
    ///
    /// # Panics
    /// On Meta or a GPU, or if `T` is not the buffer's element type: both are errors of the calling kernel.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "buffer read as the wrong type");
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements, for writing.
    ///
    /// # Panics
    /// As [`Buffer::as_slice`], and on a mapped buffer.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "buffer written as the wrong type");
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// The elements as f32. Short for [`Buffer::as_slice`].
    pub fn f32(&self) -> &[f32] {
        self.as_slice()
    }

    /// The elements as f32, for writing. Short for [`Buffer::as_mut_slice`].
    pub fn f32_mut(&mut self) -> &mut [f32] {
        self.as_mut_slice()
    }

    /// The raw bytes.
    ///
    /// # Panics
    /// On Meta and on a GPU.
    pub fn bytes(&self) -> &[u8] {
        let len = self.size_bytes();
        match &self.data {
            Data::Absent => panic!("a meta buffer holds no data"),
            Data::Cuda(_) | Data::View(..) => panic!("a buffer on a GPU is read by download"),
            Data::Owned(block) => &block.as_slice()[..len],
            Data::Mapped(file, offset) => &file[*offset..*offset + len],
        }
    }

    /// The raw bytes, for writing.
    ///
    /// # Panics
    /// On Meta, on a GPU, and on a mapped buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.size_bytes();
        match &mut self.data {
            Data::Absent => panic!("a meta buffer holds no data"),
            Data::Cuda(_) => panic!("a buffer on a GPU is filled by write"),
            Data::Owned(block) => &mut block.as_mut_slice()[..len],
            Data::Mapped(..) | Data::View(..) => panic!("a mapped file or a view is read-only"),
        }
    }

    /// A copy under another category.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn duplicate(&self, category: Category) -> Result<Buffer> {
        let mut copy = self.device.alloc(category, self.dtype, self.len)?;
        match (&mut copy.data, self.cuda()) {
            (Data::Absent, _) => {}
            (Data::Cuda(copy), Some((from, first))) => copy.copy_from(from, first)?,
            _ => copy.bytes_mut().copy_from_slice(self.bytes()),
        }
        Ok(copy)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (memory, bytes) = (self.device.memory(), self.size_bytes() as u64);
        if self.is_mapped() {
            memory.unmap(bytes);
        }
        match (&self.data, &self.claim.placed) {
            (Data::View(..), _) => {}
            (_, Some(_)) => memory.take_back(self.category, bytes),
            _ => memory.give(self.category, bytes),
        }
        if let Data::Owned(block) = std::mem::replace(&mut self.data, Data::Absent) {
            self.device.pool().give(block);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} {} on {}, {})", self.len, self.dtype, self.device.name(), self.category.name())
    }
}

/// Cache-line alignment: a vector load of any width never straddles two lines at a row's start.
const ALIGN: usize = 64;

/// Initialised, aligned memory.
struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block owns its memory as a Box<[u8]> would; nothing else points to it.
unsafe impl Send for Block {}
// SAFETY: shared access only reads.
unsafe impl Sync for Block {}

impl Block {
    fn zeroed(bytes: usize) -> Block {
        let layout = Block::layout(bytes);
        // SAFETY: the layout has a size of at least ALIGN bytes.
        let Some(ptr) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Block { ptr, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(ALIGN), ALIGN).expect("buffers are smaller than the address space")
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` owns `bytes` initialised bytes for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this layout, and freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Block::layout(self.bytes)) }
    }
}

/// Freed blocks kept for the next buffer of the same size: a training step asks for the same sizes again and again, and
/// a fresh mapping would pay a page fault for every 4 KiB each time.
#[derive(Default)]
pub(super) struct Pool(Mutex<HashMap<usize, Vec<Block>>>);

/// Smaller blocks go straight back to the allocator, which keeps its own lists for them.
const POOLED_FROM: usize = 64 * 1024;

impl Pool {
    fn take(&self, bytes: usize, zeroed: bool) -> Block {
        let pooled = self.0.lock().expect("no panic while locked").get_mut(&bytes).and_then(Vec::pop);
        match pooled {
            Some(mut block) => {
                if zeroed {
                    block.as_mut_slice().fill(0);
                }
                block
            }
            None => Block::zeroed(bytes),
        }
    }

    fn give(&self, block: Block) {
        if block.bytes >= POOLED_FROM {
            self.0.lock().expect("no panic while locked").entry(block.bytes).or_default().push(block);
        }
    }

    pub(super) fn clear(&self) {
        self.0.lock().expect("no panic while locked").clear();
    }
}
