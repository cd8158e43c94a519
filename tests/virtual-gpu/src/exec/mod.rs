//! Running kernels: grid → blocks → warps → lanes.
//!
//! A launch keeps as many blocks resident as the device would hold and runs them on the host's threads, each until it is
//! done or polls something that only another block can change: then another gets its turn, so a persistent kernel with
//! a barrier across the grid makes progress.

mod access;
mod alu;
mod atomics;
mod blame;
mod block;
mod calls;
mod convert;
mod copies;
mod float;
mod flow;
mod integer;
mod link;
mod liveness;
mod matrix;
mod printf;
mod recursion;
mod regs;
mod soft;
mod sparse;
mod sync;
mod view;
mod warp;
mod wmma;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use crate::counters::{Classes, Counters, Tally};
use crate::device::Description;
use crate::fault::{Fault, Kind};
use crate::memory::{Allocation, GlobalMemory, OutOfMemory, Snapshot};
use crate::program::{Directives, Module, Space, SymbolKind};
use block::{Block, Progress};
use link::Kernel;
use regs::LANES;
use warp::{Extent, Worker};

pub use link::FUNCTIONS;

/// Number of host threads that run a launch; unset: all of the machine.
pub const THREADS_VARIABLE: &str = "VIRTUAL_GPU_THREADS";
/// Warp instructions that one block may execute before the launch is stopped as hanging; unset: no limit.
pub const LIMIT_VARIABLE: &str = "VIRTUAL_GPU_LIMIT";

/// A module whose globals have addresses.
pub struct LoadedModule {
    module: Arc<Module>,
    globals: Vec<u64>,
    kernels: Vec<OnceLock<Result<Arc<Kernel>, Fault>>>,
}

/// What a function needs, as `cuFuncGetAttribute` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Threads a block may have by the function's own directives.
    pub max_threads: Option<u32>,
    /// Estimated 32-bit registers a thread.
    pub registers: u32,
    /// Static shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread, bytes.
    pub local_bytes: u32,
    /// Bytes of parameters.
    pub param_bytes: u32,
}

impl LoadedModule {
    /// A module whose globals lie at these addresses (0 for those without).
    pub fn new(module: Arc<Module>, globals: Vec<u64>) -> LoadedModule {
        let kernels = module.functions.iter().map(|_| OnceLock::new()).collect();
        LoadedModule { module, globals, kernels }
    }

    /// Allocates and initialises the module's globals; constants become read-only.
    ///
    /// # Errors
    /// If the device has not enough memory left.
    pub fn load(module: Arc<Module>, memory: &GlobalMemory) -> Result<LoadedModule, OutOfMemory> {
        let mut globals = Vec::new();
        for g in &module.globals {
            match memory.alloc(if g.external { 0 } else { g.size.max(1) }) {
                Ok(a) => globals.push(a),
                Err(e) => {
                    globals.iter().for_each(|a| drop(memory.free(*a)));
                    return Err(e);
                }
            }
        }
        for (g, base) in module.globals.iter().zip(&globals).filter(|(g, _)| !g.external) {
            let written = memory.set(*base, &[0], g.size).and_then(|()| memory.write(*base, &g.init));
            debug_assert!(written.is_ok(), "initialiser longer than its variable");
            for r in &g.relocations {
                let address = match r.symbol.what {
                    SymbolKind::Global(i) => globals.get(i as usize).copied().unwrap_or(0),
                    SymbolKind::Function(i) => FUNCTIONS + u64::from(i) * 16,
                    _ => 0,
                };
                let bytes = (address.wrapping_add_signed(r.symbol.offset) >> r.shift.min(63)).to_le_bytes();
                let _ = memory.write(base + r.at, &bytes[..usize::from(r.size.min(8))]);
            }
            if g.space == Space::Const {
                let _ = memory.protect(*base, true);
            }
        }
        Ok(LoadedModule::new(module, globals))
    }

    /// Frees the module's globals.
    pub fn unload(&self, memory: &GlobalMemory) {
        self.globals.iter().for_each(|a| drop(memory.free(*a)));
    }

    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Address and size of a variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        let i = self.module.globals.iter().position(|g| g.name == name && !g.external)?;
        Some((*self.globals.get(i)?, self.module.globals[i].size))
    }

    /// What a kernel needs.
    ///
    /// # Errors
    /// If it can't be linked.
    pub fn attributes(&self, function: usize) -> Result<Attributes, Fault> {
        let k = self.kernel(function)?;
        let threads = k.directives.required_threads.or(k.directives.max_threads);
        Ok(Attributes {
            max_threads: threads.map(|t| t.iter().product()),
            registers: registers(&k, None),
            shared_bytes: k.shared_bytes,
            local_bytes: k.local_bytes,
            param_bytes: k.param_bytes,
        })
    }

    fn kernel(&self, function: usize) -> Result<Arc<Kernel>, Fault> {
        let missing = || Fault {
            kernel: String::new(),
            kind: Kind::InvalidCall,
            place: None,
            what: format!("the module has no function {function}"),
        };
        let cell = self.kernels.get(function).ok_or_else(missing)?;
        cell.get_or_init(|| link::link(&self.module, function, &self.globals).map(Arc::new)).clone()
    }
}

/// Registers of a multiprocessor of every GPU of compute capability 5.0 and later.
const REGISTERS: u32 = 65_536;

/// Registers a thread: what is live at once, within what directives and the device allow (`ptxas` would spill).
fn registers(k: &Kernel, device: Option<&Description>) -> u32 {
    let Directives { max_threads, required_threads, min_blocks, max_registers } = k.directives;
    let mut cap = device.map_or(255, |d| d.max_registers_per_thread);
    if let Some(t) = required_threads.or(max_threads) {
        let warps = t.iter().product::<u32>().div_ceil(32).max(1);
        let (per_sm, per_block) =
            device.map_or((REGISTERS, REGISTERS), |d| (d.registers_per_sm, d.registers_per_block));
        let per_block = (per_sm / min_blocks.unwrap_or(1).max(1)).min(per_block);
        cap = cap.min((per_block / warps / 32 / 8 * 8).max(16));
    }
    k.registers.min(max_registers.unwrap_or(cap).min(cap)).max(1)
}

/// A launch.
pub struct Launch<'a> {
    /// The module.
    pub module: &'a LoadedModule,
    /// Index of the kernel in the module.
    pub function: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub dynamic_shared: u32,
    /// The parameters, laid out as PTX lays them out.
    pub params: &'a [u8],
    /// The device.
    pub device: &'a Description,
    /// Its memory.
    pub memory: &'a GlobalMemory,
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The counts.
    pub counters: Counters,
    /// The allocations read: id, and the addresses from the first byte read to the last.
    pub read: Vec<(u64, Range<u64>)>,
    /// The allocations written, in the same way.
    pub written: Vec<(u64, Range<u64>)>,
    /// What the kernel printed.
    pub output: String,
}

/// What the blocks of a launch share.
pub(crate) struct Context<'a> {
    kernel: &'a Kernel,
    module: &'a Module,
    regions: &'a Snapshot,
    memory: &'a GlobalMemory,
    params: &'a [u8],
    grid: [u32; 3],
    block: [u32; 3],
    threads: u32,
    dynamic_shared: u32,
    shared_bytes: u32,
    device: &'a Description,
    /// Where the blocks of a cooperative launch meet; 0 for others.
    meeting: u64,
    id: u64,
    start: Instant,
    stop: AtomicBool,
    output: Mutex<String>,
    limit: Option<u64>,
}

impl Context<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    fn print(&self, text: &str) {
        lock(&self.output).push_str(text);
    }

    /// Lanes whose addresses lie in constant memory, if the question is about global or constant memory.
    fn memory_of(&self, a: &[u64; LANES], space: Space) -> u32 {
        if !matches!(space, Space::Global | Space::Const) {
            return 0;
        }
        let constant = |a: &u64| {
            let i = self.regions.partition_point(|r| r.allocation.base <= *a).wrapping_sub(1);
            self.regions.get(i).is_some_and(|r| r.read_only() && a - r.allocation.base < r.allocation.size)
        };
        a.iter().enumerate().fold(0, |m, (l, a)| m | u32::from(constant(a)) << l)
    }

    /// Name of a register by its place in the table of written lanes.
    fn register_name(&self, function: u32, slot: u32) -> String {
        let Some(f) = self.kernel.functions.get(&function) else { return String::new() };
        let r = &self.module.functions[function as usize].registers;
        for ((from, n), names) in f.init.iter().zip([&r.r32, &r.r64, &r.pred]) {
            if slot.wrapping_sub(*from) < *n {
                return names.get((slot - from) as usize).map_or(String::new(), |n| n.to_string());
            }
        }
        String::new()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.trim().parse().ok()
}

/// Runs a kernel to its end.
///
/// # Errors
/// The first fault that a thread commits, or a launch that the device can't hold.
pub fn launch(l: &Launch<'_>) -> Result<Outcome, Fault> {
    static LAUNCHES: AtomicU64 = AtomicU64::new(1);
    let kernel = l.module.kernel(l.function)?;
    let registers = registers(&kernel, Some(l.device));
    let shared = u64::from(kernel.shared_bytes) + u64::from(l.dynamic_shared);
    let resident = check(l, &kernel, registers, shared)?;
    let out_of_memory = |e: OutOfMemory| Fault {
        kernel: kernel.name.clone(),
        kind: Kind::TooManyResources,
        place: None,
        what: format!("no room for what the launch needs: {e}"),
    };
    if kernel.allocates {
        l.memory.make_heap().map_err(out_of_memory)?;
    }
    let meeting =
        if l.cooperative && kernel.meets { Meeting::new(l.memory).map_err(out_of_memory)? } else { Meeting(None) };
    let regions = l.memory.snapshot();
    let threads = l.block.iter().product();
    let ctx = Context {
        kernel: &kernel,
        module: &l.module.module,
        regions: &regions,
        memory: l.memory,
        params: l.params,
        grid: l.grid,
        block: l.block,
        threads,
        dynamic_shared: l.dynamic_shared,
        shared_bytes: shared as u32,
        device: l.device,
        meeting: meeting.address(),
        id: LAUNCHES.fetch_add(1, Relaxed),
        start: Instant::now(),
        stop: AtomicBool::new(false),
        output: Mutex::new(String::new()),
        limit: number(LIMIT_VARIABLE),
    };
    let total = l.grid.iter().map(|n| u64::from(*n)).product();
    let (tally, touched) = Grid::new(&ctx, total, resident).run()?;
    let mut counters = Counters {
        registers,
        shared_bytes: shared as u32,
        local_bytes: kernel.local_bytes,
        blocks_per_sm: l.device.blocks_per_sm(threads, registers, shared),
        warp_instructions: Classes::from_array(&tally.warp),
        thread_instructions: Classes::from_array(&tally.thread),
        ..Counters::default()
    };
    counters.add(&tally);
    let (mut read, mut written) = (Vec::new(), Vec::new());
    let heap = l.memory.heap_address();
    for (region, extent) in regions.iter().zip(&touched) {
        let Allocation { base, id, .. } = region.allocation;
        // Kernels share the heap without the program's knowing; it orders itself.
        if Some(base) == heap || base == meeting.address() {
            continue;
        }
        for (list, range) in [&mut read, &mut written].into_iter().zip(extent.ranges(base)) {
            if !range.is_empty() {
                list.push((id, range));
            }
        }
    }
    let output = std::mem::take(&mut *lock(&ctx.output));
    Ok(Outcome { counters, read, written, output })
}

/// Memory of a cooperative launch in which its blocks count one another, for as long as it runs.
struct Meeting<'a>(Option<(&'a GlobalMemory, u64)>);

impl<'a> Meeting<'a> {
    /// The toolkit's headers want a size and a counter there.
    const BYTES: u64 = 64;

    fn new(memory: &'a GlobalMemory) -> Result<Meeting<'a>, OutOfMemory> {
        let address = memory.alloc(Self::BYTES)?;
        let cleared = memory.set(address, &[0], Self::BYTES);
        debug_assert!(cleared.is_ok(), "just allocated");
        Ok(Meeting(Some((memory, address))))
    }

    fn address(&self) -> u64 {
        self.0.map_or(0, |(_, address)| address)
    }
}

impl Drop for Meeting<'_> {
    fn drop(&mut self) {
        if let Some((memory, address)) = self.0 {
            // It is there: nothing else frees it.
            let _ = memory.free(address);
        }
    }
}

/// Checks a launch against the device; the number of blocks that are resident at once.
fn check(l: &Launch<'_>, k: &Kernel, registers: u32, shared: u64) -> Result<u64, Fault> {
    let d = l.device;
    let refuse = |what: String| Err(Fault { kernel: k.name.clone(), kind: Kind::TooManyResources, place: None, what });
    let threads: u64 = l.block.iter().map(|n| u64::from(*n)).product();
    if l.grid.contains(&0) || l.block.contains(&0) {
        return refuse(format!("a grid of {:?} blocks of {:?} threads is empty", l.grid, l.block));
    }
    if l.grid[0] > i32::MAX as u32 || l.grid[1] > 65535 || l.grid[2] > 65535 {
        return refuse(format!("grid {:?}: at most 2147483647, 65535, 65535 blocks", l.grid));
    }
    if threads > u64::from(d.max_threads_per_block) || l.block[2] > 64 {
        let most = d.max_threads_per_block;
        return refuse(format!("block {:?}: the device takes {most} threads a block, 64 in z", l.block));
    }
    if let Some(n) = k.directives.required_threads.filter(|n| *n != l.block) {
        return refuse(format!("block {:?}: the kernel requires {n:?} (.reqntid)", l.block));
    }
    if let Some(n) = k.directives.max_threads {
        let most: u64 = n.iter().map(|x| u64::from(*x)).product();
        if threads > most {
            return refuse(format!("{threads} threads a block: the kernel was compiled for at most {most} (.maxntid)"));
        }
    }
    if shared > d.shared_per_block_optin.into() {
        let most = d.shared_per_block_optin;
        return refuse(format!("{shared} bytes of shared memory a block: the device has {most}"));
    }
    let per_sm = d.blocks_per_sm(threads as u32, registers, shared);
    if per_sm == 0 {
        return refuse(format!(
            "{threads} threads a block of {registers} registers each: the device has {} registers a block",
            d.registers_per_block
        ));
    }
    if (l.params.len() as u64) < k.param_bytes.into() {
        return refuse(format!("{} bytes of parameters: the kernel takes {}", l.params.len(), k.param_bytes));
    }
    let resident = u64::from(per_sm) * u64::from(d.sms);
    let blocks: u64 = l.grid.iter().map(|n| u64::from(*n)).product();
    if l.cooperative && blocks > resident {
        return refuse(format!("a cooperative launch of {blocks} blocks: {resident} fit on the device at once"));
    }
    Ok(resident)
}

/// The blocks of a launch, as its host threads share them.
struct Grid<'a> {
    ctx: &'a Context<'a>,
    total: u64,
    resident_limit: u64,
    next: AtomicU64,
    resident: AtomicU64,
    waiting: Mutex<VecDeque<Block>>,
    fault: Mutex<Option<Fault>>,
    sum: Mutex<(Tally, Vec<Extent>)>,
}

/// Stops a launch when its thread panics.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Relaxed);
        }
    }
}

impl<'a> Grid<'a> {
    fn new(ctx: &'a Context<'a>, total: u64, resident_limit: u64) -> Grid<'a> {
        Grid {
            ctx,
            total,
            resident_limit,
            next: AtomicU64::new(0),
            resident: AtomicU64::new(0),
            waiting: Mutex::new(VecDeque::new()),
            fault: Mutex::new(None),
            sum: Mutex::new((Tally::default(), vec![Extent::NONE; ctx.regions.len()])),
        }
    }

    fn run(self) -> Result<(Tally, Vec<Extent>), Fault> {
        let host = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let threads = number(THREADS_VARIABLE).unwrap_or(host).clamp(1, 256).min(self.total);
        std::thread::scope(|s| {
            for _ in 1..threads {
                s.spawn(|| self.work());
            }
            self.work();
        });
        match self.fault.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(fault) => Err(fault),
            None => Ok(self.sum.into_inner().unwrap_or_else(|e| e.into_inner())),
        }
    }

    /// One host thread: new blocks while the device has room, then those that gave way.
    fn work(&self) {
        let mut worker = Worker {
            ctx: self.ctx,
            alu: alu::best(),
            tally: Tally::default(),
            touched: vec![Extent::NONE; self.ctx.regions.len()],
            cached: 0,
            patience: 0,
        };
        // A bug of the interpreter must not leave the other threads waiting for a block that never comes back.
        let _stop = StopOnPanic(&self.ctx.stop);
        while !self.ctx.stopped() {
            let Some(mut block) = self.take(&mut worker) else {
                if self.resident.load(Relaxed) == 0 && self.next.load(Relaxed) >= self.total {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_micros(20));
                continue;
            };
            match worker.run(&mut block) {
                Ok(Progress::Done) => {
                    self.resident.fetch_sub(1, Relaxed);
                }
                Ok(Progress::Yield) => lock(&self.waiting).push_back(block),
                Err(fault) => {
                    self.ctx.stop.store(true, Relaxed);
                    lock(&self.fault).get_or_insert(fault);
                }
            }
        }
        let mut sum = lock(&self.sum);
        sum.0.merge(&worker.tally);
        sum.1.iter_mut().zip(&worker.touched).for_each(|(a, b)| a.join(b));
    }

    fn take(&self, worker: &mut Worker<'_>) -> Option<Block> {
        if self.next.load(Relaxed) < self.total {
            let room = self.resident.fetch_update(Relaxed, Relaxed, |n| (n < self.resident_limit).then_some(n + 1));
            if room.is_ok() {
                let i = self.next.fetch_add(1, Relaxed);
                if i < self.total {
                    worker.tally.counters.blocks += 1;
                    worker.tally.counters.warps += u64::from(self.ctx.threads.div_ceil(32));
                    return Some(Block::new(self.ctx, i));
                }
                self.resident.fetch_sub(1, Relaxed);
            }
        }
        lock(&self.waiting).pop_front()
    }
}
