//! The memories of a device, each with shadow state that says what was written and by whom.
//!
//! Global memory outlives launches and is shared by host threads, so its accesses are atomic; shared and local memory
//! belong to a block, which one host thread runs at a time.

mod bits;
mod global;
mod heap;
mod local;
mod order;
mod shared;

pub use bits::Bits;
pub use global::{Access, Allocation, GlobalMemory, OutOfMemory, Region, Snapshot};
pub use local::PerLane;
pub use order::Clocks;
pub use shared::{Race, SharedMemory, bank_passes};

use crate::fault::Kind;

/// Where the state spaces lie in the generic address space. Global addresses are their own generic addresses.
pub mod window {
    /// Shared memory.
    pub const SHARED: u64 = 0x0100_0000_0000;
    /// Local memory.
    pub const LOCAL: u64 = 0x0200_0000_0000;
    /// Parameters of the kernel.
    pub const PARAM: u64 = 0x0300_0000_0000;
    /// First address of global memory; each address is given out once.
    pub const GLOBAL: u64 = 0x1000_0000_0000;
    /// Bytes of a window.
    pub const SIZE: u64 = 1 << 32;
}

/// An access that a memory refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what}")]
pub struct AccessError {
    /// Which rule.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
}

impl AccessError {
    /// An error of this kind.
    pub fn new(kind: Kind, what: impl Into<String>) -> AccessError {
        AccessError { kind, what: what.into() }
    }
}
