//! One device: its description, its memory with who owns what, and the kernels that run on it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::{Handle, HostPtr};
use super::core::{Access, Space};
use super::job::{Failure, Kernel, Touched};
use super::status::Status;
use crate::device::Description;
use crate::exec;
use crate::fault::{Fault, Kind};
use crate::memory::{self, Allocation, GlobalMemory};
use crate::program::{self, Arg, Function};
use crate::report;

/// The last PTX version that a CUDA 12.2 driver takes.
const PTX_VERSION: (u32, u32) = (8, 2);
/// Addresses of devices are this far apart, so that an address tells its device.
const DEVICE_SPAN: u64 = 1 << 44;

/// A module in a device's memory.
pub struct LoadedModule(exec::LoadedModule);

impl std::fmt::Debug for LoadedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.0.module().functions.iter().map(|function| &function.name);
        f.debug_list().entries(names).finish()
    }
}

impl LoadedModule {
    /// Address and size of a variable.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        self.0.global(name)
    }
}

/// A kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct LoadedKernel {
    module: Arc<LoadedModule>,
    index: usize,
    attributes: exec::Attributes,
}

impl LoadedKernel {
    /// The kernel of this name.
    ///
    /// # Errors
    /// None where there is none; the fault where it can't be linked.
    pub fn find(module: &Arc<LoadedModule>, name: &str) -> Result<LoadedKernel, Option<Fault>> {
        let functions = &module.0.module().functions;
        let index = functions.iter().position(|function| function.entry && function.name == name).ok_or(None)?;
        let attributes = module.0.attributes(index).map_err(Some)?;
        Ok(LoadedKernel { module: module.clone(), index, attributes })
    }

    fn function(&self) -> &Function {
        &self.module.0.module().functions[self.index]
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.function().name
    }

    /// Bytes of all parameters.
    pub fn param_bytes(&self) -> usize {
        self.attributes.param_bytes as usize
    }

    /// Offset and size of each parameter.
    pub fn params(&self) -> Vec<(usize, usize)> {
        let place = |param: &program::Param| match param.place {
            Arg::Param { offset, size } => (offset as usize, size as usize),
            _ => (0, 0), // only functions that kernels call have parameters in registers
        };
        self.function().params.iter().map(place).collect()
    }

    /// Static shared memory of a block, in bytes.
    pub fn static_shared(&self) -> u32 {
        self.attributes.shared_bytes
    }

    /// Local memory of a thread, in bytes.
    pub fn local_bytes(&self) -> u32 {
        self.attributes.local_bytes
    }

    /// 32-bit registers of a thread.
    pub fn registers(&self) -> u32 {
        self.attributes.registers
    }

    /// Constant memory of the module, in bytes.
    pub fn constant_bytes(&self) -> u64 {
        let constants = self.module.0.module().globals.iter().filter(|global| global.space == program::Space::Const);
        constants.map(|global| global.size).sum()
    }

    /// PTX version, and target as in sm_80.
    pub fn versions(&self) -> ((u32, u32), u32) {
        let module = self.module.0.module();
        (module.version, module.target)
    }

    /// Threads that a block may have.
    pub fn max_threads(&self, device: &Description) -> u32 {
        let asked = self.attributes.max_threads.unwrap_or(u32::MAX).min(device.max_threads_per_block);
        let fits = |threads: &u32| device.blocks_per_sm(*threads, self.registers(), 0) > 0;
        (1..=asked.div_ceil(32)).rev().map(|warps| (warps * 32).min(asked)).find(fits).unwrap_or(asked)
    }

    /// The one block shape that the kernel allows, if it says so.
    pub fn required_threads(&self) -> Option<[u32; 3]> {
        self.function().directives.required_threads
    }
}

/// Why a module can't be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// The text is no PTX that the virtual GPU knows.
    Ptx(String),
    /// The text is of a later version of PTX than the driver's.
    Version(String),
    /// No room for its variables.
    Memory(String),
}

/// What a launch did, as far as the driver must know.
pub struct KernelRan {
    /// What it touched.
    pub touched: Vec<Touched>,
    /// Thread-instructions.
    pub work: u64,
    /// It wrote page-locked memory of the host.
    pub host_write: bool,
}

/// A device.
pub struct Gpu {
    number: usize,
    /// What it offers.
    pub description: Description,
    memory: GlobalMemory,
    /// The context of each allocation that a program made, by address.
    owners: Mutex<HashMap<u64, Handle>>,
    /// Page-locked host memory as the device sees it: first address by allocation id.
    host: Mutex<HashMap<u64, u64>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "device {} ({})", self.number, self.description.name)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Device `number` of the machine.
    pub fn new(number: usize, description: Description) -> Gpu {
        let base = memory::window::GLOBAL + number as u64 * DEVICE_SPAN;
        let memory = GlobalMemory::at(base, description.memory_bytes);
        Gpu { number, description, memory, owners: Mutex::default(), host: Mutex::default() }
    }

    /// Allocates for a context.
    ///
    /// # Errors
    /// What was asked for and what is left, in words.
    pub fn alloc(&self, owner: Handle, bytes: u64) -> Result<Allocation, String> {
        let base = self.memory.alloc(bytes).map_err(|error| error.to_string())?;
        locked(&self.owners).insert(base, owner);
        self.memory.find(base).ok_or_else(|| "an allocation without bytes".to_owned())
    }

    /// Frees an allocation.
    pub fn free(&self, address: u64) {
        locked(&self.owners).remove(&address);
        if let Err(error) = self.memory.free(address) {
            report::warn(&error.what);
        }
    }

    /// True where a program allocated memory that begins at this address.
    pub fn owns(&self, address: u64) -> bool {
        locked(&self.owners).contains_key(&address)
    }

    /// The context of the allocation that begins at this address.
    pub fn owner(&self, address: u64) -> Handle {
        locked(&self.owners).get(&address).copied().unwrap_or_default()
    }

    /// Frees all that a context owns; gives the ids.
    pub fn release_owned(&self, owner: Handle) -> Vec<u64> {
        let addresses: Vec<u64> =
            locked(&self.owners).iter().filter(|(_, of)| **of == owner).map(|(address, _)| *address).collect();
        let ids = addresses.iter().filter_map(|address| self.find(*address)).map(|found| found.id).collect();
        addresses.into_iter().for_each(|address| self.free(address));
        ids
    }

    /// The allocation that holds an address.
    pub fn find(&self, address: u64) -> Option<Allocation> {
        self.memory.find(address)
    }

    /// Why `len` bytes at an address are not in one allocation.
    pub fn explain(&self, address: u64, len: u64) -> String {
        self.memory.explain(address, len).what
    }

    /// Why an address can't be freed.
    pub fn explain_free(&self, address: u64) -> String {
        match self.find(address) {
            Some(found) if found.base == address => format!("{address:#x} was not allocated by the program"),
            Some(found) => format!("{address:#x} is inside the allocation at {:#x}, not at its start", found.base),
            None => self.explain(address, 1),
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.memory.used()
    }

    /// Reads bytes that must have been written.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(&self, address: u64, len: u64) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; usize::try_from(len).map_err(|error| error.to_string())?];
        self.memory.read(address, &mut bytes, memory::Access::Checked).map_err(|error| error.what)?;
        Ok(bytes)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        self.memory.write(address, bytes).map_err(|error| error.what)
    }

    /// Copies within a device or between two. Bytes that were never written may be copied, as whole buffers are.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn copy(from: &Gpu, src: u64, to: &Gpu, dst: u64, len: u64) -> Result<(), String> {
        if from.number == to.number {
            return from.memory.copy(dst, src, len).map_err(|error| error.what);
        }
        let bytes = from.read(src, len)?;
        to.write(dst, &bytes)
    }

    /// Lets the device see page-locked host memory, which the driver reaches `through` an address of its own; false
    /// where some of it is known already.
    pub fn map_host(&self, address: HostPtr, through: HostPtr, len: usize) -> bool {
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>(through.0);
        // SAFETY: the driver unmaps the range before it frees it; for the program's own memory, CUDA's contract keeps
        // it in place until it is unregistered. Both wait for the work that uses it.
        let mapped = unsafe { self.memory.register_host(address.0 as u64, pointer, len as u64) };
        let Ok(base) = mapped else { return false };
        if let Some(found) = self.memory.find(base) {
            locked(&self.host).insert(found.id, base);
        }
        true
    }

    /// Undoes [`Gpu::map_host`].
    pub fn unmap_host(&self, address: HostPtr) {
        let base = address.0 as u64;
        locked(&self.host).retain(|_, of| *of != base);
        if let Err(error) = self.memory.free(base) {
            report::warn(&error.what);
        }
    }

    /// Loads a module and gives its variables memory.
    ///
    /// # Errors
    /// Where the text can't be loaded or the memory does not suffice.
    pub fn load(&self, text: &str) -> Result<LoadedModule, LoadError> {
        let module = crate::lower::load(text).map_err(|error| LoadError::Ptx(error.to_string()))?;
        let (major, minor) = module.version;
        if module.version > PTX_VERSION {
            let (most, least) = PTX_VERSION;
            return Err(LoadError::Version(format!("PTX {major}.{minor} is later than the driver's {most}.{least}")));
        }
        let capability = self.description.compute_capability;
        let own = capability.0 * 10 + capability.1;
        if module.target > own {
            let target = module.target;
            return Err(LoadError::Ptx(format!(
                "target sm_{target} is beyond {}, which is sm_{own}",
                self.description.name
            )));
        }
        exec::LoadedModule::load(Arc::new(module), &self.memory)
            .map(LoadedModule)
            .map_err(|error| LoadError::Memory(error.to_string()))
    }

    /// Frees a module's variables; gives their ids.
    pub fn unload(&self, module: &LoadedModule) -> Vec<u64> {
        let names = module.0.module().globals.iter().filter_map(|global| module.variable(&global.name));
        let ids = names.filter_map(|(address, _)| self.find(address)).map(|found| found.id).collect();
        module.0.unload(&self.memory);
        ids
    }

    /// Runs a kernel, and reports what was counted.
    ///
    /// # Errors
    /// The fault that it committed.
    pub fn launch(&self, kernel: &Kernel, stream: Handle) -> Result<KernelRan, Failure> {
        if let Some(failure) = super::mishaps::of_launch(kernel.kernel.name()) {
            return Err(failure);
        }
        let launch = exec::Launch {
            module: &kernel.kernel.module.0,
            function: kernel.kernel.index,
            grid: kernel.grid,
            block: kernel.block,
            dynamic_shared: kernel.dynamic_shared,
            params: &kernel.params,
            device: &self.description,
            memory: &self.memory,
            cooperative: kernel.cooperative,
        };
        let outcome = exec::launch(&launch).map_err(|fault| Failure {
            status: status_of(fault.kind),
            text: fault.to_string(),
            fault: Some(fault),
        })?;
        if !outcome.output.is_empty() {
            report::print(&outcome.output);
        }
        report::launch(&report::Launch {
            kernel: kernel.kernel.name(),
            device: self.number,
            stream: stream.0,
            grid: kernel.grid,
            block: kernel.block,
            dynamic_shared: kernel.dynamic_shared,
            counters: &outcome.counters,
        });
        let touched = self.touched(&outcome.read, Access::Read).chain(self.touched(&outcome.written, Access::Write));
        let touched: Vec<Touched> = touched.collect();
        let host_write = touched.iter().any(|(space, _, access)| *space == Space::Host && *access == Access::Write);
        Ok(KernelRan { touched, work: outcome.counters.thread_instructions.total(), host_write })
    }

    fn touched<'a>(
        &'a self,
        ranges: &'a [(u64, Range<u64>)],
        access: Access,
    ) -> impl Iterator<Item = Touched> + use<'a> {
        ranges.iter().map(move |(id, range)| {
            let space = match locked(&self.host).contains_key(id) {
                true => Space::Host,
                false => Space::Device { device: self.number, allocation: *id },
            };
            (space, range.clone(), access)
        })
    }
}

/// What CUDA answers to a fault.
fn status_of(kind: Kind) -> Status {
    match kind {
        Kind::OutOfBounds | Kind::UseAfterFree | Kind::ReadOnly => Status::ILLEGAL_ADDRESS,
        Kind::Misaligned => Status::MISALIGNED_ADDRESS,
        Kind::WrongSpace => Status::INVALID_ADDRESS_SPACE,
        Kind::Unsupported => Status::ILLEGAL_INSTRUCTION,
        Kind::Assert => Status::ASSERT,
        Kind::TooManyResources => Status::LAUNCH_OUT_OF_RESOURCES,
        Kind::TimedOut => Status::LAUNCH_TIMEOUT,
        _ => Status::LAUNCH_FAILED,
    }
}
