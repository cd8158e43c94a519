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
    trace: Option<Trace>,
    /// Of `current`, pages of mapped files.
    mapped: u64,
    /// The moment at which the fewest bytes of a slab lay idle, and what there was when the watch for it began.
    fullest: Option<([u64; 7], [u64; 7])>,
}

/// What a piece of work has lent of a slab when it has the most.
#[derive(Clone, Debug)]
pub(super) struct Lending([i64; 7]);

/// The most samples that a trace keeps; beyond, neighbours are merged.
const SAMPLES: usize = 1024;

/// What was in use after each change, in order. Where there are more changes than samples, a sample stands for several of
/// them, as many for each: it is the one of their states with the highest total, so that no peak is lost.
#[derive(Debug)]
struct Trace {
    samples: Vec<[u64; 7]>,
    /// Changes that a sample stands for.
    stride: usize,
    /// Changes that the last sample stands for so far.
    filled: usize,
}

impl Trace {
    fn add(&mut self, state: [u64; 7]) {
        let total = |state: &[u64; 7]| state.iter().sum::<u64>();
        let higher = |a: [u64; 7], b: [u64; 7]| if total(&b) > total(&a) { b } else { a };
        if self.filled < self.stride
            && let Some(last) = self.samples.last_mut()
        {
            *last = higher(*last, state);
        } else {
            if self.samples.len() == SAMPLES {
                self.samples = self.samples.chunks_exact(2).map(|pair| higher(pair[0], pair[1])).collect();
                self.stride *= 2;
            }
            self.samples.push(state);
            self.filled = 0;
        }
        self.filled += 1;
    }
}

impl State {
    /// Of moments with the same total, the peak is the one in which the fewest bytes lie idle in a slab.
    fn raise_peak(&mut self, then: [u64; 7]) {
        let workspace = |state: &[u64; 7]| state[Category::Workspace as usize];
        let (total, peak) = (then.iter().sum::<u64>(), self.peak.iter().sum::<u64>());
        if total > peak || total == peak && workspace(&then) < workspace(&self.peak) {
            self.peak = then;
        }
    }

    fn sample(&mut self) {
        let current = self.current;
        if let Some(trace) = &mut self.trace {
            trace.add(current);
        }
    }
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
        state.sample();
        Ok(())
    }

    /// Bytes that were taken are pages of a mapped file.
    pub(super) fn map(&self, bytes: u64) {
        self.state.lock().expect("no panic while locked").mapped += bytes;
    }

    /// Bytes that will be given were pages of a mapped file.
    pub(super) fn unmap(&self, bytes: u64) {
        self.state.lock().expect("no panic while locked").mapped -= bytes;
    }

    /// Counts bytes that stay for the device's life; never fails.
    pub(super) fn reserve(&self, category: Category, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.current[category as usize] += bytes;
        state.peak = state.current;
    }

    pub(super) fn give(&self, category: Category, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.current[category as usize] -= bytes;
        state.sample();
    }

    /// Bytes that are counted as workspace are a buffer's from now on, which lies there.
    pub(super) fn lend(&self, category: Category, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.current[Category::Workspace as usize] -= bytes;
        state.current[category as usize] += bytes;
        let current = state.current;
        state.raise_peak(current);
        if let Some((fullest, _)) = &mut state.fullest
            && current[Category::Workspace as usize] < fullest[Category::Workspace as usize]
        {
            *fullest = current;
        }
        state.sample();
    }

    /// And workspace again.
    pub(super) fn take_back(&self, category: Category, bytes: u64) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.current[category as usize] -= bytes;
        state.current[Category::Workspace as usize] += bytes;
        state.sample();
    }

    /// Starts to look for the moment at which most of a slab is lent.
    pub(super) fn watch_lending(&self) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.fullest = Some((state.current, state.current));
    }

    /// How each category's bytes differed at that moment from those when the watch began; their sum is 0 where all was lent.
    pub(super) fn take_lending(&self) -> Lending {
        let (then, before) = self.state.lock().expect("no panic while locked").fullest.take().unwrap_or_default();
        Lending(std::array::from_fn(|at| then[at] as i64 - before[at] as i64))
    }

    /// The peak is what it would be if that moment came again now.
    pub(super) fn recall(&self, lending: &Lending) {
        let mut state = self.state.lock().expect("no panic while locked");
        let then = std::array::from_fn(|at| state.current[at].saturating_add_signed(lending.0[at]));
        state.raise_peak(then);
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

    /// Bytes in use that are not pages of mapped files: what the system cannot take back and read again.
    pub fn anonymous(&self) -> u64 {
        let state = self.state.lock().expect("no panic while locked");
        state.current.iter().sum::<u64>() - state.mapped
    }

    /// Starts a new high-water mark from what is in use now.
    pub fn reset_peak(&self) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.peak = state.current;
    }

    /// Starts to keep what is in use after each change, from what is in use now: at most 1,024 samples, however many changes.
    pub fn start_trace(&self) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.trace = Some(Trace { samples: vec![state.current], stride: 1, filled: 1 });
    }

    /// Stops keeping; what was in use, in order, by category in the order of [`Category::ALL`]. The highest total of the time
    /// is among the samples. Empty where none were kept.
    pub fn take_trace(&self) -> Vec<[u64; 7]> {
        self.state.lock().expect("no panic while locked").trace.take().map(|trace| trace.samples).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_keeps_every_change_or_the_peak_of_its_neighbours() {
        let accountant = Accountant::new(None);
        accountant.take(Category::Weights, 10).unwrap();
        accountant.start_trace();
        for bytes in [5, 7] {
            accountant.take(Category::Activations, bytes).unwrap();
            accountant.give(Category::Activations, bytes);
        }
        let totals = |trace: Vec<[u64; 7]>| trace.iter().map(|state| state.iter().sum()).collect::<Vec<u64>>();
        assert_eq!(totals(accountant.take_trace()), [10, 15, 10, 17, 10]);
        assert!(accountant.take_trace().is_empty());

        accountant.start_trace();
        let mut highest = 0;
        for change in 0..5000u64 {
            let bytes = change * 7919 % 1000;
            highest = highest.max(bytes);
            accountant.take(Category::Gradients, bytes).unwrap();
            accountant.give(Category::Gradients, bytes);
        }
        let totals = totals(accountant.take_trace());
        // 10,001 states: halved four times, 16 to a sample.
        assert_eq!(totals.len(), 10_001usize.div_ceil(16));
        assert_eq!(totals.iter().max(), Some(&(highest + 10)));
    }
}
