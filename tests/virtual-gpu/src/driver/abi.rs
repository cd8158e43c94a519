//! C's side of the interface: handles, structures with the layout of `cuda.h` 12.2, and pointers that callers hand in.
//!
//! [`In`], [`Out`] and [`Text`] are pointers of a C caller. They can only come from one, through the signature of an
//! exported function, so what CUDA promises of its arguments (null, or good for the type) holds wherever they are used.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;

use super::status::{Result, Status};

/// `CUdeviceptr`: an address on a device.
pub type DevicePtr = u64;
/// `CUdevice`: a device's number.
pub type DeviceNumber = c_int;

/// A handle that C sees as an opaque pointer. 0 is null; every object ever made has its own number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Handle(pub usize);

impl Handle {
    /// The null handle: the legacy default stream, or no object.
    pub const NULL: Handle = Handle(0);

    /// True for the null handle.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// A pointer through which a call hands out a `T`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// True where the caller does not want the value.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Hands out the value.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub fn set(self, value: T) -> Result {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the caller passed a pointer that is not null, so CUDA's contract makes it good for one T.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Hands out the value if the caller wants it.
    pub fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `set`.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// The value that stands there now.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub fn get(self) -> Result<T>
    where
        T: Copy,
    {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: as in `set`; where a call reads an in-out argument, the contract makes it initialised.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Hands out an array's elements, as many as there are.
    pub fn set_all(self, values: impl IntoIterator<Item = T>) -> Result {
        for (index, value) in values.into_iter().enumerate() {
            Out(self.0.wrapping_add(index)).set_checked(self.0.is_null(), value)?;
        }
        Ok(())
    }

    fn set_checked(self, null: bool, value: T) -> Result {
        if null { Err(Status::INVALID_VALUE) } else { self.set(value) }
    }

    /// The same pointer, to another type.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

/// A pointer to a `T` or an array of them that a call reads.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// True for a null pointer.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub fn get(self) -> Result<T> {
        self.at(0)
    }

    /// Element `index` of the array.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the pointer is not null, and the caller's contract makes it good for as many T as the call's other
        // arguments say, which bound the indices that are asked for.
        Ok(unsafe { self.0.wrapping_add(index).read_unaligned() })
    }

    /// The first `len` elements of the array; none need be there for a length of 0.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer with a length.
    pub fn all(self, len: usize) -> Result<Vec<T>> {
        (0..len).map(|index| self.at(index)).collect()
    }

    /// Element `index` as a place to write: for arrays that a call both reads and changes.
    pub fn out_at(self, index: usize) -> Out<T> {
        Out(self.0.wrapping_add(index).cast_mut())
    }
}

impl In<u8> {
    /// The bytes as a C string.
    pub fn as_text(self) -> Text {
        Text(self.0.cast())
    }
}

/// A C string that a call reads.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// The text.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer or text that is not UTF-8.
    pub fn get(self) -> Result<String> {
        String::from_utf8(self.bytes()?).map_err(|_| Status::INVALID_VALUE)
    }

    /// The text as the path of a file.
    ///
    /// # Errors
    /// As [`Text::get`].
    pub fn path(self) -> Result<PathBuf> {
        self.get().map(PathBuf::from)
    }

    /// The bytes before the zero that ends the text.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub fn bytes(self) -> Result<Vec<u8>> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the pointer is not null, so the caller's contract makes it a string that ends in a zero byte.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes().to_vec())
    }
}

/// Host memory that a call, or work that it queues, reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct HostPtr(pub usize);

impl HostPtr {
    /// True for a null pointer.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    /// A copy of `len` bytes.
    pub fn read(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: a caller that asks for a copy of `len` bytes from a host address promises that they are there until
        // the copy has run; `bytes` has room for them and is ours alone.
        unsafe {
            std::ptr::copy_nonoverlapping(std::ptr::with_exposed_provenance::<u8>(self.0), bytes.as_mut_ptr(), len)
        };
        bytes
    }

    /// Writes `bytes`.
    pub fn write(self, bytes: &[u8]) {
        // SAFETY: a caller that asks for a copy to a host address promises that it has room until the copy has run.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                std::ptr::with_exposed_provenance_mut::<u8>(self.0),
                bytes.len(),
            )
        };
    }

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> HostPtr {
        HostPtr(self.0.wrapping_add(bytes))
    }
}

/// `CUhostFn`: a function of the program that a stream calls.
pub type HostFn = Option<unsafe extern "C" fn(data: *mut c_void)>;
/// `CUstreamCallback`.
pub type StreamCallback = Option<unsafe extern "C" fn(stream: Handle, status: Status, data: *mut c_void)>;
/// `CUoccupancyB2DSize`: dynamic shared memory by block size.
pub type BlockToShared = Option<unsafe extern "C" fn(block: c_int) -> usize>;

/// `CU_MEMORYTYPE_HOST`.
pub const MEMORY_HOST: c_uint = 1;
/// `CU_MEMORYTYPE_DEVICE`.
pub const MEMORY_DEVICE: c_uint = 2;
/// `CU_MEMORYTYPE_UNIFIED`.
pub const MEMORY_UNIFIED: c_uint = 4;

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Memcpy2D {
    pub src_x: usize,
    pub src_y: usize,
    pub src_type: c_uint,
    pub src_host: HostPtr,
    pub src_device: DevicePtr,
    pub src_array: usize,
    pub src_pitch: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_type: c_uint,
    pub dst_host: HostPtr,
    pub dst_device: DevicePtr,
    pub dst_array: usize,
    pub dst_pitch: usize,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_MEMCPY3D` and `CUDA_MEMCPY3D_PEER`, whose contexts stand where the other has reserved words.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Memcpy3D {
    pub src_x: usize,
    pub src_y: usize,
    pub src_z: usize,
    pub src_lod: usize,
    pub src_type: c_uint,
    pub src_host: usize,
    pub src_device: DevicePtr,
    pub src_array: usize,
    pub src_context: usize,
    pub src_pitch: usize,
    pub src_height: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_z: usize,
    pub dst_lod: usize,
    pub dst_type: c_uint,
    pub dst_host: usize,
    pub dst_device: DevicePtr,
    pub dst_array: usize,
    pub dst_context: usize,
    pub dst_pitch: usize,
    pub dst_height: usize,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// `CUDA_KERNEL_NODE_PARAMS` (v1 ends before `kernel`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct KernelNodeParams {
    pub function: Handle,
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub params: *mut *mut c_void,
    pub extra: *mut *mut c_void,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct KernelNodeParamsV2 {
    pub base: KernelNodeParams,
    pub kernel: Handle,
    pub context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct MemsetNodeParams {
    pub dst: DevicePtr,
    pub pitch: usize,
    pub value: c_uint,
    pub element_size: c_uint,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct HostNodeParams {
    pub function: HostFn,
    pub data: *mut c_void,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct InstantiateParams {
    pub flags: u64,
    pub upload_stream: Handle,
    pub error_node: Handle,
    pub result: c_int,
}

/// `CUgraphExecUpdateResultInfo`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct UpdateResultInfo {
    pub result: c_int,
    pub error_node: Handle,
    pub error_from_node: Handle,
}

/// `CUlaunchAttribute`: an id and 64 bytes of value.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct LaunchAttribute {
    pub id: c_uint,
    pub pad: [u8; 4],
    pub value: [u64; 8],
}

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: Handle,
    pub attributes: In<LaunchAttribute>,
    pub attribute_count: c_uint,
}

/// `CUmemLocation`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct MemLocation {
    pub kind: c_uint,
    pub id: c_int,
}

/// `CUmemPoolProps`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct MemPoolProps {
    pub alloc_type: c_uint,
    pub handle_types: c_uint,
    pub location: MemLocation,
    pub security: usize,
    pub max_size: usize,
    pub reserved: [u8; 56],
}

/// `CUdevprop`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct DeviceProperties {
    pub max_threads_per_block: c_int,
    pub max_threads_dim: [c_int; 3],
    pub max_grid_size: [c_int; 3],
    pub shared_mem_per_block: c_int,
    pub total_constant_memory: c_int,
    pub simd_width: c_int,
    pub mem_pitch: c_int,
    pub regs_per_block: c_int,
    pub clock_rate: c_int,
    pub texture_align: c_int,
}
