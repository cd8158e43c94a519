//! Barriers, fences, and operations across the lanes of a warp.

use super::memory::mbarrier_space;
use super::*;
use crate::program::{BarKind, Mbarrier, ReduxOp, Scope, ShflMode, Src, VoteMode};

/// `mbarrier`.
pub(super) fn mbarrier<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    b.require(i, "mbarrier", 80)?;
    let kind = m.need(&[
        ("init", 0),
        ("inval", 1),
        ("arrive", 2),
        ("arrive_drop", 3),
        ("test_wait", 4),
        ("pending_count", 5),
    ])?;
    let space = mbarrier_space(m);
    let operand = |n: usize| i.operands.get(n).ok_or_else(|| Refusal::new(i.at, "'mbarrier' lacks an operand"));
    let (place, op) = match kind {
        0 => {
            between(i, 2, 2)?;
            (Some(0), Mbarrier::Init { count: b.src(operand(1)?, Type::U32)? })
        }
        1 => {
            between(i, 1, 1)?;
            (Some(0), Mbarrier::Inval)
        }
        2 | 3 => {
            let no_complete = m.take("noComplete");
            m.ignore(&["release", "cta"]);
            between(i, 2, 3)?;
            let count = i.operands.get(2).map(|c| b.src(c, Type::U32)).transpose()?;
            if no_complete && count.is_none() {
                return Err(m.refuse(".noComplete needs a count"));
            }
            let dst = b.dst_or_sink(operand(0)?, Type::B64)?;
            (Some(1), Mbarrier::Arrive { dst, count, no_complete, drop: kind == 3 })
        }
        4 => {
            let parity = m.take("parity");
            m.ignore(&["acquire", "cta"]);
            between(i, 3, 3)?;
            let state = b.src(operand(2)?, if parity { Type::U32 } else { Type::B64 })?;
            (Some(1), Mbarrier::TestWait { dst: b.dst(operand(0)?, Type::Pred)?, state, parity })
        }
        _ => {
            between(i, 2, 2)?;
            let (dst, state) = (b.dst(operand(0)?, Type::U32)?, b.src(operand(1)?, Type::B64)?);
            (None, Mbarrier::PendingCount { dst, state })
        }
    };
    m.ty(&[Type::B64])?;
    let address = place.map(|place| b.address(operand(place)?, space)).transpose()?;
    Ok(Op::Mbarrier { space, address, op })
}

/// `bar` and `barrier`.
pub(super) fn barrier<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    if m.take("warp") {
        m.expect("sync")?;
        let [mask] = exactly(i)?;
        return Ok(Op::BarWarp { mask: b.src(mask, Type::B32)? });
    }
    m.ignore(&["cta"]);
    let aligned = m.take("aligned") || i.opcode == "bar";
    let kind = m.need(&[("sync", 0), ("arrive", 1), ("red", 2)])?;
    if kind < 2 {
        between(i, 1 + kind, 2)?;
        let id = barrier_id(b, &i.operands[0])?;
        let threads = i.operands.get(1).map(|t| barrier_threads(b, t)).transpose()?;
        let kind = if kind == 0 { BarKind::Sync } else { BarKind::Arrive };
        return Ok(Op::Bar { kind, id, threads, aligned });
    }
    let op = m.need(&[("popc", 0), ("and", 1), ("or", 2)])?;
    let ty = m.ty(if op == 0 { &[Type::U32] } else { &[Type::Pred] })?;
    between(i, 3, 4)?;
    let (d, id) = (&i.operands[0], &i.operands[1]);
    let last = i.operands.len() - 1;
    let (dst, id, pred) = (b.dst(d, ty)?, barrier_id(b, id)?, b.predicate(&i.operands[last])?);
    let threads = if last == 3 { Some(barrier_threads(b, &i.operands[2])?) } else { None };
    let kind = if op == 0 { BarKind::Popc { dst, pred } } else { BarKind::Vote { all: op == 1, dst, pred } };
    Ok(Op::Bar { kind, id, threads, aligned })
}

fn barrier_id<'a>(b: &mut Body<'_, 'a>, op: &Operand<'a>) -> Lowered<Src> {
    if matches!(op.kind, OperandKind::Constant(_)) {
        b.literal(op, 15, "the number of a barrier")?;
    }
    b.src(op, Type::U32)
}

fn barrier_threads<'a>(b: &mut Body<'_, 'a>, op: &Operand<'a>) -> Lowered<Src> {
    if matches!(op.kind, OperandKind::Constant(_)) {
        let threads = b.literal(op, 1024, "the number of threads")?;
        if threads == 0 || threads % 32 != 0 {
            return Err(Refusal::new(op.at, "the number of threads is a multiple of 32"));
        }
    }
    b.src(op, Type::U32)
}

/// `membar` and `fence`.
pub(super) fn fence<'a>(_: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let [] = exactly(i)?;
    if i.opcode == "membar" {
        let scope = m.need(&[("cta", Scope::Cta), ("gl", Scope::Gpu), ("sys", Scope::Sys)])?;
        return Ok(Op::Fence { scope, seq_cst: true });
    }
    if m.take("proxy") {
        m.expect("alias")?;
        return Ok(Op::Fence { scope: Scope::Cta, seq_cst: false });
    }
    let seq_cst = m.choose(&[("sc", true), ("acq_rel", false)]).unwrap_or(false);
    let scope = m.need(&[("cta", Scope::Cta), ("gpu", Scope::Gpu), ("sys", Scope::Sys)])?;
    Ok(Op::Fence { scope, seq_cst })
}

/// `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`.
pub(super) fn warp<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    match i.opcode {
        "shfl" => shuffle(b, i, m),
        "vote" => vote(b, i, m),
        "match" => {
            let all = m.need(&[("all", true), ("any", false)])?;
            m.expect("sync")?;
            let ty = m.ty(&[Type::B32, Type::B64])?;
            let [d, a, mask] = exactly(i)?;
            let (dst, p) = b.dst_pair(d, Type::B32)?;
            if p.is_some() && !all {
                return Err(m.refuse("only match.all writes a predicate"));
            }
            Ok(Op::Match { all, ty, dst, p, a: b.src(a, ty)?, mask: b.src(mask, Type::B32)? })
        }
        "redux" => {
            b.require(i, "redux", 80)?;
            m.expect("sync")?;
            let op = m.need(&[
                ("add", ReduxOp::Add),
                ("min", ReduxOp::Min),
                ("max", ReduxOp::Max),
                ("and", ReduxOp::And),
                ("or", ReduxOp::Or),
                ("xor", ReduxOp::Xor),
            ])?;
            let arithmetic = matches!(op, ReduxOp::Add | ReduxOp::Min | ReduxOp::Max);
            let ty = m.ty(if arithmetic { &[Type::U32, Type::S32] } else { &[Type::B32] })?;
            let [d, a, mask] = exactly(i)?;
            Ok(Op::Redux { op, ty, dst: b.dst(d, ty)?, a: b.src(a, ty)?, mask: b.src(mask, Type::B32)? })
        }
        "activemask" => {
            m.ty(&[Type::B32])?;
            let [d] = exactly(i)?;
            Ok(Op::ActiveMask { dst: b.dst(d, Type::B32)? })
        }
        _ => {
            b.require(i, "elect", 90)?;
            m.expect("sync")?;
            let [d, mask] = exactly(i)?;
            let (dst, p) = b.dst_pair(d, Type::B32)?;
            let p = p.ok_or_else(|| m.refuse("'elect' writes d|p"))?;
            Ok(Op::Elect { dst, p, mask: b.src(mask, Type::B32)? })
        }
    }
}

/// Whether the operation has its `.sync` mask: since sm_70 it must.
fn synchronised(b: &Body<'_, '_>, i: &Instruction<'_>, m: &mut Modifiers<'_>) -> Lowered<bool> {
    let sync = m.take("sync");
    if !sync && b.module.target >= 70 {
        return Err(m.refuse(format!("'{}' without .sync does not exist on sm_70 and later", i.opcode)));
    }
    Ok(sync)
}

fn shuffle<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let sync = synchronised(b, i, m)?;
    let mode =
        m.need(&[("up", ShflMode::Up), ("down", ShflMode::Down), ("bfly", ShflMode::Bfly), ("idx", ShflMode::Idx)])?;
    m.ty(&[Type::B32])?;
    between(i, 4 + usize::from(sync), 4 + usize::from(sync))?;
    let o = &i.operands;
    let (dst, p) = b.dst_pair(&o[0], Type::B32)?;
    let (a, lane, c) = (b.src(&o[1], Type::B32)?, b.src(&o[2], Type::B32)?, b.src(&o[3], Type::B32)?);
    let mask = if sync { Some(b.src(&o[4], Type::B32)?) } else { None };
    Ok(Op::Shfl { mode, dst, p, a, b: lane, c, mask })
}

fn vote<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let sync = synchronised(b, i, m)?;
    let mode = m.need(&[
        ("all", VoteMode::All),
        ("any", VoteMode::Any),
        ("uni", VoteMode::Uni),
        ("ballot", VoteMode::Ballot),
    ])?;
    let ty = m.ty(if mode == VoteMode::Ballot { &[Type::B32] } else { &[Type::Pred] })?;
    between(i, 2 + usize::from(sync), 2 + usize::from(sync))?;
    let (dst, a) = (b.dst(&i.operands[0], ty)?, b.predicate(&i.operands[1])?);
    let mask = if sync { Some(b.src(&i.operands[2], Type::B32)?) } else { None };
    Ok(Op::Vote { mode, dst, a, mask })
}
