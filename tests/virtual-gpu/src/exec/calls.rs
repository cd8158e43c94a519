//! Calls of functions, and the services of the device runtime.

use super::access::lanes;
use super::block::{Block, Next, first, split, trouble};
use super::link::FUNCTIONS;
use super::recursion;
use super::regs::LANES;
use super::warp::{Trouble, Warp, Worker};
use crate::fault::Kind;
use crate::program::*;

impl Worker<'_> {
    pub(super) fn call(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        call: &Call,
        pc: u32,
        exec: u32,
        mask: u32,
    ) -> Result<Next, Trouble> {
        let k = self.ctx.kernel;
        let (target, part) = match &call.target {
            CallTarget::Builtin(builtin) => {
                self.builtin(b, w, *builtin, call, pc, exec)?;
                return Ok(Next::Following);
            }
            CallTarget::Function(f) => (*f, exec),
            CallTarget::Indirect(s) => {
                let v = b.warps[w].regs.u64s(*s);
                let a = v[first(exec)];
                let f = a.wrapping_sub(FUNCTIONS);
                if !f.is_multiple_of(16) || !k.functions.contains_key(&((f / 16).min(u64::from(u32::MAX)) as u32)) {
                    let what = format!("a call of address {a:#x}, which is no function");
                    return Err(trouble(first(exec), Kind::InvalidCall, what));
                }
                (f as u32 / 16, lanes(exec).filter(|l| v[*l] == a).fold(0, |m, l| m | 1 << l))
            }
        };
        let Some(callee) = k.functions.get(&target) else {
            return Err(trouble(first(exec), Kind::InvalidCall, "a call of a function that is not defined"));
        };
        if callee.params.len() != call.args.len() || callee.returns.len() != call.returns.len() {
            let what = format!(
                "a call with {} arguments and {} results of a function of {} and {}",
                call.args.len(),
                call.returns.len(),
                callee.params.len(),
                callee.returns.len()
            );
            return Err(trouble(first(exec), Kind::InvalidCall, what));
        }
        let warp = &mut b.warps[w];
        if recursion::active(k, &warp.groups[g].stack, pc, target) {
            recursion::enter(k, warp, g, call, target, part)?;
        } else {
            // What an earlier call left behind counts as never written.
            for (from, n) in callee.init {
                warp.regs.init[from as usize..(from + n) as usize].iter_mut().for_each(|m| *m &= !part);
            }
            for l in lanes(part) {
                warp.frame.forget(l, callee.frame.0, callee.frame.1);
                warp.local.forget(l, callee.local.0, callee.local.1);
            }
            for (from, to) in call.args.iter().zip(&callee.params) {
                pass(warp, part, from, to);
            }
        }
        // Whom the guard or another target excludes does not go along.
        let stays = mask & !part;
        if stays != 0 {
            let others = exec & !part;
            if others != 0 && others != stays {
                split(warp, g, stays & !others, pc + 1, pc);
            }
            let remains = warp.groups[g].mask & !part;
            split(warp, g, remains, if others != 0 { pc } else { pc + 1 }, pc);
            if others != 0
                && let Some(last) = warp.groups.last_mut()
            {
                last.counted = true;
            }
        }
        let group = &mut warp.groups[g];
        group.stack.push(pc);
        group.pc = callee.entry;
        Ok(Next::Choose)
    }

    pub(super) fn ret(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        pc: u32,
        exec: u32,
        mask: u32,
    ) -> Result<Next, Trouble> {
        let k = self.ctx.kernel;
        let warp = &mut b.warps[w];
        if exec != mask {
            split(warp, g, mask & !exec, pc + 1, pc);
        }
        let Some(at) = warp.groups[g].stack.pop() else { return Ok(Next::Choose) };
        let (site, function) = (&k.code[at as usize], k.code[pc as usize].function);
        if recursion::active(k, &warp.groups[g].stack, at, function) {
            recursion::leave(k, warp, site, function, exec);
        } else if let (Op::Call(call), Some(callee)) = (&site.op, k.functions.get(&function)) {
            for (from, to) in callee.returns.iter().zip(&call.returns) {
                pass(warp, exec, from, to);
            }
        }
        for d in &k.operands[site.defs.0 as usize..site.defs.1 as usize] {
            warp.regs.init[*d as usize] |= exec;
        }
        warp.groups[g].pc = at + 1;
        Ok(Next::Choose)
    }

    fn builtin(
        &mut self,
        b: &mut Block,
        w: usize,
        builtin: Builtin,
        call: &Call,
        pc: u32,
        exec: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(exec) {
            let arg = |warp: &Warp, i: usize| call.args.get(i).map_or(0, |a| argument(warp, lane, a));
            let result = match builtin {
                Builtin::Free => {
                    let address = arg(&b.warps[w], 0);
                    if address != 0 {
                        let wrong = |error| Trouble { lane: lane as u32, error };
                        self.ctx.memory.heap_free(address).map_err(wrong)?;
                    }
                    0
                }
                // Null where the heap has no room.
                Builtin::Malloc => self.ctx.memory.heap_alloc(arg(&b.warps[w], 0)).unwrap_or(0),
                Builtin::AssertFail => {
                    let texts = [0, 1, 3].map(|i| self.string(arg(&b.warps[w], i)).unwrap_or_default());
                    let line = arg(&b.warps[w], 2) as u32;
                    let what = format!("{}:{line}: {}: assertion `{}` failed", texts[1], texts[2], texts[0]);
                    return Err(trouble(lane, Kind::Assert, what));
                }
                Builtin::Vprintf => {
                    let (format, at) = (arg(&b.warps[w], 0), arg(&b.warps[w], 1));
                    let text = self.print(b, w, pc, lane, format, at)?;
                    self.ctx.print(&text);
                    1
                }
            };
            if let Some(to) = call.returns.first() {
                store(&mut b.warps[w], lane, to, result);
            }
        }
        Ok(())
    }
}

/// Copies a value between a caller's and a callee's place, for the lanes of `m`.
fn pass(warp: &mut Warp, m: u32, from: &Arg, to: &Arg) {
    if let (Arg::Param { offset: a, size: n }, Arg::Param { offset: b, size }) = (from, to) {
        for l in lanes(m) {
            warp.frame.copy(l, *a, *b, *n.min(size));
        }
        return;
    }
    for l in lanes(m) {
        let v = argument(warp, l, from);
        store(warp, l, to, v);
    }
    if let Arg::Reg { width, reg } = to {
        let i = warp.regs.init_index(*reg, width.class());
        warp.regs.init[i] |= m;
    }
}

pub(super) fn argument(warp: &Warp, lane: usize, a: &Arg) -> u64 {
    match a {
        Arg::Reg { width, reg } => warp.regs.lane(Src::Reg(*reg), width.class(), lane),
        Arg::Imm { value: Src::Imm(v), .. } => *v,
        Arg::Imm { .. } => 0,
        Arg::Param { offset, size } => warp.frame.load(lane, u64::from(*offset), (*size).clamp(1, 8)).0,
    }
}

pub(super) fn store(warp: &mut Warp, lane: usize, a: &Arg, v: u64) {
    debug_assert!(lane < LANES);
    match a {
        Arg::Reg { width, reg } => warp.regs.put_lane(*reg, width.class(), lane, v),
        Arg::Param { offset, size } => warp.frame.store(lane, u64::from(*offset), (*size).clamp(1, 8), v),
        Arg::Imm { .. } => {}
    }
}
