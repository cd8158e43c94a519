//! Where threads wait for one another: block barriers, operations of a warp, `mbarrier` objects.

use super::access::lanes;
use super::block::{Block, Next, Phase, first, split, trouble};
use super::regs::{LANES, Regs};
use super::warp::{State, Trouble, Worker};
use crate::fault::Kind;
use crate::program::*;

/// One of a block's 16 barriers.
pub(super) struct Barrier {
    /// Threads expected; None: all of the block.
    expected: Option<u32>,
    /// By warp: lanes that wait, and lanes that only arrived.
    waiting: Vec<u32>,
    arrived: Vec<u32>,
    /// What warps that only arrived had done.
    vectors: Vec<Vec<u32>>,
    /// Of `.red`: threads whose predicate was true, and threads in all.
    yes: u32,
    votes: u32,
    used: bool,
}

impl Barrier {
    pub fn new(warps: usize) -> Barrier {
        Barrier {
            expected: None,
            waiting: vec![0; warps],
            arrived: vec![0; warps],
            vectors: Vec::new(),
            yes: 0,
            votes: 0,
            used: false,
        }
    }

    /// Threads counted: a warp all of whose live lanes came counts as 32, as the hardware counts warps.
    fn count(&self, b: &Block) -> u32 {
        let by_warp = b.warps.iter().enumerate().map(|(w, warp)| {
            let came = self.waiting[w] | self.arrived[w];
            if came != 0 && came & warp.live == warp.live { 32 } else { came.count_ones() }
        });
        by_warp.sum()
    }

    fn complete(&self, b: &Block) -> bool {
        if !self.used {
            return false;
        }
        match self.expected {
            Some(n) => self.count(b) >= n,
            None => {
                let all = |(w, warp): (usize, &super::warp::Warp)| {
                    (self.waiting[w] | self.arrived[w]) & warp.live == warp.live
                };
                b.warps.iter().enumerate().all(all)
            }
        }
    }

    /// Who is there, for messages.
    pub fn describe(&self, b: &Block) -> String {
        let came: u32 = self.waiting.iter().zip(&self.arrived).map(|(x, y)| (x | y).count_ones()).sum();
        let live: u32 = b.warps.iter().map(|w| w.live.count_ones()).sum();
        match self.expected {
            Some(n) => format!("{came} of {n} threads came ({live} of the block are live)"),
            None => format!("{came} of {live} live threads came"),
        }
    }
}

impl Worker<'_> {
    /// A group reaches a block barrier.
    pub(super) fn barrier(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        pc: u32,
        exec: u32,
        kind: BarKind,
        id: Src,
        threads: Option<Src>,
        aligned: bool,
    ) -> Result<(), Trouble> {
        let warp = &mut b.warps[w];
        if aligned && exec != warp.groups[g].mask {
            let skip = warp.groups[g].mask & !exec;
            let what = format!("an aligned barrier under a guard that is false for lanes {skip:#010x} of the warp");
            return Err(trouble(first(skip), Kind::DivergentBarrier, what));
        }
        if exec != warp.groups[g].mask {
            let skip = warp.groups[g].mask & !exec;
            split(warp, g, skip, pc + 1, pc);
        }
        warp.groups[g].pc = pc;
        let mut g = g;
        if aligned && exec != warp.live | warp.deserters {
            let here = |o: &super::warp::Group| o.pc == pc && o.state == State::Lanes;
            let mates = warp.groups.iter().filter(|o| here(o)).fold(exec, |m, o| m | o.mask);
            if mates != warp.live | warp.deserters {
                (warp.groups[g].state, warp.groups[g].counted) = (State::Lanes, true);
                return Ok(());
            }
            warp.groups[g].mask = mates;
            let mut mine = warp.groups.swap_remove(g);
            warp.groups.retain(|o| !here(o));
            mine.state = State::Ready;
            warp.groups.push(mine);
            g = warp.groups.len() - 1;
        }
        let exec = warp.groups[g].mask;
        let uniform = |s: Src, what: &str| {
            let v = warp.regs.u32s(s);
            match lanes(exec).find(|l| v[*l] != v[first(exec)]) {
                None => Ok(v[first(exec)]),
                Some(l) => Err(trouble(l, Kind::InvalidOperand, format!("{what} of a barrier differs within a warp"))),
            }
        };
        let id = uniform(id, "the number")?;
        let expected = threads.map(|t| uniform(t, "the thread count")).transpose()?;
        if id >= 16 {
            let what = format!("barrier {id}: a block has barriers 0 to 15");
            return Err(trouble(first(exec), Kind::InvalidOperand, what));
        }
        if expected.is_some_and(|n| n == 0 || n % 32 != 0 || n > self.ctx.threads.next_multiple_of(32)) {
            let what =
                format!("a barrier of {} threads: expected a multiple of 32 within the block", expected.unwrap_or(0));
            return Err(trouble(first(exec), Kind::InvalidOperand, what));
        }
        let bar = &mut b.barriers[id as usize];
        if bar.used && bar.expected != expected {
            let what = format!("barrier {id} is in use with another thread count");
            return Err(trouble(first(exec), Kind::DivergentBarrier, what));
        }
        self.tally.counters.block_barriers += 1;
        (bar.used, bar.expected) = (true, expected);
        match kind {
            BarKind::Arrive => {
                bar.arrived[w] |= exec;
                bar.vectors.push(b.clocks.arrive(w));
                warp.groups[g].pc = pc + 1;
            }
            BarKind::Sync => bar.waiting[w] |= exec,
            BarKind::Popc { pred, .. } | BarKind::Vote { pred, .. } => {
                bar.waiting[w] |= exec;
                bar.yes += (warp.regs.mask(pred) & exec).count_ones();
                bar.votes += exec.count_ones();
            }
        }
        if kind != BarKind::Arrive {
            warp.groups[g].state = State::Barrier(id);
        }
        self.complete(b, id as usize);
        Ok(())
    }

    /// Opens a barrier if all have come.
    pub(super) fn complete(&mut self, b: &mut Block, id: usize) {
        if !b.barriers[id].complete(b) {
            return;
        }
        let warps = b.warps.len();
        let bar = std::mem::replace(&mut b.barriers[id], Barrier::new(warps));
        let waiting: Vec<usize> = (0..warps).filter(|w| bar.waiting[*w] != 0).collect();
        b.clocks.meet(&waiting, &bar.vectors);
        let k = self.ctx.kernel;
        for w in waiting {
            let warp = &mut b.warps[w];
            for g in warp.groups.iter_mut().filter(|g| g.state == State::Barrier(id as u32)) {
                let code = &k.code[g.pc as usize];
                match &code.op {
                    Op::Bar { kind: BarKind::Popc { dst, .. }, .. } => {
                        warp.regs.put32(*dst, g.mask, &[bar.yes; LANES]);
                    }
                    Op::Bar { kind: BarKind::Vote { all, dst, .. }, .. } => {
                        let v = if *all { bar.yes == bar.votes } else { bar.yes > 0 };
                        warp.regs.put_pred(*dst, g.mask, if v { !0 } else { 0 });
                    }
                    _ => {}
                }
                for d in &k.operands[code.defs.0 as usize..code.defs.1 as usize] {
                    warp.regs.init[*d as usize] |= g.mask;
                }
                g.state = State::Ready;
                g.pc += 1;
            }
        }
    }

    /// A group reaches an operation of its warp. Lanes whose partners are there do it; others wait.
    pub(super) fn collective(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        pc: u32,
        exec: u32,
        mask: u32,
    ) -> Result<Next, Trouble> {
        let k = self.ctx.kernel;
        let op = &k.code[pc as usize].op;
        let warp = &mut b.warps[w];
        let members = members(&warp.regs, op, exec);
        // The usual case: one mask, and all its lanes are here.
        let v = members[first(exec)];
        if v & warp.live == exec && lanes(exec).all(|l| members[l] == v) {
            self.perform(b, w, &[(pc, exec)], v)?;
            return Ok(Next::Following);
        }
        if exec != mask {
            split(warp, g, mask & !exec, pc + 1, pc);
        }
        warp.groups[g].pc = pc;
        let mut rest = exec;
        let mut moves: Vec<(u32, u32)> = Vec::new();
        while rest != 0 {
            let v = members[first(rest)];
            let part = lanes(rest).filter(|l| members[*l] == v).fold(0, |m, l| m | 1 << l);
            rest &= !part;
            if part & !v != 0 {
                let what = format!("the lane is not in its own mask {v:#010x}");
                return Err(trouble(first(part & !v), Kind::MissingLanes, what));
            }
            let need = v & b.warps[w].live;
            let mut parts = vec![(pc, part)];
            let mut there = part;
            for o in b.warps[w].groups.iter().filter(|o| o.state == State::Lanes) {
                let other = &k.code[o.pc as usize].op;
                if !alike(op, other) || aligned(op) && o.pc != pc {
                    continue;
                }
                let theirs = self::members(&b.warps[w].regs, other, o.mask);
                let with = lanes(o.mask & need & !there).filter(|l| theirs[*l] == v).fold(0, |m, l| m | 1 << l);
                if with != 0 {
                    parts.push((o.pc, with));
                    there |= with;
                }
            }
            if there != need {
                continue;
            }
            self.perform(b, w, &parts, v)?;
            moves.extend(parts);
        }
        let warp = &mut b.warps[w];
        (warp.groups[g].state, warp.groups[g].counted) = (State::Lanes, true);
        for (at, part) in moves {
            let code = &k.code[at as usize];
            for d in &k.operands[code.defs.0 as usize..code.defs.1 as usize] {
                warp.regs.init[*d as usize] |= part;
            }
            for i in 0..warp.groups.len() {
                let here = warp.groups[i].mask & part;
                let o = &mut warp.groups[i];
                if o.state != State::Lanes || o.pc != at || here == 0 {
                    continue;
                }
                if here == o.mask {
                    (o.state, o.pc, o.counted) = (State::Ready, at + 1, false);
                } else {
                    split(warp, i, here, at + 1, at);
                }
            }
        }
        Ok(Next::Choose)
    }

    /// Does an operation for lanes that are all there: parts of the warp, each at its code index.
    fn perform(&mut self, b: &mut Block, w: usize, parts: &[(u32, u32)], members: u32) -> Result<(), Trouble> {
        let k = self.ctx.kernel;
        let all = parts.iter().fold(0, |m, p| m | p.1);
        let op = &k.code[parts[0].0 as usize].op;
        if aligned(op) {
            if all != !0 && !matches!(op, Op::Elect { .. }) {
                let what = format!("a matrix instruction needs all 32 lanes, but {:#010x} have exited", !all);
                return Err(trouble(first(all), Kind::MissingLanes, what));
            }
            return self.matrix(&mut b.view(&k.code, w, parts[0].0), op);
        }
        if let Op::BarWarp { .. } = op {
            let live = b.warps[w].live;
            b.clocks.meet_lanes(w, all, live);
            return Ok(());
        }
        let regs = &mut b.warps[w].regs;
        exchange(regs, parts.iter().map(|(pc, m)| (&k.code[*pc as usize].op, *m)), all, members)
    }

    /// `mbarrier` operations, lane by lane.
    pub(super) fn mbarrier(
        &mut self,
        b: &mut Block,
        w: usize,
        pc: u32,
        exec: u32,
        address: Option<[u64; LANES]>,
        op: Mbarrier,
    ) -> Result<(), Trouble> {
        let code = &self.ctx.kernel.code;
        if let Mbarrier::PendingCount { dst, state } = op {
            let v = b.warps[w].regs.u64s(state).map(|s| s as u32);
            b.warps[w].regs.put32(dst, exec, &v);
            return Ok(());
        }
        let address = address.unwrap_or([u64::MAX; LANES]);
        for lane in lanes(exec) {
            let a = address[lane];
            b.shared.check(a, 8).map_err(|error| Trouble { lane: lane as u32, error })?;
            let me = (w * LANES + lane) as u32;
            if let Mbarrier::Init { count } = op {
                let expected = b.warps[w].regs.u32s(count)[lane];
                if !(1..1 << 20).contains(&expected) {
                    return Err(trouble(lane, Kind::InvalidOperand, format!("an mbarrier of {expected} arrivals")));
                }
                b.view(code, w, pc).write_shared(a, 8, lane, false, false)?;
                b.shared.store(a as u32, 8, expected.into());
                b.mbarriers.insert(a as u32, Phase { expected, pending: expected, phase: 0 });
                continue;
            }
            let Some(mut s) = b.mbarriers.get(&(a as u32)).copied() else {
                let what = format!("shared address {a:#x} holds no initialised mbarrier");
                return Err(trouble(lane, Kind::InvalidOperand, what));
            };
            match op {
                Mbarrier::Inval => {
                    b.mbarriers.remove(&(a as u32));
                    continue;
                }
                Mbarrier::Arrive { dst, count, drop, .. } => {
                    let n = count.map_or(1, |c| b.warps[w].regs.u32s(c)[lane]);
                    let token = u64::from(s.phase) << 32 | u64::from(s.pending);
                    if n == 0 || n > s.pending {
                        let what = format!("{n} arrivals at an mbarrier that waits for {}", s.pending);
                        return Err(trouble(lane, Kind::InvalidOperand, what));
                    }
                    s.expected -= if drop { n.min(s.expected) } else { 0 };
                    arrive(&mut s, n);
                    b.clocks.release(a, me);
                    if let Some(d) = dst {
                        b.warps[w].regs.put_lane(d, Class::R64, lane, token);
                    }
                }
                Mbarrier::TestWait { dst, state, parity } => {
                    let class = if parity { Class::R32 } else { Class::R64 };
                    let v = b.warps[w].regs.lane(state, class, lane);
                    let over = if parity { u64::from(s.phase & 1) != v & 1 } else { u64::from(s.phase) != v >> 32 };
                    if over {
                        b.clocks.acquire(a, me);
                    } else {
                        self.patience -= 1;
                    }
                    b.warps[w].regs.put_lane(dst, Class::Pred, lane, over.into());
                }
                Mbarrier::CopyArrive { no_increment } => {
                    b.view(code, w, pc).finish_copies(1 << lane, |_, _| true)?;
                    b.clocks.release(a, me);
                    if no_increment {
                        if s.pending == 0 {
                            return Err(trouble(
                                lane,
                                Kind::InvalidOperand,
                                "an arrival at an mbarrier that waits for none",
                            ));
                        }
                        arrive(&mut s, 1);
                    }
                }
                Mbarrier::Init { .. } | Mbarrier::PendingCount { .. } => {}
            }
            b.mbarriers.insert(a as u32, s);
        }
        Ok(())
    }
}

fn arrive(s: &mut Phase, n: u32) {
    s.pending -= n;
    if s.pending == 0 {
        s.phase = s.phase.wrapping_add(1);
        s.pending = s.expected;
    }
}

/// The mask that each lane names.
fn members(r: &Regs, op: &Op, exec: u32) -> [u32; LANES] {
    match op {
        Op::BarWarp { mask } | Op::Match { mask, .. } | Op::Redux { mask, .. } | Op::Elect { mask, .. } => {
            r.u32s(*mask)
        }
        Op::Shfl { mask, .. } | Op::Vote { mask, .. } => mask.map_or([exec; LANES], |m| r.u32s(m)),
        _ => [!0; LANES],
    }
}

/// Operations of a whole warp at one instruction.
fn aligned(op: &Op) -> bool {
    matches!(op, Op::LdMatrix { .. } | Op::MovMatrix { .. } | Op::Mma(_) | Op::WmmaLoad(_) | Op::WmmaStore(_))
}

/// Whether lanes at two instructions do one operation together: same kind, same qualifiers.
fn alike(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::BarWarp { .. }, Op::BarWarp { .. }) | (Op::Elect { .. }, Op::Elect { .. }) => true,
        (Op::Shfl { mode: x, .. }, Op::Shfl { mode: y, .. }) => x == y,
        (Op::Vote { mode: x, .. }, Op::Vote { mode: y, .. }) => x == y,
        (Op::Match { all: x, ty: s, .. }, Op::Match { all: y, ty: t, .. }) => (x, s) == (y, t),
        (Op::Redux { op: x, ty: s, .. }, Op::Redux { op: y, ty: t, .. }) => (x, s) == (y, t),
        _ => std::ptr::eq(a, b),
    }
}

/// Operations that move values between lanes.
fn exchange<'o>(
    r: &mut Regs,
    parts: impl Iterator<Item = (&'o Op, u32)> + Clone,
    all: u32,
    members: u32,
) -> Result<(), Trouble> {
    let (mut a, mut b, mut c, mut p) = ([0u64; LANES], [0u32; LANES], [0u32; LANES], 0u32);
    for (op, m) in parts.clone() {
        match *op {
            Op::Shfl { a: x, b: y, c: z, .. } => {
                let (x, y, z) = (r.u32s(x), r.u32s(y), r.u32s(z));
                lanes(m).for_each(|l| (a[l], b[l], c[l]) = (x[l].into(), y[l], z[l]));
            }
            Op::Vote { a, .. } => p |= r.mask(a) & m,
            Op::Match { a: x, ty, .. } => {
                let x = r.wide(x, ty.class());
                lanes(m).for_each(|l| a[l] = x[l]);
            }
            Op::Redux { a: x, .. } => {
                let x = r.u32s(x);
                lanes(m).for_each(|l| a[l] = x[l].into());
            }
            _ => {}
        }
    }
    for (op, m) in parts {
        match *op {
            Op::Shfl { mode, dst, p, .. } => {
                let (mut v, mut inside) = ([0; LANES], 0);
                for l in lanes(m) {
                    let (source, ok) = shfl_source(mode, l as u32, b[l], c[l]);
                    if all >> source & 1 == 0 {
                        let what = format!(
                            "lane {l} reads lane {source}, which does not take part: mask {members:#010x}, lanes {all:#010x} are there"
                        );
                        return Err(trouble(l, Kind::MissingLanes, what));
                    }
                    v[l] = a[source as usize] as u32;
                    inside |= u32::from(ok) << l;
                }
                if let Some(d) = dst {
                    r.put32(d, m, &v);
                }
                if let Some(d) = p {
                    r.put_pred(d, m, inside);
                }
            }
            Op::Vote { mode, dst, .. } => {
                let v = match mode {
                    VoteMode::All => p == all,
                    VoteMode::Any => p != 0,
                    VoteMode::Uni => p == 0 || p == all,
                    VoteMode::Ballot => {
                        r.put32(dst, m, &[p; LANES]);
                        continue;
                    }
                };
                r.put_pred(dst, m, if v { !0 } else { 0 });
            }
            Op::Match { all: every, dst, p, .. } => {
                let mut v = [0; LANES];
                for l in lanes(m) {
                    v[l] = lanes(all).filter(|o| a[*o] == a[l]).fold(0, |x, o| x | 1 << o);
                }
                let equal = lanes(m).all(|l| v[l] == all);
                if every {
                    v = [if equal { all } else { 0 }; LANES];
                }
                if let Some(d) = dst {
                    r.put32(d, m, &v);
                }
                if let Some(d) = p {
                    r.put_pred(d, m, if equal { !0 } else { 0 });
                }
            }
            Op::Redux { op, ty, dst, .. } => {
                let values = lanes(all).map(|l| a[l] as u32);
                let signed = ty.signed();
                let v = values.reduce(|x, y| match op {
                    ReduxOp::Add => x.wrapping_add(y),
                    ReduxOp::Min if signed => (x as i32).min(y as i32) as u32,
                    ReduxOp::Max if signed => (x as i32).max(y as i32) as u32,
                    ReduxOp::Min => x.min(y),
                    ReduxOp::Max => x.max(y),
                    ReduxOp::And => x & y,
                    ReduxOp::Or => x | y,
                    ReduxOp::Xor => x ^ y,
                });
                r.put32(dst, m, &[v.unwrap_or(0); LANES]);
            }
            Op::Elect { dst, p, .. } => {
                let leader = all.trailing_zeros();
                if let Some(d) = dst {
                    r.put32(d, m, &[leader; LANES]);
                }
                r.put_pred(p, m, 1 << (leader & 31));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The lane that a lane reads, and whether it is within its segment.
fn shfl_source(mode: ShflMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = (lane & segment) | (clamp & !segment);
    let from = match mode {
        ShflMode::Up => {
            let from = lane as i32 - b as i32;
            return if from >= last as i32 { (from as u32, true) } else { (lane, false) };
        }
        ShflMode::Down => lane + b,
        ShflMode::Bfly => lane ^ b,
        ShflMode::Idx => (lane & segment) | (b & !segment & 31),
    };
    if from <= last { (from, true) } else { (lane, false) }
}
