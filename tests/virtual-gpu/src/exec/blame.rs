//! From what went wrong to who did it, where, and why the others can't go on.

use super::block::{Block, first, trouble};
use super::link::Code;
use super::regs::LANES;
use super::warp::{Group, State, Trouble, Warp, Worker};
use crate::fault::{Fault, Kind, Place};
use crate::memory::AccessError;
use crate::program::*;

impl Worker<'_> {
    #[cold]
    pub(super) fn unwritten_source(&self, b: &Block, w: usize, code: &Code, exec: u32) -> Trouble {
        let k = self.ctx.kernel;
        let init = &b.warps[w].regs.init;
        let uses = &k.operands[code.uses.0 as usize..code.uses.1 as usize];
        let bad = uses.iter().find(|u| init[**u as usize] & exec != exec);
        let name = bad.map_or(String::new(), |u| self.ctx.register_name(code.function, *u));
        let have = bad.map_or(0, |u| init[*u as usize]);
        unwritten(have, exec, &format!("register {name}"))
    }

    /// A fault at an instruction of a lane.
    pub fn fault(&self, b: &Block, w: usize, lane: usize, pc: u32, e: AccessError) -> Fault {
        let (c, code) = (self.ctx, &self.ctx.kernel.code[pc as usize]);
        let t = (w * LANES + lane) as u32;
        let n = c.block;
        let file = |l: Loc| (c.module.files.get(l.file as usize).cloned().unwrap_or_default(), l.line);
        let place = Place {
            block: b.id,
            thread: [t % n[0], t / n[0] % n[1], t / n[0] / n[1]],
            function: c.kernel.names.get(&code.function).cloned().unwrap_or_default(),
            line: code.line,
            text: c.module.line(code.line).to_owned(),
            source: code.loc.map(file),
        };
        Fault { kernel: c.kernel.name.clone(), kind: e.kind, place: Some(Box::new(place)), what: e.what }
    }

    pub(super) fn overrun(&self, b: &Block, limit: u64) -> Fault {
        let groups = b.warps.iter().enumerate().flat_map(|(w, warp)| warp.groups.iter().map(move |g| (w, g)));
        let (w, lane, pc) = groups.map(|(w, g)| (w, first(g.mask), g.pc)).next().unwrap_or_default();
        let what = format!("the block ran {limit} warp instructions and has not ended");
        self.fault(b, w, lane, pc, AccessError::new(Kind::TimedOut, what))
    }

    /// Nothing in the block can go on: says who waits for whom.
    pub(super) fn deadlock(&self, b: &Block) -> Fault {
        let k = self.ctx.kernel;
        let waiting = b.warps.iter().enumerate().flat_map(|(w, warp)| warp.groups.iter().map(move |g| (w, warp, g)));
        let mut waiting: Vec<_> = waiting.collect();
        // Lanes that a warp's own operation misses tell more than who waits at a barrier for them.
        waiting.sort_by_key(|(_, _, g)| matches!(g.state, State::Barrier(_)));
        let Some((w, warp, g)) = waiting.first().copied() else {
            let error = AccessError::new(Kind::Deadlock, "no thread of the block can go on");
            return self.fault(b, 0, 0, 0, error);
        };
        let op = &k.code[g.pc as usize].op;
        let elsewhere = |mine: &Group, warp: &Warp| {
            let others = warp.groups.iter().filter(|o| o.mask != mine.mask);
            let lines: Vec<String> =
                others.map(|o| format!("lanes {:#010x} at line {}", o.mask, k.code[o.pc as usize].line)).collect();
            if lines.is_empty() { "the others have exited or skipped it".to_owned() } else { lines.join(", ") }
        };
        let error = match (g.state, op) {
            (State::Barrier(id), _) => {
                let barrier = &b.barriers[id as usize];
                let what = format!("barrier {id}: {} and the rest can't come", barrier.describe(b));
                AccessError::new(Kind::DivergentBarrier, what)
            }
            (_, Op::Bar { .. }) => {
                let what = format!(
                    "an aligned barrier reached by lanes {:#010x} of a warp whose lanes {:#010x} are live; {}",
                    g.mask,
                    warp.live,
                    elsewhere(g, warp)
                );
                AccessError::new(Kind::DivergentBarrier, what)
            }
            _ => {
                let what = format!(
                    "a warp operation waits: lanes {:#010x} are at it, lanes {:#010x} are live; {}",
                    g.mask,
                    warp.live,
                    elsewhere(g, warp)
                );
                AccessError::new(Kind::MissingLanes, what)
            }
        };
        self.fault(b, w, first(g.mask), g.pc, error)
    }
}

pub(super) fn unwritten(have: u32, need: u32, what: &str) -> Trouble {
    let lane = first(need & !have);
    trouble(lane, Kind::UninitialisedRegister, format!("{what} is read, but the thread has not written it"))
}
