//! A block: its warps in turns, until all are done, all wait, or others deserve the processor.

use std::collections::HashMap;

use super::access::{addresses, lanes, of_window};
use super::blame::unwritten;
use super::link::Code;
use super::regs::LANES;
use super::sync::Barrier;
use super::view::View;
use super::warp::{Group, State, Trouble, Warp, Worker};
use super::{Context, matrix};
use crate::fault::{Fault, Kind};
use crate::memory::{AccessError, Clocks, SharedMemory, window};
use crate::program::*;

/// Warp instructions before another group, or warp, gets its turn in any case.
const SLICE: u64 = 20_000;
/// The slice of a group that runs only because another polls.
const SHORT: u64 = 256;
/// Polls before others get their turn.
const PATIENCE: i64 = 32;
/// Rounds over a block's warps, ended by polling, before another block gets its turn.
const POLLED_ROUNDS: u32 = 2;
/// Warp instructions of a block before another block gets its turn in any case.
const BLOCK_SLICE: u64 = 50_000_000;

/// Bytes of shared memory that the system keeps for itself in each block, and lets the toolkit's headers use from the
/// middle on.
const RESERVED: u32 = 1024;

/// The state of an `mbarrier` object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    pub expected: u32,
    pub pending: u32,
    pub phase: u32,
}

/// A resident block.
pub(super) struct Block {
    pub id: [u32; 3],
    pub linear: u64,
    pub warps: Vec<Warp>,
    pub shared: SharedMemory,
    pub clocks: Clocks,
    pub barriers: Vec<Barrier>,
    pub mbarriers: HashMap<u32, Phase>,
    /// Warp instructions executed.
    pub instructions: u64,
}

/// Why a block stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Yield,
}

/// Why a group stopped.
#[derive(PartialEq, Eq)]
enum End {
    /// Another group may be behind it now, or it waits or is gone.
    Switch,
    /// It polls.
    Polls,
    /// Its slice is over.
    Slice,
}

impl Block {
    pub fn new(c: &Context<'_>, linear: u64) -> Block {
        let (k, grid) = (c.kernel, c.grid);
        let (x, y) = (u64::from(grid[0]), u64::from(grid[1]));
        let id = [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32];
        let warps = c.threads.div_ceil(32) as usize;
        let mut shared = SharedMemory::new(c.shared_bytes, k.granule, c.threads);
        if k.reserved {
            shared.reserve(RESERVED);
        }
        Block {
            id,
            linear,
            warps: (0..warps).map(|w| Warp::new(k, c.threads - w as u32 * 32)).collect(),
            shared,
            clocks: Clocks::new(warps),
            barriers: (0..16).map(|_| Barrier::new(warps)).collect(),
            mbarriers: HashMap::new(),
            instructions: 0,
        }
    }

    pub fn view<'b>(&'b mut self, code: &'b [Code], w: usize, pc: u32) -> View<'b> {
        View { warp: &mut self.warps[w], shared: &mut self.shared, clocks: &mut self.clocks, code, pc, w }
    }

    fn done(&self) -> bool {
        self.warps.iter().all(|w| w.live == 0)
    }
}

impl<'a> Worker<'a> {
    /// Runs a block until it is done or should make way.
    pub fn run(&mut self, b: &mut Block) -> Result<Progress, Fault> {
        let end = b.instructions + BLOCK_SLICE;
        let mut polled = 0;
        loop {
            let before = b.instructions;
            let mut polls = false;
            for w in 0..b.warps.len() {
                polls |= self.run_warp(b, w)?;
            }
            if b.done() {
                return Ok(Progress::Done);
            }
            if b.instructions == before {
                return Err(self.deadlock(b));
            }
            if let Some(limit) = self.ctx.limit.filter(|l| b.instructions > *l) {
                return Err(self.overrun(b, limit));
            }
            polled = if polls { polled + 1 } else { 0 };
            if polled >= POLLED_ROUNDS || b.instructions > end || self.ctx.stopped() {
                return Ok(Progress::Yield);
            }
        }
    }

    /// Runs a warp until it waits, polls or has had its slice; true if it polls.
    fn run_warp(&mut self, b: &mut Block, w: usize) -> Result<bool, Fault> {
        let end = b.instructions + SLICE;
        let mut impatient = false;
        let mut polls = false;
        loop {
            let warp = &mut b.warps[w];
            if warp.groups.len() > 1 {
                warp.merge();
            }
            let Some(g) = warp.pick(self.ctx.kernel, impatient) else { return Ok(polls) };
            warp.slices += 1;
            warp.groups[g].ran = warp.slices;
            let slice = if impatient { SHORT } else { end.saturating_sub(b.instructions).max(1) };
            impatient = false;
            self.patience = PATIENCE;
            match self.run_group(b, w, g, slice)? {
                End::Switch => {}
                End::Polls => {
                    let others = b.warps[w].groups.iter().filter(|g| g.state == State::Ready).count() > 1;
                    if polls || !others {
                        return Ok(true);
                    }
                    (polls, impatient) = (true, true);
                }
                End::Slice => {}
            }
            if b.instructions >= end {
                return Ok(polls);
            }
        }
    }

    /// Runs a group until something makes the warp choose again.
    fn run_group(&mut self, b: &mut Block, w: usize, g: usize, slice: u64) -> Result<End, Fault> {
        let mut pc = b.warps[w].groups[g].pc;
        let result = self.instructions(b, w, g, slice, &mut pc);
        result.map_err(|t| self.fault(b, w, t.lane as usize, pc, t.error))
    }

    fn instructions(&mut self, b: &mut Block, w: usize, g: usize, slice: u64, at: &mut u32) -> Result<End, Trouble> {
        let k = self.ctx.kernel;
        let watched = b.warps[w].groups.len() > 1 && barrier_waits(&b.warps[w], &k.code);
        let group = &mut b.warps[w].groups[g];
        let mask = group.mask;
        let lanes_on = u64::from(mask.count_ones());
        let mut counted = std::mem::take(&mut group.counted);
        let mut pc = group.pc;
        let limit = limit(b, w, g, &k.rank);
        let mut left = slice;
        loop {
            *at = pc;
            let code = &k.code[pc as usize];
            if limit != u32::MAX && left != slice && k.rank[pc as usize] >= limit {
                b.warps[w].groups[g].pc = pc;
                return Ok(End::Switch);
            }
            if left == 0 || self.patience < 0 {
                b.warps[w].groups[g].pc = pc;
                return Ok(if self.patience < 0 { End::Polls } else { End::Slice });
            }
            left -= 1;
            if watched && code.count != crate::counters::Class::Control {
                b.warps[w].groups[g].worked = true;
            }
            let regs = &mut b.warps[w].regs;
            let mut exec = mask;
            if let Some(guard) = code.guard {
                if regs.init[code.guard_init as usize] & mask != mask {
                    return Err(unwritten(regs.init[code.guard_init as usize], mask, "the guard predicate"));
                }
                exec &= regs.pred(guard.reg) ^ if guard.negated { !0 } else { 0 };
            }
            if counted {
                counted = false;
            } else {
                b.instructions += 1;
                self.tally.warp[code.count as usize] += 1;
                self.tally.thread[code.count as usize] +=
                    if exec == mask { lanes_on } else { exec.count_ones().into() };
            }
            if exec == 0 {
                pc += 1;
                continue;
            }
            let mut written = exec;
            for u in &k.operands[code.uses.0 as usize..code.uses.1 as usize] {
                written &= regs.init[*u as usize];
            }
            if written != exec {
                return Err(self.unwritten_source(b, w, code, exec));
            }
            if code.alu {
                (self.alu)(&code.op, regs, exec);
            } else {
                match self.special(b, w, g, code, pc, exec, mask)? {
                    Next::Following => {}
                    Next::Jump(to) => {
                        pc = to;
                        continue;
                    }
                    Next::Choose => return Ok(End::Switch),
                }
            }
            let init = &mut b.warps[w].regs.init;
            for d in &k.operands[code.defs.0 as usize..code.defs.1 as usize] {
                init[*d as usize] |= exec;
            }
            pc += 1;
        }
    }

    /// Instructions that reach beyond the registers of their lanes.
    #[inline]
    fn special(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        code: &Code,
        pc: u32,
        exec: u32,
        mask: u32,
    ) -> Result<Next, Trouble> {
        let k = self.ctx.kernel;
        match &code.op {
            Op::Bra { target, .. } => {
                self.tally.counters.branches += 1;
                if exec == mask {
                    return Ok(Next::Jump(*target));
                }
                self.tally.counters.divergent_branches += 1;
                split(&mut b.warps[w], g, exec, *target, pc + 1);
                return Ok(Next::Choose);
            }
            Op::Load(l) if l.space == Space::Param => {
                self.load_params(&mut b.view(&k.code, w, pc), l, exec)?;
                return Ok(Next::Jump(pc + 1));
            }
            Op::Load(l) => {
                if self.load(&mut b.view(&k.code, w, pc), l, exec)? != 0 {
                    return Ok(Next::Jump(pc + 1));
                }
            }
            Op::Store(s) => self.store(&mut b.view(&k.code, w, pc), s, exec)?,
            Op::Atom(a) => self.atom(&mut b.view(&k.code, w, pc), a, exec)?,
            Op::CpAsync(c) => self.cp_async(&mut b.view(&k.code, w, pc), c, exec)?,
            Op::CpAsyncCommit => lanes(exec).for_each(|l| b.warps[w].committed[l] += 1),
            Op::CpAsyncWait { pending } => {
                let v = &mut b.view(&k.code, w, pc);
                match pending {
                    None => v.finish_copies(exec, |_, _| true)?,
                    Some(n) => v.finish_copies(exec, |group, committed| group < committed.saturating_sub(*n))?,
                }
            }
            Op::MovSpecial { width, dst, special } => {
                let v = self.special_register(b, w, *special);
                b.warps[w].regs.put(*dst, width.class(), exec, &v);
            }
            // Where a function's local variables lie, which recursion moves.
            Op::Mov { width, dst, a } => {
                let warp = &mut b.warps[w];
                let mut v = warp.regs.wide(*a, width.class());
                if let Some(moved) = warp.moved.get(&code.function) {
                    lanes(exec).for_each(|l| v[l] += u64::from(moved[l]));
                }
                warp.regs.put(*dst, width.class(), exec, &v);
            }
            Op::Cvta { space, to_generic, wide, dst, a } => {
                let base = match space {
                    Space::Shared => window::SHARED,
                    Space::Local => window::LOCAL,
                    Space::Param => window::PARAM,
                    _ => 0,
                };
                let class = if *wide { Class::R64 } else { Class::R32 };
                let regs = &mut b.warps[w].regs;
                let v =
                    regs.wide(*a, class).map(|a| if *to_generic { a.wrapping_add(base) } else { a.wrapping_sub(base) });
                regs.put(*dst, class, exec, &v);
            }
            Op::Isspacep { space, wide, dst, a } => {
                let regs = &mut b.warps[w].regs;
                let v = regs.wide(*a, if *wide { Class::R64 } else { Class::R32 });
                let memory = self.ctx.memory_of(&v, *space);
                let m = (0..LANES).fold(0, |m, l| {
                    let here = of_window(v[l]).0;
                    let constant = memory >> l & 1 == 1;
                    let yes = match space {
                        Space::Const => here == Space::Global && constant,
                        Space::Global => here == Space::Global && !constant,
                        s => here == *s,
                    };
                    m | u32::from(yes) << l
                });
                regs.put_pred(*dst, exec, m);
            }
            Op::Bar { kind, id, threads, aligned } => {
                self.barrier(b, w, g, pc, exec, *kind, *id, *threads, *aligned)?;
                return Ok(Next::Choose);
            }
            Op::BarWarp { .. } | Op::Shfl { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } => {
                return self.collective(b, w, g, pc, exec, mask);
            }
            Op::Elect { .. } | Op::LdMatrix { .. } | Op::MovMatrix { .. } | Op::Mma(_) => {
                return self.collective(b, w, g, pc, exec, mask);
            }
            Op::WmmaLoad(_) | Op::WmmaStore(_) => return self.collective(b, w, g, pc, exec, mask),
            Op::ActiveMask { dst } => b.warps[w].regs.put32(*dst, exec, &[exec; LANES]),
            Op::Fence { .. } => std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst),
            Op::BrxIdx { index, targets } => {
                let v = b.warps[w].regs.u32s(*index);
                self.tally.counters.branches += 1;
                let mut rest = exec;
                let mut parts = Vec::new();
                while rest != 0 {
                    let first = rest.trailing_zeros() as usize;
                    let Some(target) = targets.get(v[first] as usize) else {
                        let what = format!("index {} into a table of {} branch targets", v[first], targets.len());
                        return Err(trouble(first, Kind::InvalidOperand, what));
                    };
                    let part = lanes(rest).filter(|l| v[*l] == v[first]).fold(0, |m, l| m | 1 << l);
                    parts.push((part, *target));
                    rest &= !part;
                }
                if parts.len() == 1 && exec == mask {
                    return Ok(Next::Jump(parts[0].1));
                }
                self.tally.counters.divergent_branches += 1;
                for (part, target) in parts {
                    split(&mut b.warps[w], g, part, target, pc + 1);
                }
                return Ok(Next::Choose);
            }
            Op::Call(call) => return self.call(b, w, g, call, pc, exec, mask),
            Op::Ret if !b.warps[w].groups[g].stack.is_empty() => return self.ret(b, w, g, pc, exec, mask),
            Op::Ret | Op::Exit => {
                self.exit(b, w, g, pc, exec);
                return Ok(Next::Choose);
            }
            Op::Trap => return Err(trouble(first(exec), Kind::Trap, "trap")),
            Op::Brkpt => return Err(trouble(first(exec), Kind::Breakpoint, "breakpoint")),
            Op::Nanosleep { .. } => self.patience -= PATIENCE / 4,
            Op::Alloca { wide, align, dst, size } => {
                let warp = &mut b.warps[w];
                let class = if *wide { Class::R64 } else { Class::R32 };
                for l in lanes(exec) {
                    let size = warp.regs.lane(*size, class, l);
                    let from = warp.stack_top[l].next_multiple_of((*align).clamp(1, 4096).next_power_of_two());
                    let end = u64::from(from) + size;
                    if end > 512 << 10 {
                        let what = format!("alloca of {size} bytes: a thread has 512 KiB of local memory");
                        return Err(trouble(l, Kind::OutOfBounds, what));
                    }
                    warp.local.grow(end);
                    warp.stack_top[l] = end as u32;
                    warp.regs.put_lane(*dst, class, l, from.into());
                }
            }
            Op::StackSave { wide, dst } => {
                let warp = &mut b.warps[w];
                let v = warp.stack_top.map(u64::from);
                warp.regs.put(*dst, if *wide { Class::R64 } else { Class::R32 }, exec, &v);
            }
            Op::StackRestore { wide, a } => {
                let warp = &mut b.warps[w];
                let v = warp.regs.wide(*a, if *wide { Class::R64 } else { Class::R32 });
                for l in lanes(exec) {
                    warp.stack_top[l] = (v[l] as u32).clamp(k.local_bytes, warp.stack_top[l].max(k.local_bytes));
                }
            }
            Op::Mbarrier { space: _, address, op } => {
                let a = address.map(|a| addresses(&b.warps[w].regs, &a).map(|a| of_window(a).1));
                self.mbarrier(b, w, pc, exec, a, *op)?;
            }
            _ => return Err(trouble(first(exec), Kind::Unsupported, "the interpreter has no such instruction")),
        }
        Ok(Next::Following)
    }

    /// Lanes leave for good.
    pub fn exit(&mut self, b: &mut Block, w: usize, g: usize, pc: u32, exec: u32) {
        // Copies in flight stay so: no one can know any more when they land.
        let warp = &mut b.warps[w];
        if warp.groups[g].worked && barrier_waits(warp, &self.ctx.kernel.code) {
            warp.deserters |= exec;
        }
        warp.live &= !exec;
        let group = &mut warp.groups[g];
        group.mask &= !exec;
        group.pc = pc + 1;
        if group.mask == 0 {
            warp.groups.swap_remove(g);
        }
        // Whoever waited for these lanes looks again.
        for g in warp.groups.iter_mut().filter(|g| g.state == State::Lanes) {
            g.state = State::Ready;
            g.counted = true;
        }
        for id in 0..16 {
            self.complete(b, id);
        }
    }

    fn special_register(&self, b: &Block, w: usize, s: Special) -> [u64; LANES] {
        let c = self.ctx;
        let (n, thread) = (c.block, |l: usize| (w * LANES + l) as u32);
        let by_lane = |f: &dyn Fn(usize) -> u64| std::array::from_fn(f);
        let reserved = SharedMemory::reserved_from(c.shared_bytes);
        let time = || c.start.elapsed().as_nanos() as u64;
        let one = match s {
            Special::TidX => return by_lane(&|l| (thread(l) % n[0]).into()),
            Special::TidY => return by_lane(&|l| (thread(l) / n[0] % n[1]).into()),
            Special::TidZ => return by_lane(&|l| (thread(l) / n[0] / n[1]).into()),
            Special::LaneId => return by_lane(&|l| l as u64),
            Special::LaneMaskEq => return by_lane(&|l| 1 << l),
            Special::LaneMaskLt => return by_lane(&|l| (1 << l) - 1),
            Special::LaneMaskLe => return by_lane(&|l| (2 << l) - 1),
            Special::LaneMaskGt => return by_lane(&|l| 0xffff_ffff & !((2 << l) - 1)),
            Special::LaneMaskGe => return by_lane(&|l| 0xffff_ffff & !((1 << l) - 1)),
            Special::NtidX => n[0].into(),
            Special::NtidY => n[1].into(),
            Special::NtidZ => n[2].into(),
            Special::CtaidX => b.id[0].into(),
            Special::CtaidY => b.id[1].into(),
            Special::CtaidZ => b.id[2].into(),
            Special::NctaidX => c.grid[0].into(),
            Special::NctaidY => c.grid[1].into(),
            Special::NctaidZ => c.grid[2].into(),
            Special::WarpId => w as u64,
            Special::NWarpId => u64::from(c.device.max_threads_per_sm / 32),
            Special::SmId => b.linear % u64::from(c.device.sms.max(1)),
            Special::NSmId => c.device.sms.into(),
            Special::GridId => c.id,
            Special::Clock | Special::Clock64 => b.instructions,
            Special::ClockHi => b.instructions >> 32,
            Special::GlobalTimer | Special::GlobalTimerLo => time(),
            Special::GlobalTimerHi => time() >> 32,
            Special::DynamicSmemSize => c.dynamic_shared.into(),
            Special::TotalSmemSize => c.shared_bytes.into(),
            Special::ReservedBegin => reserved.into(),
            Special::ReservedEnd => (reserved + RESERVED).into(),
            Special::ReservedBytes => RESERVED.into(),
            Special::Reserved0 => reserved.into(),
            Special::Reserved1 => (reserved + RESERVED / 2).into(),
            Special::EnvReg1 => c.meeting >> 32,
            Special::EnvReg2 => c.meeting,
            Special::Zero | Special::Zero64 => 0,
        };
        let narrow = s.width() == Width::W32;
        [if narrow { one & 0xffff_ffff } else { one }; LANES]
    }

    /// Matrix instructions, for a whole warp.
    pub fn matrix(&mut self, v: &mut View<'_>, op: &Op) -> Result<(), Trouble> {
        matrix::run(self, v, op)
    }
}

/// Whether some lanes of a warp wait for the others at an aligned block barrier.
fn barrier_waits(warp: &Warp, code: &[Code]) -> bool {
    let at_barrier = |g: &Group| matches!(code[g.pc as usize].op, Op::Bar { aligned: true, .. });
    warp.groups.iter().any(|g| g.state == State::Lanes && at_barrier(g))
}

/// Where a group goes after an instruction.
pub(super) enum Next {
    Following,
    Jump(u32),
    /// The groups have changed: choose again.
    Choose,
}

pub(super) fn first(m: u32) -> usize {
    (m.trailing_zeros() & 31) as usize
}

pub(super) fn trouble(lane: usize, kind: Kind, what: impl Into<String>) -> Trouble {
    Trouble { lane: lane as u32, error: AccessError::new(kind, what) }
}

/// Lanes `part` of a group go to `to`; the rest stays in it, at `rest`.
pub(super) fn split(warp: &mut Warp, g: usize, part: u32, to: u32, rest: u32) {
    let ran = warp.groups[g].ran;
    let group = &mut warp.groups[g];
    group.pc = rest;
    group.mask &= !part;
    if group.mask == 0 {
        group.mask = part;
        group.pc = to;
        return;
    }
    let (stack, worked) = (group.stack.clone(), group.worked);
    warp.groups.push(Group { mask: part, pc: to, stack, state: State::Ready, counted: false, worked, ran });
}

/// The rank from which on another ready group of the warp is behind this one.
fn limit(b: &Block, w: usize, g: usize, rank: &[u32]) -> u32 {
    let groups = &b.warps[w].groups;
    if groups.len() == 1 {
        return u32::MAX;
    }
    let mine = &groups[g];
    let depth = mine.stack.len();
    let others = groups.iter().enumerate().filter(|(i, o)| *i != g && o.state == State::Ready);
    let same = others.filter(|(_, o)| o.stack.len() >= depth && o.stack[..depth] == mine.stack[..]);
    same.map(|(_, o)| rank[o.stack.get(depth).copied().unwrap_or(o.pc) as usize]).min().unwrap_or(u32::MAX)
}
