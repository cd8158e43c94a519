//! What a launch did: the numbers that a profiler would give.

use serde::Serialize;

/// Classes of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are those of `Classes`
#[repr(u8)]
pub enum Class {
    Integer,
    Float32,
    Float64,
    Half,
    Convert,
    Move,
    Predicate,
    Control,
    Load,
    Store,
    Atomic,
    Barrier,
    Warp,
    Matrix,
    AsyncCopy,
    Other,
}

/// Number of classes.
pub const CLASSES: usize = 16;

/// Instructions by class, counted once a warp or once a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    /// Integer and bit arithmetic.
    pub integer: u64,
    /// Single precision.
    pub float32: u64,
    /// Double precision.
    pub float64: u64,
    /// f16 and bf16 arithmetic outside the matrix unit.
    pub half: u64,
    /// Conversions.
    pub convert: u64,
    /// Moves, packing, selection, special registers, address conversion.
    pub moves: u64,
    /// Comparisons and predicate logic.
    pub predicate: u64,
    /// Branches, calls, returns, exits.
    pub control: u64,
    /// Loads, of any space; `ldmatrix` too.
    pub load: u64,
    /// Stores, of any space.
    pub store: u64,
    /// `atom` and `red`.
    pub atomic: u64,
    /// Barriers and fences.
    pub barrier: u64,
    /// Shuffles, votes, matches, reductions of a warp.
    pub warp: u64,
    /// `mma`, `mma.sp`, `wmma.mma`.
    pub matrix: u64,
    /// `cp.async` and its groups.
    pub async_copy: u64,
    /// The rest.
    pub other: u64,
}

impl Classes {
    pub(crate) fn from_array(n: &[u64; CLASSES]) -> Classes {
        let at = |c: Class| n[c as usize];
        Classes {
            integer: at(Class::Integer),
            float32: at(Class::Float32),
            float64: at(Class::Float64),
            half: at(Class::Half),
            convert: at(Class::Convert),
            moves: at(Class::Move),
            predicate: at(Class::Predicate),
            control: at(Class::Control),
            load: at(Class::Load),
            store: at(Class::Store),
            atomic: at(Class::Atomic),
            barrier: at(Class::Barrier),
            warp: at(Class::Warp),
            matrix: at(Class::Matrix),
            async_copy: at(Class::AsyncCopy),
            other: at(Class::Other),
        }
    }

    /// Sum over the classes.
    pub fn total(&self) -> u64 {
        let c = self;
        [c.integer, c.float32, c.float64, c.half, c.convert, c.moves, c.predicate, c.control].iter().sum::<u64>()
            + [c.load, c.store, c.atomic, c.barrier, c.warp, c.matrix, c.async_copy, c.other].iter().sum::<u64>()
    }
}

/// Traffic of one direction between the multiprocessors and global memory. Vector accesses are one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Warp instructions that reached global memory.
    pub requests: u64,
    /// 32-byte sectors that they touched, each counted once a request.
    pub sectors: u64,
    /// Bytes that the threads asked for.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, o: &Traffic) {
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.bytes += o.bytes;
    }

    /// Sectors a request: 4 is a warp's 32 consecutive floats.
    pub fn sectors_per_request(&self) -> f64 {
        self.sectors as f64 / self.requests.max(1) as f64
    }
}

/// Shared-memory accesses of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SharedTraffic {
    /// Warp instructions.
    pub requests: u64,
    /// Passes over the banks beyond the least that the width needs.
    pub conflicts: u64,
    /// Bytes that the threads asked for.
    pub bytes: u64,
}

impl SharedTraffic {
    fn add(&mut self, o: &SharedTraffic) {
        self.requests += o.requests;
        self.conflicts += o.conflicts;
        self.bytes += o.bytes;
    }
}

/// All counts of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Blocks run.
    pub blocks: u64,
    /// Warps run.
    pub warps: u64,
    /// Instructions, once a warp.
    pub warp_instructions: Classes,
    /// Instructions, once a thread whose guard was true.
    pub thread_instructions: Classes,
    /// Multiply-adds of the matrix unit (dense equivalent is twice this for `mma.sp`).
    pub tensor_fma: u64,
    /// Loads from global memory, `cp.async` included.
    pub global_load: Traffic,
    /// Stores to global memory.
    pub global_store: Traffic,
    /// Atomics on global memory.
    pub global_atomic: Traffic,
    /// Loads from shared memory, `ldmatrix` included.
    pub shared_load: SharedTraffic,
    /// Stores to shared memory, `cp.async` included.
    pub shared_store: SharedTraffic,
    /// Atomics on shared memory.
    pub shared_atomic: SharedTraffic,
    /// Loads and stores of local memory, once a warp.
    pub local_requests: u64,
    /// Branches taken, once a warp.
    pub branches: u64,
    /// Branches where a warp split.
    pub divergent_branches: u64,
    /// Block barriers, once a warp.
    pub block_barriers: u64,
    /// Registers of a thread as estimated from what is live at once (what `ptxas` makes of it may differ).
    pub registers: u32,
    /// Shared memory of a block, dynamic included, bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread, bytes.
    pub local_bytes: u32,
    /// Blocks resident on a multiprocessor.
    pub blocks_per_sm: u32,
}

impl Counters {
    pub(crate) fn add(&mut self, o: &Tally) {
        let c = &o.counters;
        self.blocks += c.blocks;
        self.warps += c.warps;
        self.tensor_fma += c.tensor_fma;
        self.global_load.add(&c.global_load);
        self.global_store.add(&c.global_store);
        self.global_atomic.add(&c.global_atomic);
        self.shared_load.add(&c.shared_load);
        self.shared_store.add(&c.shared_store);
        self.shared_atomic.add(&c.shared_atomic);
        self.local_requests += c.local_requests;
        self.branches += c.branches;
        self.divergent_branches += c.divergent_branches;
        self.block_barriers += c.block_barriers;
    }
}

/// The counts of one host thread while it runs blocks.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    pub counters: Counters,
    pub warp: [u64; CLASSES],
    pub thread: [u64; CLASSES],
}

impl Tally {
    pub fn merge(&mut self, o: &Tally) {
        self.counters.add(o);
        self.warp.iter_mut().zip(&o.warp).for_each(|(a, b)| *a += b);
        self.thread.iter_mut().zip(&o.thread).for_each(|(a, b)| *a += b);
    }
}
