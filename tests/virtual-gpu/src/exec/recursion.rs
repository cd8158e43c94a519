//! Recursion. A function's registers, frame and local variables have one place; a call of it from within itself puts aside
//! what the outer call has there, lane by lane, and the return brings it back. Local variables, to which pointers may
//! exist, stay where they are: the inner call gets others, on the stack that `alloca` uses.

use super::access::lanes;
use super::block::{first, trouble};
use super::calls::{argument, store};
use super::link::{Code, Kernel, Placed};
use super::warp::{Trouble, Warp};
use crate::fault::Kind;
use crate::program::*;

/// Calls within one another before a thread is out of stack.
const DEPTH: usize = 4096;
/// Local memory of a thread, bytes.
const STACK: u64 = 512 << 10;

/// What one lane of an outer call had.
pub(super) struct Kept {
    registers: Vec<(u64, bool)>,
    frame: Vec<(u8, bool)>,
    moved: u32,
    stack_top: u32,
}

/// An argument or a result on its way: its bytes, and which of them were written.
type Passed = Vec<(u8, bool)>;

/// Whether a function is being executed by the code at `pc` or by those who called it.
pub(super) fn active(k: &Kernel, stack: &[u32], pc: u32, function: u32) -> bool {
    let within = |at: &u32| k.code[*at as usize].function == function;
    within(&pc) || stack.iter().any(within)
}

/// A call of a function that is active, by lanes `part`.
pub(super) fn enter(k: &Kernel, warp: &mut Warp, g: usize, call: &Call, target: u32, part: u32) -> Result<(), Trouble> {
    let Some(callee) = k.functions.get(&target) else { return Ok(()) };
    let name = || k.names.get(&target).map_or("", |n| n.as_str());
    if warp.groups[g].stack.len() >= DEPTH {
        let what = format!("{} calls itself, {DEPTH} calls deep: the stack is full", name());
        return Err(trouble(first(part), Kind::InvalidCall, what));
    }
    if callee.names_locals {
        let what = format!("{} calls itself and has local variables at fixed addresses: not supported", name());
        return Err(trouble(first(part), Kind::Unsupported, what));
    }
    for l in lanes(part) {
        let passed: Vec<Passed> = call.args.iter().map(|a| take(warp, l, a)).collect();
        let kept = keep(warp, l, target, callee);
        warp.kept[l].push(kept);
        slots(callee).for_each(|slot| warp.regs.init[slot] &= !(1 << l));
        warp.frame.forget(l, callee.frame.0, callee.frame.1);
        let size = callee.local.1;
        if size > 0 {
            let from = warp.stack_top[l].next_multiple_of(16);
            let end = u64::from(from) + u64::from(size);
            if end > STACK {
                let what = format!("{} calls itself until {STACK} bytes of local memory are full", name());
                return Err(trouble(l, Kind::OutOfBounds, what));
            }
            warp.local.grow(end);
            warp.local.forget(l, from, size);
            warp.stack_top[l] = end as u32;
            warp.moved.entry(target).or_insert([0; 32])[l] = from - callee.local.0;
        }
        callee.params.iter().zip(&passed).for_each(|(to, passed)| give(warp, l, to, passed));
    }
    Ok(())
}

/// The return from such a call to its site.
pub(super) fn leave(k: &Kernel, warp: &mut Warp, site: &Code, function: u32, exec: u32) {
    let (Op::Call(call), Some(callee)) = (&site.op, k.functions.get(&function)) else { return };
    for l in lanes(exec) {
        let passed: Vec<Passed> = callee.returns.iter().map(|a| take(warp, l, a)).collect();
        let Some(kept) = warp.kept[l].pop() else { continue };
        slots(callee).zip(&kept.registers).for_each(|(slot, value)| warp.regs.set_at(slot, l, *value));
        (callee.frame.0..).zip(&kept.frame).for_each(|(at, byte)| warp.frame.set_byte(l, at, *byte));
        warp.stack_top[l] = kept.stack_top;
        if let Some(moved) = warp.moved.get_mut(&function) {
            moved[l] = kept.moved;
        }
        call.returns.iter().zip(&passed).for_each(|(to, passed)| give(warp, l, to, passed));
    }
}

/// The function's registers, as places in the table of written lanes.
fn slots(f: &Placed) -> impl Iterator<Item = usize> {
    f.init.into_iter().flat_map(|(from, n)| from as usize..(from + n) as usize)
}

fn keep(warp: &Warp, lane: usize, function: u32, f: &Placed) -> Kept {
    Kept {
        registers: slots(f).map(|slot| warp.regs.at(slot, lane)).collect(),
        frame: (f.frame.0..f.frame.0 + f.frame.1).map(|at| warp.frame.byte(lane, at)).collect(),
        moved: warp.moved.get(&function).map_or(0, |m| m[lane]),
        stack_top: warp.stack_top[lane],
    }
}

fn take(warp: &Warp, lane: usize, a: &Arg) -> Passed {
    match a {
        Arg::Param { offset, size } => (0..*size).map(|i| warp.frame.byte(lane, offset + i)).collect(),
        Arg::Reg { .. } | Arg::Imm { .. } => argument(warp, lane, a).to_le_bytes().map(|b| (b, true)).to_vec(),
    }
}

fn give(warp: &mut Warp, lane: usize, to: &Arg, passed: &Passed) {
    match to {
        Arg::Param { offset, size } => {
            (*offset..*offset + *size).zip(passed).for_each(|(at, byte)| warp.frame.set_byte(lane, at, *byte));
        }
        Arg::Reg { width, reg } => {
            let value = passed.iter().take(8).rev().fold(0, |v, (byte, _)| v << 8 | u64::from(*byte));
            store(warp, lane, to, value);
            let slot = warp.regs.init_index(*reg, width.class());
            warp.regs.init[slot] |= 1 << lane;
        }
        Arg::Imm { .. } => {}
    }
}
