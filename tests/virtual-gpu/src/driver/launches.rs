//! Launches checked as CUDA checks them, before anything is queued.

use std::ffi::c_void;
use std::sync::Arc;

use super::abi::Handle;
use super::exports::invalid;
use super::job::Kernel;
use super::session::Session;
use super::state::Function;
use super::status::{Result, Status};

/// `CU_LAUNCH_PARAM_END`, `_BUFFER_POINTER` and `_BUFFER_SIZE`.
const EXTRA_END: usize = 0;
const EXTRA_POINTER: usize = 1;
const EXTRA_SIZE: usize = 2;

/// Where a launch's parameters are: an array of pointers, one a parameter, or a packed buffer.
#[derive(Clone, Copy)]
pub struct Params {
    /// `kernelParams`.
    pub each: *mut *mut c_void,
    /// `extra`.
    pub packed: *mut *mut c_void,
}

/// How a kernel is to be launched.
#[derive(Clone, Copy, Debug)]
pub struct Dimensions {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// All blocks must be resident at once.
    pub cooperative: bool,
}

impl Params {
    /// The parameters as the kernel sees them.
    ///
    /// # Errors
    /// `INVALID_VALUE` where they are not there, are there twice, or fill another size than the kernel's.
    fn read(self, call: &str, function: &Function) -> Result<Arc<[u8]>> {
        let wanted = function.kernel.param_bytes();
        let name = function.kernel.name();
        match (self.each.is_null(), self.packed.is_null()) {
            (false, false) => Err(invalid(call, "parameters both as pointers and as a buffer; expected one of them")),
            (true, true) if wanted == 0 => Ok(Arc::from([])),
            (true, true) => Err(invalid(call, &format!("{name} takes {wanted} bytes of parameters, none are given"))),
            (true, false) => self.read_packed(call, name, wanted),
            (false, true) => {
                let mut bytes = vec![0; wanted];
                for (index, (offset, size)) in function.kernel.params().into_iter().enumerate() {
                    // SAFETY: CUDA's contract of `kernelParams`: one pointer for each parameter of the kernel.
                    let from = unsafe { *self.each.add(index) };
                    if from.is_null() {
                        return Err(invalid(call, &format!("parameter {index} of {name} is a null pointer")));
                    }
                    let to = bytes.get_mut(offset..offset + size).ok_or(Status::INVALID_VALUE)?;
                    // SAFETY: the same contract: the pointer is good for the parameter's size.
                    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.as_mut_ptr(), size) };
                }
                Ok(bytes.into())
            }
        }
    }

    fn read_packed(self, call: &str, name: &str, wanted: usize) -> Result<Arc<[u8]>> {
        let (mut buffer, mut size) = (std::ptr::null::<u8>(), None);
        let mut at = self.packed;
        loop {
            // SAFETY: CUDA's contract of `extra`: pairs of a name and a value up to the name that ends them.
            let (key, value) = unsafe { ((*at).addr(), *at.add(1)) };
            match key {
                EXTRA_END => break,
                EXTRA_POINTER => buffer = value.cast(),
                EXTRA_SIZE => {
                    // SAFETY: the same contract: the value of this name points to a size.
                    size = Some(unsafe { *value.cast::<usize>() });
                }
                other => return Err(invalid(call, &format!("extra option {other} is not known"))),
            }
            at = at.wrapping_add(2);
        }
        match size {
            Some(size) if !buffer.is_null() && size >= wanted => {
                // SAFETY: the same contract: the buffer holds as many bytes as the size says, which the kernel's fit in.
                Ok(unsafe { std::slice::from_raw_parts(buffer, wanted) }.into())
            }
            _ => Err(invalid(call, &format!("the buffer of parameters does not hold the {wanted} bytes of {name}"))),
        }
    }
}

impl Session {
    /// A launch ready to be queued.
    ///
    /// # Errors
    /// What CUDA answers where the launch asks for what the kernel or the device does not allow; the reason goes to
    /// stderr.
    pub fn kernel(
        &mut self,
        call: &str,
        handle: Handle,
        dimensions: Dimensions,
        params: Params,
    ) -> Result<Arc<Kernel>> {
        let function = self.function(handle)?.clone();
        let device = self.contexts[&function.context].device;
        self.check_launch(call, &function, device, &dimensions)?;
        let params = params.read(call, &function)?;
        Ok(Arc::new(Kernel {
            function: handle,
            kernel: function.kernel,
            device,
            grid: dimensions.grid,
            block: dimensions.block,
            dynamic_shared: dimensions.shared,
            params,
            cooperative: dimensions.cooperative,
        }))
    }

    fn check_launch(&self, call: &str, function: &Function, device: usize, launch: &Dimensions) -> Result {
        let gpu = &self.devices[device].description;
        let (kernel, name) = (&function.kernel, function.kernel.name());
        let Dimensions { grid, block, shared, cooperative } = *launch;
        if grid.contains(&0) || block.contains(&0) {
            return Err(invalid(call, &format!("{name}: grid {grid:?} and block {block:?} must not have a 0")));
        }
        if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            return Err(invalid(call, &format!("{name}: grid {grid:?} is past [2147483647, 65535, 65535]")));
        }
        let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
        let limit = kernel.max_threads(gpu);
        if threads > u64::from(limit) || block[2] > 64 {
            return Err(invalid(
                call,
                &format!(
                    "{name}: a block of {block:?} has {threads} threads; at most {limit}, and 64 in z, are allowed"
                ),
            ));
        }
        if let Some(required) = kernel.required_threads().filter(|required| *required != block) {
            return Err(invalid(call, &format!("{name}: block {block:?}, but the kernel requires {required:?}")));
        }
        if shared > function.max_dynamic_shared {
            let static_shared = kernel.static_shared();
            return Err(invalid(
                call,
                &format!(
                    "{name}: {shared} bytes of dynamic shared memory beside {static_shared} static ones; the function is \
                     allowed {}, and cuFuncSetAttribute can raise that to {}",
                    function.max_dynamic_shared,
                    gpu.shared_per_block_optin.saturating_sub(static_shared)
                ),
            ));
        }
        let threads = threads as u32;
        let resident = gpu.blocks_per_sm(threads, kernel.registers(), u64::from(kernel.static_shared() + shared));
        if resident == 0 {
            crate::report::warn(&format!(
                "{call}: {name}: {threads} threads with {} registers and {} bytes of shared memory do not fit a \
                 multiprocessor",
                kernel.registers(),
                kernel.static_shared() + shared
            ));
            return Err(Status::LAUNCH_OUT_OF_RESOURCES);
        }
        let blocks = grid.iter().map(|n| u64::from(*n)).product::<u64>();
        let room = u64::from(resident) * u64::from(gpu.sms);
        if cooperative && blocks > room {
            crate::report::warn(&format!("{call}: {name}: {blocks} blocks, but only {room} are resident at once"));
            return Err(Status::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        Ok(())
    }
}
