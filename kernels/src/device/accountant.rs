//! The accountant: every byte of every buffer, by category, with the high-water mark.

use std::sync::Mutex;

use crate::error::{Error, Result};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Category {
    /// Frozen weights, and base parameters whether they train or not.
    Weights,
    /// Pruning masks of trainable weights.
    Masks,
    /// LoRA matrices.
    Adapters,
    /// Gradients of trainable tensors.
    Gradients,
    /// Optimizer moments.
    Optimizer,
    /// What forward leaves for backward, and activations and their gradients in flight.
    Activations,
    /// Scratch that lives within one kernel.
    Workspace,
}

impl Category {
    /// Every category, in the order of reports.
    pub const ALL: [Category; 7] = [
        Category::Weights,
        Category::Masks,
        Category::Adapters,
        Category::Gradients,
        Category::Optimizer,
        Category::Activations,
        Category::Workspace,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::Masks => "masks",
            Category::Adapters => "adapters",
            Category::Gradients => "gradients",
            Category::Optimizer => "optimizer",
            Category::Activations => "activations",
            Category::Workspace => "workspace",
        }
    }
}

/// Bytes at the moment of the highest total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// The high-water mark of the total.
    pub total: u64,
    /// What each category held at that moment, in the order of [`Category::ALL`]; sums to `total`.
    pub by_category: [u64; 7],
}

impl MemoryReport {
    /// Category names with their bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Category::ALL.iter().zip(self.by_category).map(|(c, bytes)| (c.name(), bytes))
    }
}

/// Counts the bytes of one device.
#[derive(Debug)]
pub struct Accountant {
    limit: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: [u64; 7],
    peak: [u64; 7],
}

impl Accountant {
    pub(super) fn new(limit: Option<u64>) -> Accountant {
        Accountant { limit, state: Mutex::default() }
    }

    pub(super) fn take(&self, category: Category, bytes: u64) -> Result<()> {
        let mut state = self.state.lock().expect("no panic while locked");
        let in_use: u64 = state.current.iter().sum();
        // A configuration may describe more than 64 bits count; on Meta nothing else stops it.
        let total = in_use.checked_add(bytes);
        let limit = self.limit.unwrap_or(u64::MAX);
        let Some(total) = total.filter(|total| *total <= limit) else {
            return Err(Error::OutOfMemory { requested: bytes, category: category.name(), in_use, limit });
        };
        state.current[category as usize] += bytes;
        if total > state.peak.iter().sum() {
            state.peak = state.current;
        }
        Ok(())
    }

    /// Counts bytes that stay for the device's life; never fails.
    pub(super) fn reserve(&self, category: Category, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.current[category as usize] += bytes;
        state.peak = state.current;
    }

    pub(super) fn give(&self, category: Category, bytes: u64) {
        self.state.lock().expect("no panic while locked").current[category as usize] -= bytes;
    }

    /// Bytes in use now.
    pub fn in_use(&self) -> u64 {
        self.state.lock().expect("no panic while locked").current.iter().sum()
    }

    /// The high-water mark since creation or the last [`Accountant::reset_peak`].
    pub fn peak(&self) -> MemoryReport {
        let peak = self.state.lock().expect("no panic while locked").peak;
        MemoryReport { total: peak.iter().sum(), by_category: peak }
    }

    /// Starts a new high-water mark from what is in use now.
    pub fn reset_peak(&self) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.peak = state.current;
    }
}
