//! Kernels by name, and launches that check their arguments.
//!
//! The driver copies as many bytes for each argument as the kernel declares, whatever the caller holds. A launch therefore
//! compares every argument with the kernel's declaration in its PTX, and grid, block and shared memory with what the
//! kernel and the GPU allow, before it calls the driver.

use std::ffi::c_void;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};

use super::Gpu;
use super::error::{CudaError, CudaResult, check, failure};
use crate::device::{Buffer, DType};

/// The kernels of one operation.
#[derive(Debug)]
pub struct Source {
    /// The operation.
    pub name: &'static str,
    /// PTX of one `.cu` file.
    pub ptx: &'static str,
}

/// A buffer from one of its elements on.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// All of it.
    pub buffer: &'a Buffer,
    /// The element.
    pub first: usize,
}

impl<'a> From<&'a Buffer> for Span<'a> {
    fn from(buffer: &'a Buffer) -> Span<'a> {
        Span { buffer, first: 0 }
    }
}

impl Span<'_> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }
}

/// A kernel that the driver has loaded. It lives as long as its [`Gpu`].
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    name: &'static str,
    raw: sys::CUfunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    max_threads: usize,
    static_shared: usize,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernel {}

impl Kernel {
    /// # Safety
    /// `module` holds what `source` compiles to.
    pub unsafe fn new(source: &Source, module: sys::CUmodule, name: &'static str) -> CudaResult<Kernel> {
        let missing =
            || CudaError::Launch { kernel: name.into(), reason: format!("no such kernel in {}", source.name) };
        let parameters = parameters(source.ptx, name).ok_or_else(missing)?;
        let text = std::ffi::CString::new(name).map_err(|_| missing())?;
        // SAFETY: the caller vouches for the module.
        let raw =
            unsafe { result::module::get_function(module, text) }.map_err(|e| failure("cuModuleGetFunction", e))?;
        let attribute = |which| {
            // SAFETY: the function was just found.
            let value = unsafe { result::function::get_function_attribute(raw, which) };
            value.map(|value| value.max(0) as usize).map_err(|e| failure("cuFuncGetAttribute", e))
        };
        Ok(Kernel {
            name,
            raw,
            parameters,
            max_threads: attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            static_shared: attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        })
    }
}

/// Shared memory that a block may have without asking.
const DEFAULT_SHARED: usize = 48 * 1024;

/// One launch in the making.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    kernel: Kernel,
    grid: [usize; 3],
    block: [usize; 3],
    shared: usize,
    /// The arguments' bytes, each from a multiple of eight.
    bytes: Vec<u64>,
    /// Where each argument starts in `bytes`, and its size in bytes.
    places: Vec<(usize, usize)>,
    fault: Option<String>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(gpu: &'a Gpu, kernel: Kernel) -> Launch<'a> {
        let (bytes, places) = (Vec::new(), Vec::new());
        Launch { gpu, kernel, grid: [1; 3], block: [1; 3], shared: 0, bytes, places, fault: None }
    }

    /// Blocks.
    pub fn grid(mut self, grid: [usize; 3]) -> Self {
        self.grid = grid;
        self
    }

    /// Threads of a block.
    pub fn block(mut self, block: [usize; 3]) -> Self {
        self.block = block;
        self
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes;
        self
    }

    /// The next argument: the address of a buffer that the kernel reads.
    pub fn read(self, buffer: &Buffer) -> Self {
        self.buffer(buffer)
    }

    /// The next argument: the address of the first element of a span that the kernel reads.
    pub fn read_from(mut self, span: Span<'_>) -> Self {
        let address = self.gpu.address_of(span).unwrap_or_else(|fault| {
            self.fault.get_or_insert(fault.to_string());
            0
        });
        self.value(address)
    }

    /// The next argument: the address of an element of a buffer that the kernel writes.
    pub fn write_from(self, buffer: &mut Buffer, first: usize) -> Self {
        self.read_from(Span { buffer, first })
    }

    /// The next argument: the address of a buffer that the kernel writes.
    pub fn write(self, buffer: &mut Buffer) -> Self {
        self.buffer(buffer)
    }

    /// The next argument: the address of a buffer, or null.
    pub fn read_or_null(self, buffer: Option<&Buffer>) -> Self {
        match buffer {
            Some(buffer) => self.buffer(buffer),
            None => self.value(0u64),
        }
    }

    /// The next argument: the address of a buffer that the kernel writes, or null.
    pub fn write_or_null(self, buffer: Option<&mut Buffer>) -> Self {
        self.read_or_null(buffer.map(|buffer| &*buffer))
    }

    /// The next argument: a number, or a structure as the kernel declares it.
    pub fn value<T: bytemuck::Pod>(mut self, value: T) -> Self {
        let size = size_of::<T>();
        self.places.push((self.bytes.len(), size));
        let start = self.bytes.len();
        self.bytes.resize(start + size.div_ceil(8), 0);
        bytemuck::cast_slice_mut(&mut self.bytes[start..])[..size].copy_from_slice(bytemuck::bytes_of(&value));
        self
    }

    /// The next argument: a dimension, as the kernels' `int`.
    pub fn dimension(mut self, what: &str, value: usize) -> Self {
        let int = i32::try_from(value).unwrap_or_else(|_| {
            self.fault = Some(format!("{value} {what} are more than a launch can count"));
            0
        });
        self.value(int)
    }

    fn buffer(self, buffer: &Buffer) -> Self {
        self.read_from(buffer.into())
    }

    /// What speaks against the launch.
    fn fault(&self) -> Option<String> {
        if let Some(fault) = &self.fault {
            return Some(fault.clone());
        }
        let sizes: Vec<usize> = self.places.iter().map(|(_, size)| *size).collect();
        if sizes != self.kernel.parameters {
            return Some(format!("arguments of {sizes:?} bytes given, {:?} declared", self.kernel.parameters));
        }
        let threads: usize = self.block.iter().product();
        if threads == 0 || threads > self.kernel.max_threads {
            return Some(format!("blocks of {threads} threads, 1 to {} are possible", self.kernel.max_threads));
        }
        for (axis, (blocks, most)) in "xyz".chars().zip(self.grid.iter().zip([i32::MAX as usize, 65_535, 65_535])) {
            if !(1..=most).contains(blocks) {
                return Some(format!("{blocks} blocks along {axis}, 1 to {most} are possible"));
            }
        }
        let (shared, most) = (self.kernel.static_shared + self.shared, self.gpu.max_shared());
        (shared > most).then(|| format!("{shared} bytes of shared memory a block, the GPU has {most}"))
    }

    /// Puts the launch into the GPU's stream; it runs after all that was put there before.
    ///
    /// # Safety
    /// The kernel, with these arguments, touches only what its buffers hold, and writes only those given to [`Launch::write`].
    ///
    /// # Errors
    /// [`CudaError::Launch`] where an argument does not fit; the driver's, also for earlier work.
    pub unsafe fn run(mut self) -> CudaResult<()> {
        if let Some(reason) = self.fault() {
            return Err(CudaError::Launch { kernel: self.kernel.name.into(), reason });
        }
        self.gpu.context().bind()?;
        if self.kernel.static_shared + self.shared > DEFAULT_SHARED {
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is alive with its GPU.
            let answer =
                unsafe { result::function::set_function_attribute(self.kernel.raw, which, self.shared as i32) };
            check("cuFuncSetAttribute", answer)?;
        }
        let dims = |d: [usize; 3]| (d[0] as u32, d[1] as u32, d[2] as u32);
        let bytes = self.bytes.as_mut_ptr();
        // SAFETY: every place lies within `bytes`.
        let mut pointers: Vec<*mut c_void> =
            self.places.iter().map(|(at, _)| unsafe { bytes.add(*at) }.cast()).collect();
        // SAFETY: number and sizes of the arguments are what the kernel declares; the caller vouches for the rest. The
        // driver copies the arguments before it returns.
        let answer = unsafe {
            let (grid, block, stream) = (dims(self.grid), dims(self.block), self.gpu.stream().raw());
            result::launch_kernel(self.kernel.raw, grid, block, self.shared as u32, stream, &mut pointers)
        };
        check("cuLaunchKernel", answer)
    }
}

/// Bytes of each parameter that PTX declares for the entry `name`.
fn parameters(ptx: &str, name: &str) -> Option<Vec<usize>> {
    let start = ptx.find(&format!(".entry {name}("))? + ".entry (".len() + name.len();
    let list = ptx[start..].split_once(')')?.0;
    list.split(',').map(str::trim).filter(|parameter| !parameter.is_empty()).map(parameter_size).collect()
}

/// Bytes of `.param .u64 name` or `.param .align 4 .b8 name[36]`.
fn parameter_size(declaration: &str) -> Option<usize> {
    let bits = declaration.split_whitespace().find_map(|word| {
        let number = word.strip_prefix(['.'])?.strip_prefix(['u', 's', 'b', 'f'])?;
        number.parse::<usize>().ok()
    })?;
    let count = match declaration.split_once('[') {
        Some((_, rest)) => rest.split_once(']')?.0.parse().ok()?,
        None => 1,
    };
    Some(bits / 8 * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_declaration() {
        let ptx = "\
.visible .entry other(
	.param .u32 other_param_0
)
.visible .entry step(
	.param .u64 step_param_0,
	.param .u64 .ptr .global .align 1 step_param_1,
	.param .align 4 .b8 step_param_2[36],
	.param .f32 step_param_3
)
{
.visible .entry none()
";
        assert_eq!(parameters(ptx, "step"), Some(vec![8, 8, 36, 4]));
        assert_eq!(parameters(ptx, "none"), Some(vec![]));
        assert_eq!(parameters(ptx, "ste"), None);
    }
}
