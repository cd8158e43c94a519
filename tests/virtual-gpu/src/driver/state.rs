//! All that the driver knows: one table a kind of object, behind one lock.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::Arc;
use std::thread::ThreadId;

use super::abi::{Handle, HostPtr};
use super::capture::Capture;
use super::core::{Clock, Kind, Ledger, Schedule, Space, StreamId};
use super::exports::stream_named;
use super::gpu::{Gpu, LoadedKernel, LoadedModule};
use super::graph::{Graph, GraphExec};
use super::guard::Pinned;
use super::job::{Job, TimeSlot};
use super::status::{Result, Status};

/// The handle by which programs name the legacy default stream, besides null.
pub const STREAM_LEGACY: Handle = Handle(1);
/// The handle by which programs name the calling thread's own default stream.
pub const STREAM_PER_THREAD: Handle = Handle(2);

/// Limits that `cuCtxSetLimit` knows: stack, printf buffer, heap, and those of device-side launches and the L2 cache.
pub const LIMITS: usize = 7;

/// A context: streams, modules and errors of one device.
#[derive(Debug)]
pub struct Context {
    /// The device's number.
    pub device: usize,
    /// `CU_CTX_*`.
    pub flags: u32,
    /// The primary context of its device.
    pub primary: bool,
    /// What every call answers once a kernel failed.
    pub lost: Option<Status>,
    /// By `CUlimit`.
    pub limits: [usize; LIMITS],
    /// `CUfunc_cache`.
    pub cache_config: i32,
    /// `CUsharedconfig`.
    pub shared_config: i32,
    /// The legacy default stream.
    pub legacy: StreamId,
    /// The default streams of threads.
    pub per_thread: HashMap<ThreadId, StreamId>,
}

/// A stream made by `cuStreamCreate`.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its context.
    pub context: Handle,
    /// Its place in the schedule.
    pub id: StreamId,
    /// `CU_STREAM_*`.
    pub flags: u32,
    /// Lower is more urgent.
    pub priority: i32,
}

/// What an event was last recorded as.
#[derive(Clone, Debug)]
pub enum Recorded {
    /// In a stream.
    Stream {
        /// All that must have run.
        clock: Clock,
        /// The count of work done when it happened.
        time: TimeSlot,
    },
    /// In a capture: the nodes that must have run.
    Capture {
        /// The capture.
        capture: u64,
        /// The nodes.
        nodes: Vec<Handle>,
    },
}

/// An event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its context.
    pub context: Handle,
    /// `CU_EVENT_*`.
    pub flags: u32,
    /// None before the first record.
    pub recorded: Option<Recorded>,
}

/// A module in a context.
#[derive(Debug)]
pub struct Module {
    /// Its context.
    pub context: Handle,
    /// What was loaded.
    pub loaded: Arc<LoadedModule>,
    /// Handles already given for its kernels.
    pub functions: HashMap<String, Handle>,
}

/// PTX texts that become one.
#[derive(Debug)]
pub struct Link {
    /// Its context.
    pub context: Handle,
    /// What was added.
    pub texts: Vec<String>,
    /// What it came to.
    pub image: CString,
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its module.
    pub module: Handle,
    /// Its context.
    pub context: Handle,
    /// The kernel.
    pub kernel: LoadedKernel,
    /// Dynamic shared memory that it was allowed.
    pub max_dynamic_shared: u32,
    /// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`.
    pub carveout: i32,
}

/// A pool of stream-ordered memory. It holds back nothing: its attributes are kept for whoever reads them.
#[derive(Debug, Default)]
pub struct Pool {
    /// The device's number.
    pub device: usize,
    /// `CUmemPool_attribute` values that programs set.
    pub attributes: BTreeMap<u32, u64>,
    /// Allocations that are alive, with their sizes.
    pub alive: HashMap<u64, u64>,
    /// Bytes alive.
    pub used: u64,
    /// The most that ever were.
    pub high: u64,
    /// Destroyed once its allocations are gone.
    pub doomed: bool,
}

/// Page-locked host memory.
#[derive(Clone, Debug)]
pub struct HostBlock {
    /// Bytes.
    pub len: usize,
    /// `CU_MEMHOSTALLOC_*` or `CU_MEMHOSTREGISTER_*`.
    pub flags: u32,
    /// Its memory; none where that is the program's own, registered.
    pub memory: Option<Arc<Pinned>>,
    /// The context that made it.
    pub context: Handle,
}

impl HostBlock {
    /// Where the driver reaches the byte that programs see at `address`.
    pub fn through(&self, address: HostPtr) -> HostPtr {
        self.memory.as_ref().map_or(address, |memory| memory.through(address))
    }
}

/// The primary context of a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Primary {
    /// Its handle, which stays the same.
    pub handle: Handle,
    /// The context, while someone retains it.
    pub context: Option<Handle>,
    /// How many do.
    pub count: u32,
    /// Flags for when it is next made.
    pub flags: u32,
}

/// All that the driver knows.
#[derive(Default)]
pub struct State {
    /// The devices, by number.
    pub devices: Vec<Arc<Gpu>>,
    /// Their primary contexts.
    pub primary: Vec<Primary>,
    /// Their default pools.
    pub default_pool: Vec<Handle>,
    /// Their current pools.
    pub current_pool: Vec<Handle>,
    /// Contexts.
    pub contexts: HashMap<Handle, Context>,
    /// Streams.
    pub streams: HashMap<Handle, Stream>,
    /// Events.
    pub events: HashMap<Handle, Event>,
    /// Modules.
    pub modules: HashMap<Handle, Module>,
    /// Links under way.
    pub links: HashMap<Handle, Link>,
    /// Functions.
    pub functions: HashMap<Handle, Function>,
    /// Graphs.
    pub graphs: HashMap<Handle, Graph>,
    /// The graph of each node.
    pub nodes: HashMap<Handle, Handle>,
    /// Graphs ready to launch.
    pub execs: HashMap<Handle, GraphExec>,
    /// Pools.
    pub pools: HashMap<Handle, Pool>,
    /// The pool of each stream-ordered allocation, by address.
    pub pooled: HashMap<u64, Handle>,
    /// Page-locked host memory, by address.
    pub host: BTreeMap<usize, HostBlock>,
    /// Captures under way.
    pub captures: BTreeMap<u64, Capture>,
    /// What waits.
    pub schedule: Schedule<Job>,
    /// Who touched what.
    pub ledger: Ledger,
    /// Work done so far: thread-instructions of kernels and bytes of copies.
    pub work_done: u64,
    /// Writes to page-locked memory and calls of the program so far.
    pub host_writes: u64,
    last_handle: usize,
    last_capture: u64,
}

thread_local! {
    /// The contexts that this thread pushed; the last is current.
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// Reads or changes the calling thread's stack of contexts.
pub fn current_stack<R>(use_it: impl FnOnce(&mut Vec<Handle>) -> R) -> R {
    CURRENT.with_borrow_mut(use_it)
}

/// The calling thread's current context; null if it has none.
pub fn current() -> Handle {
    current_stack(|stack| stack.last().copied().unwrap_or_default())
}

impl State {
    /// The state of a machine with these devices.
    pub fn new(devices: Vec<Gpu>) -> State {
        let mut state = State { last_handle: 0x1000, ..State::default() };
        for (number, device) in devices.into_iter().enumerate() {
            state.devices.push(Arc::new(device));
            let handle = state.handle();
            state.primary.push(Primary { handle, ..Primary::default() });
            let pool = state.handle();
            state.pools.insert(pool, Pool { device: number, ..Pool::default() });
            state.default_pool.push(pool);
            state.current_pool.push(pool);
        }
        state
    }

    /// A handle that no object ever had.
    pub fn handle(&mut self) -> Handle {
        self.last_handle += 16;
        Handle(self.last_handle)
    }

    /// A number that no capture ever had.
    pub fn capture_id(&mut self) -> u64 {
        self.last_capture += 1;
        self.last_capture
    }

    /// The device of this number.
    ///
    /// # Errors
    /// `INVALID_DEVICE` where there is none.
    pub fn device(&self, number: i32) -> Result<&Arc<Gpu>> {
        usize::try_from(number).ok().and_then(|number| self.devices.get(number)).ok_or(Status::INVALID_DEVICE)
    }

    /// A context that is alive and has not failed.
    ///
    /// # Errors
    /// The error that the context is lost to, or what CUDA says of no or a destroyed context.
    pub fn context(&self, handle: Handle) -> Result<&Context> {
        if handle.is_null() {
            return Err(Status::INVALID_CONTEXT);
        }
        let context = self.contexts.get(&handle).ok_or(Status::CONTEXT_IS_DESTROYED)?;
        match context.lost {
            Some(status) => Err(status),
            None => Ok(context),
        }
    }

    /// The same, to change it.
    ///
    /// # Errors
    /// As [`State::context`].
    pub fn context_mut(&mut self, handle: Handle) -> Result<&mut Context> {
        self.context(handle)?;
        self.contexts.get_mut(&handle).ok_or(Status::INVALID_CONTEXT)
    }

    /// Makes a context on a device: the primary one, or one of its own.
    pub fn create_context(&mut self, device: usize, flags: u32, primary: bool) -> Handle {
        let handle = if primary { self.primary[device].handle } else { self.handle() };
        let legacy = self.schedule.open(handle.0 as u64, Kind::Legacy);
        let context = Context {
            device,
            flags,
            primary,
            lost: None,
            limits: [1024, 1 << 20, 8 << 20, 2, 2048, 128, 0],
            cache_config: 0,
            shared_config: 1,
            legacy,
            per_thread: HashMap::new(),
        };
        self.contexts.insert(handle, context);
        handle
    }

    /// What is left when a context goes: none of its objects, none of its memory.
    pub fn destroy_context(&mut self, handle: Handle) {
        let Some(context) = self.contexts.remove(&handle) else { return };
        self.schedule.abandon(handle.0 as u64);
        self.captures.retain(|_, capture| capture.context != handle);
        self.streams.retain(|_, stream| stream.context != handle);
        self.events.retain(|_, event| event.context != handle);
        let gpu = self.devices[context.device].clone();
        let modules: Vec<Handle> = self.modules.iter().filter(|m| m.1.context == handle).map(|m| *m.0).collect();
        for module in modules {
            self.unload(module);
        }
        self.execs.retain(|_, exec| exec.context != handle);
        self.links.retain(|_, link| link.context != handle);
        for allocation in gpu.release_owned(handle) {
            self.ledger.forget(Space::Device { device: context.device, allocation });
        }
        super::guard::release(|work| work.context == handle);
        self.host.retain(|_, block| block.context != handle);
    }

    /// Removes a module, its functions and its variables.
    pub fn unload(&mut self, handle: Handle) {
        let Some(module) = self.modules.remove(&handle) else { return };
        self.functions.retain(|_, function| function.module != handle);
        if let Some(context) = self.contexts.get(&module.context) {
            let device = context.device;
            for allocation in self.devices[device].unload(&module.loaded) {
                self.ledger.forget(Space::Device { device, allocation });
            }
        }
    }

    /// The place in the schedule, and the context, of a stream handle.
    ///
    /// # Errors
    /// `INVALID_HANDLE` where there is no such stream; what [`State::context`] says of its context.
    pub fn stream(&mut self, handle: Handle) -> Result<(StreamId, Handle)> {
        let handle = stream_named(handle);
        if handle.is_null() || handle == STREAM_LEGACY {
            let context = current();
            return Ok((self.context(context)?.legacy, context));
        }
        if handle == STREAM_PER_THREAD {
            let current = current();
            self.context(current)?;
            let thread = std::thread::current().id();
            if let Some(&id) = self.contexts[&current].per_thread.get(&thread) {
                return Ok((id, current));
            }
            let id = self.schedule.open(current.0 as u64, Kind::Blocking);
            self.context_mut(current)?.per_thread.insert(thread, id);
            return Ok((id, current));
        }
        let (id, context) =
            self.streams.get(&handle).map(|stream| (stream.id, stream.context)).ok_or(Status::INVALID_HANDLE)?;
        self.context(context)?;
        Ok((id, context))
    }

    /// The event of a handle.
    ///
    /// # Errors
    /// `INVALID_HANDLE` where there is none; what [`State::context`] says of its context.
    pub fn event(&mut self, handle: Handle) -> Result<&mut Event> {
        let context = self.events.get(&handle).ok_or(Status::INVALID_HANDLE)?.context;
        self.context(context)?;
        self.events.get_mut(&handle).ok_or(Status::INVALID_HANDLE)
    }

    /// The function of a handle.
    ///
    /// # Errors
    /// As [`State::event`].
    pub fn function(&mut self, handle: Handle) -> Result<&mut Function> {
        let context = self.functions.get(&handle).ok_or(Status::INVALID_HANDLE)?.context;
        self.context(context)?;
        self.functions.get_mut(&handle).ok_or(Status::INVALID_HANDLE)
    }

    /// True where a number may be an address of page-locked memory.
    pub fn is_pinned(&self, number: u64) -> bool {
        usize::try_from(number).is_ok_and(|address| self.pinned(HostPtr(address), 1).is_some())
    }

    /// The page-locked block that holds all `len` bytes at a host address.
    pub fn pinned(&self, address: HostPtr, len: u64) -> Option<(usize, &HostBlock)> {
        let (&base, block) = self.host.range(..=address.0).next_back()?;
        let end = (base as u64).checked_add(block.len as u64)?;
        ((address.0 as u64).checked_add(len)? <= end).then_some((base, block))
    }
}
