//! A warp: its registers, its memory, and the groups of lanes that are at the same place.

use std::collections::HashMap;
use std::ops::Range;

use super::Context;
use super::alu::Alu;
use super::link::Kernel;
use super::recursion::Kept;
use super::regs::{LANES, Regs};
use crate::counters::Tally;
use crate::memory::{AccessError, PerLane};

/// What went wrong, and in which lane.
pub(super) struct Trouble {
    pub lane: u32,
    pub error: AccessError,
}

/// Why a group is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// At an instruction that other lanes of the warp must reach.
    Lanes,
    /// At a block barrier, counted there.
    Barrier(u32),
}

/// Lanes at the same place.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub mask: u32,
    pub pc: u32,
    /// Code indices of the calls it is in.
    pub stack: Vec<u32>,
    pub state: State,
    /// Whether its instruction was counted before it had to wait.
    pub counted: bool,
    /// Whether it did more than branch while others of its warp waited at an aligned barrier.
    pub worked: bool,
    /// When it last ran, by the warp's count of slices.
    pub ran: u64,
}

/// Pending asynchronous copies of one instruction.
pub(super) struct Copies {
    pub m: u32,
    pub to: [u32; LANES],
    pub data: [[u64; 2]; LANES],
    pub group: [u32; LANES],
    pub size: u32,
}

/// A warp.
pub(super) struct Warp {
    pub regs: Regs,
    pub local: PerLane,
    pub frame: PerLane,
    pub groups: Vec<Group>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Lanes that left while others of the warp waited for them at an aligned barrier.
    pub deserters: u32,
    /// Top of the dynamic part of local memory, by lane.
    pub stack_top: [u32; LANES],
    /// What recursive calls have put aside, by lane, and how far they moved the local variables of functions.
    pub kept: [Vec<Kept>; LANES],
    pub moved: HashMap<u32, [u32; LANES]>,
    pub copies: Vec<Copies>,
    /// Committed copy groups, by lane.
    pub committed: [u32; LANES],
    pub slices: u64,
    /// The last reads of what other threads may change: code index and a hash of what was seen.
    pub polls: [(u32, u64); 8],
    /// The entry of `polls` that the next instruction not among them takes.
    pub next_poll: u8,
}

impl Warp {
    pub fn new(k: &Kernel, lanes: u32) -> Warp {
        let live = if lanes >= 32 { !0 } else { (1 << lanes) - 1 };
        let entry =
            Group { mask: live, pc: 0, stack: Vec::new(), state: State::Ready, counted: false, worked: false, ran: 0 };
        Warp {
            regs: Regs::new(k.files.0, k.files.1, k.files.2),
            local: PerLane::new(k.local_bytes),
            frame: PerLane::new(k.frame_bytes),
            groups: vec![entry],
            live,
            deserters: 0,
            stack_top: [k.local_bytes.next_multiple_of(16); LANES],
            kept: std::array::from_fn(|_| Vec::new()),
            moved: HashMap::new(),
            copies: Vec::new(),
            committed: [0; LANES],
            slices: 0,
            polls: [(u32::MAX, 0); 8],
            next_poll: 0,
        }
    }

    /// Joins ready groups at the same place.
    pub fn merge(&mut self) {
        let mut i = 0;
        while i < self.groups.len() {
            let mut j = i + 1;
            while j < self.groups.len() {
                let (a, b) = (&self.groups[i], &self.groups[j]);
                let alike =
                    a.state == State::Ready && b.state == State::Ready && a.pc == b.pc && a.counted == b.counted;
                if alike && a.stack == b.stack {
                    let b = self.groups.swap_remove(j);
                    self.groups[i].mask |= b.mask;
                    self.groups[i].worked |= b.worked;
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
    }

    /// The ready group to run: the one furthest behind; after `impatient` slices, the one that waits longest.
    pub fn pick(&self, k: &Kernel, impatient: bool) -> Option<usize> {
        let ready = self.groups.iter().enumerate().filter(|(_, g)| g.state == State::Ready);
        if impatient {
            return ready.min_by_key(|(_, g)| g.ran).map(|(i, _)| i);
        }
        ready.min_by(|(_, a), (_, b)| behind(k, a, b)).map(|(i, _)| i)
    }
}

/// Order of two groups: by the outermost call where they differ; at the same place the one outside it is behind.
pub(super) fn behind(k: &Kernel, a: &Group, b: &Group) -> std::cmp::Ordering {
    let key = |g: &Group, i: usize| {
        g.stack.get(i).copied().or((i == g.stack.len()).then_some(g.pc)).map(|pc| k.rank[pc as usize])
    };
    for i in 0..=a.stack.len().max(b.stack.len()) {
        match (key(a, i), key(b, i)) {
            (Some(x), Some(y)) if x == y => {}
            (Some(x), Some(y)) => return x.cmp(&y),
            (None, Some(_)) => return std::cmp::Ordering::Less,
            (Some(_), None) => return std::cmp::Ordering::Greater,
            (None, None) => break,
        }
    }
    std::cmp::Ordering::Equal
}

/// The bytes of a region from the first to the last that were read, and the same for those written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent([(u64, u64); 2]);

impl Extent {
    /// Nothing.
    pub const NONE: Extent = Extent([(u64::MAX, 0); 2]);

    /// `touch` is 1 for a read and 2 for a write of `n` bytes.
    #[inline(always)]
    pub fn note(&mut self, touch: u8, offset: u64, n: u32) {
        let (first, end) = &mut self.0[usize::from(touch >> 1 & 1)];
        *first = offset.min(*first);
        *end = (offset + u64::from(n)).max(*end);
    }

    pub fn join(&mut self, other: &Extent) {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            *own = (own.0.min(other.0), own.1.max(other.1));
        }
    }

    /// What was read and what was written, as addresses; empty where nothing was.
    pub fn ranges(&self, base: u64) -> [Range<u64>; 2] {
        self.0.map(|(first, end)| if first < end { base + first..base + end } else { 0..0 })
    }
}

/// One host thread's state while it runs blocks of a launch.
pub(super) struct Worker<'a> {
    pub ctx: &'a Context<'a>,
    pub alu: Alu,
    pub tally: Tally,
    /// Per region: what of it was touched.
    pub touched: Vec<Extent>,
    /// The region hit last.
    pub cached: usize,
    /// Falls with every access that might be polling; below zero others get a turn.
    pub patience: i64,
}
