//! What a stream can be asked to do, as data: queued, captured into graphs, run.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::abi::{Handle, HostFn, HostPtr, StreamCallback};
use super::core::{Access, Space};
use super::gpu::LoadedKernel;
use super::status::Status;

/// One end of a copy.
#[derive(Clone, Debug)]
pub enum End {
    /// Memory of a device.
    Device {
        /// The device's number.
        device: usize,
        /// The allocation's id.
        allocation: u64,
        /// The first byte.
        address: u64,
    },
    /// Memory of the host.
    Host {
        /// The first byte.
        address: HostPtr,
        /// Where the driver reaches it.
        through: HostPtr,
        /// Page-locked: known to the driver, so that pending copies can be checked.
        pinned: bool,
    },
    /// Bytes taken when the copy was asked for.
    Bytes(Arc<[u8]>),
}

/// An end of a copy with the strides of its rows and slices.
#[derive(Clone, Debug)]
pub struct Side {
    /// Where.
    pub end: End,
    /// Bytes from a row to the next.
    pub pitch: u64,
    /// Bytes from a slice to the next.
    pub slice: u64,
}

/// A copy of `depth` slices of `height` rows of `width` bytes.
#[derive(Clone, Debug)]
pub struct Copy {
    /// From.
    pub src: Side,
    /// To.
    pub dst: Side,
    /// Bytes of a row.
    pub width: u64,
    /// Rows of a slice.
    pub height: u64,
    /// Slices.
    pub depth: u64,
    /// A digest of page-locked source bytes when the copy was asked for, and how many writes to page-locked memory the
    /// driver had made by then: a host that writes a buffer while a copy from it waits is found out.
    pub digest: Option<(u64, u64)>,
}

/// Writes an element again and again.
#[derive(Clone, Debug)]
pub struct Fill {
    /// The device's number.
    pub device: usize,
    /// The allocation's id.
    pub allocation: u64,
    /// The first byte.
    pub address: u64,
    /// Bytes from a row to the next.
    pub pitch: u64,
    /// The element's bytes, lowest first.
    pub value: [u8; 4],
    /// How many of them count: 1, 2 or 4.
    pub size: u64,
    /// Elements of a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
}

/// A kernel with all that its launch says.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The function's handle.
    pub function: Handle,
    /// What to run.
    pub kernel: LoadedKernel,
    /// The device's number.
    pub device: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters as the kernel sees them.
    pub params: Arc<[u8]>,
    /// All blocks must be resident at once.
    pub cooperative: bool,
}

/// A function of the program that a stream calls.
#[derive(Clone, Debug)]
pub enum HostCall {
    /// `cuLaunchHostFunc`.
    Function {
        /// The function.
        function: HostFn,
        /// Its argument.
        data: *mut c_void,
    },
    /// `cuStreamAddCallback`.
    Callback {
        /// The function.
        callback: StreamCallback,
        /// Its stream argument.
        stream: Handle,
        /// Its data argument.
        data: *mut c_void,
    },
}

// SAFETY: the pointers are the program's; CUDA's contract lets a driver thread call the function with them.
unsafe impl Send for HostCall {}
// SAFETY: as above; the driver itself never follows them.
unsafe impl Sync for HostCall {}

/// Where the count of work done goes when an event happens.
pub type TimeSlot = Arc<AtomicU64>;

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Run a kernel.
    Kernel(Arc<Kernel>),
    /// Copy.
    Copy(Copy),
    /// Set memory.
    Fill(Fill),
    /// Call the program.
    Host(HostCall),
    /// An event happens.
    Record(TimeSlot),
    /// An allocation comes to be or goes, or only order is wanted.
    Mark(Option<Lifetime>),
}

/// The beginning or end of an allocation, in stream order.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// The device's number.
    pub device: usize,
    /// The allocation's id.
    pub allocation: u64,
    /// Its first byte.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// True where memory goes back to the device when this runs.
    pub release: bool,
}

/// Something queued on a stream.
#[derive(Clone, Debug)]
pub struct Job {
    /// The context that fails if it fails.
    pub context: Handle,
    /// The stream's handle, for messages.
    pub stream: Handle,
    /// What it is, in words.
    pub what: Arc<str>,
    /// What to do.
    pub action: Action,
}

/// Why a job failed, and what the context answers from then on.
#[derive(Debug)]
pub struct Failure {
    /// The error of every later call.
    pub status: Status,
    /// The whole story.
    pub text: String,
    /// The fault, if a kernel was at fault.
    pub fault: Option<crate::fault::Fault>,
}

/// Bytes that a job is known to touch before it runs.
pub type Touched = (Space, Range<u64>, Access);

impl Kernel {
    /// The numbers of 64 bits among the parameters: addresses are some of them.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let words = self.params.chunks_exact(8);
        words.map(|word| u64::from_le_bytes(word.try_into().expect("chunks of 8 bytes")))
    }
}

impl Copy {
    /// The number of bytes copied.
    pub fn bytes(&self) -> u64 {
        self.width * self.height * self.depth
    }

    /// The offsets of the rows on one side, and the length of each; adjacent rows count as one.
    pub fn rows(&self, side: &Side) -> Vec<u64> {
        (0..self.depth).flat_map(|z| (0..self.height).map(move |y| z * side.slice + y * side.pitch)).collect()
    }

    /// The same copy with as few and as long rows as both sides allow.
    pub fn merged(mut self) -> Copy {
        let dense = |side: &Side, width, height| side.pitch == width && side.slice == width * height;
        if self.height > 1 && self.src.pitch == self.width && self.dst.pitch == self.width {
            let slices_dense = self.depth == 1
                || (dense(&self.src, self.width, self.height) && dense(&self.dst, self.width, self.height));
            if slices_dense {
                self.width = self.bytes();
                (self.height, self.depth) = (1, 1);
            }
        }
        self
    }

    fn touches(&self) -> Vec<Touched> {
        let mut touched = Vec::new();
        for (side, access) in [(&self.src, Access::Read), (&self.dst, Access::Write)] {
            let (space, address) = match side.end {
                End::Device { device, allocation, address } => (Space::Device { device, allocation }, address),
                End::Host { address, pinned: true, .. } => (Space::Host, address.0 as u64),
                _ => continue,
            };
            touched.extend(self.rows(side).into_iter().map(|row| {
                let start = address + row;
                (space, start..start + self.width, access)
            }));
        }
        touched
    }
}

impl Action {
    /// What the action is known to touch before it runs; a kernel tells only afterwards.
    pub fn touches(&self) -> Vec<Touched> {
        match self {
            Action::Copy(copy) => copy.touches(),
            Action::Fill(fill) => {
                let space = Space::Device { device: fill.device, allocation: fill.allocation };
                (0..fill.height)
                    .map(|row| fill.address + row * fill.pitch)
                    .map(|start| (space, start..start + fill.width * fill.size, Access::Write))
                    .collect()
            }
            Action::Mark(Some(life)) => {
                let space = Space::Device { device: life.device, allocation: life.allocation };
                vec![(space, life.address..life.address + life.size, Access::Write)]
            }
            Action::Kernel(_) | Action::Host(_) | Action::Record(_) | Action::Mark(None) => Vec::new(),
        }
    }

    /// What the action is known to touch of page-locked memory.
    pub fn host_touches(&self) -> Vec<(Range<u64>, Access)> {
        match self {
            Action::Copy(copy) => copy
                .touches()
                .into_iter()
                .filter_map(|(space, range, access)| (space == Space::Host).then_some((range, access)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// True where the action may touch bytes of an allocation: surely for copies, by its parameters for a kernel.
    pub fn may_touch(&self, space: Space, range: &Range<u64>) -> bool {
        match (self, space) {
            (Action::Kernel(kernel), _) => kernel.words().any(|word| range.contains(&word)),
            _ => self
                .touches()
                .iter()
                .any(|(at, bytes, _)| *at == space && bytes.start < range.end && range.start < bytes.end),
        }
    }
}
