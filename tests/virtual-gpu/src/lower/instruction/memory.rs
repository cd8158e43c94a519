//! Loads, stores, atomics, asynchronous copies, and hints to caches.

use super::*;
use crate::lower::types::name;
use crate::program::{Address, Atom, AtomOp, CpAsync, Load, Mbarrier, Order, Scope, Space, Src, Store, Width};

const SCOPES: [(&str, Scope); 3] = [("cta", Scope::Cta), ("gpu", Scope::Gpu), ("sys", Scope::Sys)];
/// Modifiers that tell caches what to keep.
const CACHE: [&str; 15] = [
    "ca",
    "cg",
    "cs",
    "cv",
    "lu",
    "wb",
    "wt",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

fn space(m: &mut Modifiers<'_>) -> Space {
    m.choose(&[
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("param", Space::Param),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
        ("const", Space::Const),
    ])
    .unwrap_or(Space::Generic)
}

/// `.L2::cache_hint` and its policy operand, the last one.
fn policy<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<usize> {
    if !m.take("L2::cache_hint") {
        return Ok(i.operands.len());
    }
    match i.operands.last() {
        Some(last) => b.src(last, Type::B64)?,
        None => return Err(m.refuse("a cache hint needs its policy as the last operand")),
    };
    Ok(i.operands.len() - 1)
}

const STORABLE: [Type; 14] = [
    Type::B8,
    Type::B16,
    Type::B32,
    Type::B64,
    Type::U8,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S8,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::F32,
    Type::F64,
];

/// `ld`, `ldu`, `st`.
pub(super) fn load_store<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let store = i.opcode == "st";
    let strong = if store { ("release", Order::Release) } else { ("acquire", Order::Acquire) };
    let order = m.choose(&[("weak", Order::Weak), ("volatile", Order::Volatile), ("relaxed", Order::Relaxed), strong]);
    let order = order.unwrap_or_default();
    let scope = if matches!(order, Order::Weak | Order::Volatile) { Scope::default() } else { m.need(&SCOPES)? };
    let space = space(m);
    let nc = i.opcode == "ld" && m.take("nc");
    if nc && (space != Space::Global || order != Order::Weak) {
        return Err(m.refuse("ld.nc is weak and in .global space"));
    }
    let hints: &[&str] = if i.opcode == "ldu" { &[] } else { &CACHE };
    m.ignore(hints);
    let count = m.choose(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    let ty = m.ty(&STORABLE)?;
    if ty.bytes() * count as u32 > 16 {
        return Err(m.refuse(format!("a vector of {count} {} is wider than 16 bytes", name(ty))));
    }
    if i.operands.iter().any(|o| matches!(o.kind, OperandKind::Vector(_))) != (count > 1) && count == 1 {
        return Err(m.refuse("a vector operand needs .v2 or .v4"));
    }
    let given = policy(b, i, m)?;
    let [first, second] = &i.operands[..given] else {
        return Err(m.refuse(format!("'{}' takes 2 operands here, found {given}", i.opcode)));
    };
    if !store {
        if space == Space::Const && order != Order::Weak {
            return Err(m.refuse("constant memory is loaded weakly"));
        }
        let (dst, width) = b.wide_vector(first, count, ty)?;
        let address = b.address(second, space)?;
        let read_only = nc || i.opcode == "ldu";
        return Ok(Op::Load(Box::new(Load {
            space,
            ty,
            count: count as u8,
            width,
            dst,
            address,
            order,
            scope,
            read_only,
        })));
    }
    if space == Space::Const {
        return Err(m.refuse("constant memory cannot be stored to"));
    }
    let address = b.address(first, space)?;
    let (src, width) = stored(b, second, count, ty)?;
    Ok(Op::Store(Box::new(Store { space, ty, count: count as u8, width, src, address, order, scope })))
}

/// What a store stores; constants take the width of the registers beside them.
fn stored<'a>(b: &mut Body<'_, 'a>, op: &Operand<'a>, count: usize, ty: Type) -> Lowered<([Src; 4], Width)> {
    let mut src = [Src::Imm(0); 4];
    let mut width = None;
    for (slot, element) in src.iter_mut().zip(b.elements(op, count)?) {
        let (value, w) = b.wide_src(&element, ty)?;
        if matches!(value, Src::Reg(_)) && *width.get_or_insert(w) != w {
            return Err(Refusal::new(op.at, "the registers of a vector have one width"));
        }
        *slot = value;
    }
    Ok((src, width.unwrap_or(Width::of_bits(ty.bits()))))
}

/// `atom` and `red`.
pub(super) fn atomic<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    use Type::*;
    let red = i.opcode == "red";
    let order = if red {
        m.choose(&[("relaxed", Order::Relaxed), ("release", Order::Release)])
    } else {
        m.choose(&[
            ("relaxed", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcqRel),
        ])
    };
    let scope = m.choose(&SCOPES).unwrap_or_default();
    let space = space(m);
    if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
        return Err(m.refuse("atomics work on .global and .shared memory"));
    }
    let op = m.need(&[
        ("add", AtomOp::Add),
        ("min", AtomOp::Min),
        ("max", AtomOp::Max),
        ("and", AtomOp::And),
        ("or", AtomOp::Or),
        ("xor", AtomOp::Xor),
        ("inc", AtomOp::Inc),
        ("dec", AtomOp::Dec),
        ("exch", AtomOp::Exch),
        ("cas", AtomOp::Cas),
    ])?;
    if red && matches!(op, AtomOp::Exch | AtomOp::Cas) {
        return Err(m.refuse("'red' neither exchanges nor compares"));
    }
    let ty = m.ty(match op {
        AtomOp::Add => &[U32, S32, U64, F32, F64, F16, F16x2, BF16, BF16x2],
        AtomOp::Min | AtomOp::Max => &[U32, S32, U64, S64, F16, F16x2, BF16, BF16x2],
        AtomOp::And | AtomOp::Or | AtomOp::Xor | AtomOp::Exch => &[B32, B64],
        AtomOp::Inc | AtomOp::Dec => &[U32],
        AtomOp::Cas => &[B16, B32, B64],
    })?;
    if HALVES.contains(&ty) {
        m.expect("noftz")?;
        let newer = matches!(ty, BF16 | BF16x2) || op != AtomOp::Add;
        b.require(i, &format!("{}{}", i.opcode, name(ty)), if newer { 90 } else { 70 })?;
    }
    let given = policy(b, i, m)?;
    let wanted = 2 + usize::from(!red) + usize::from(op == AtomOp::Cas);
    if given != wanted {
        return Err(m.refuse(format!("'{}' takes {wanted} operands here, found {given}", i.opcode)));
    }
    let (dst, rest) =
        if red { (None, &i.operands[..]) } else { (b.dst_or_sink(&i.operands[0], ty)?, &i.operands[1..]) };
    let address = b.address(&rest[0], space)?;
    let value = b.src(&rest[1], ty)?;
    let c = if op == AtomOp::Cas { Some(b.src(&rest[2], ty)?) } else { None };
    let order = order.unwrap_or(Order::Relaxed);
    Ok(Op::Atom(Box::new(Atom { space, op, ty, dst, address, b: value, c, order, scope })))
}

/// Instructions that advise caches: checked, then nothing; a policy is a number that nothing reads.
pub(super) fn hint<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    match i.opcode {
        "createpolicy" => return create_policy(b, i, m),
        "prefetchu" => {
            m.expect("L1")?;
            let [a] = exactly(i)?;
            b.address(a, Space::Generic)?;
        }
        "prefetch" => {
            let space = m.choose(&[("global", Space::Global), ("local", Space::Local)]).unwrap_or(Space::Generic);
            m.need(&[("L1", ()), ("L2", ()), ("L2::evict_last", ()), ("L2::evict_normal", ())])?;
            let [a] = exactly(i)?;
            b.address(a, space)?;
        }
        _ => {
            let space = if m.take("global") { Space::Global } else { Space::Generic };
            m.expect(if i.opcode == "discard" { "L2" } else { "L2::evict_normal" })?;
            let [a, size] = exactly(i)?;
            b.address(a, space)?;
            if b.literal(size, 128, "the size")? != 128 {
                return Err(Refusal::new(size.at, "the size is 128"));
            }
        }
    }
    Ok(Op::Nop)
}

const PRIORITIES: [(&str, ()); 4] =
    [("L2::evict_last", ()), ("L2::evict_normal", ()), ("L2::evict_first", ()), ("L2::evict_unchanged", ())];

fn create_policy<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let kind = m.need(&[("fractional", 0), ("range", 1), ("cvt", 2)])?;
    if kind == 2 {
        m.expect("L2")?;
    } else {
        m.ignore(&["global"]);
        m.need(&PRIORITIES)?;
        m.choose(&PRIORITIES);
    }
    m.ty(&[Type::B64])?;
    match kind {
        0 => between(i, 1, 2)?,
        1 => between(i, 4, 4)?,
        _ => between(i, 2, 2)?,
    }
    Ok(Op::Mov { width: Width::W64, dst: b.dst(&i.operands[0], Type::B64)?, a: Src::Imm(0) })
}

/// `cp.async` and its kin.
pub(super) fn copy_async<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    m.expect("async")?;
    b.require(i, "cp.async", 80)?;
    if m.take("commit_group") {
        let [] = exactly(i)?;
        return Ok(Op::CpAsyncCommit);
    }
    if m.take("wait_all") {
        let [] = exactly(i)?;
        return Ok(Op::CpAsyncWait { pending: None });
    }
    if m.take("wait_group") {
        let [n] = exactly(i)?;
        let pending = b.literal(n, u64::from(u32::MAX), "the number of groups")? as u32;
        return Ok(Op::CpAsyncWait { pending: Some(pending) });
    }
    if m.take("mbarrier") {
        m.expect("arrive")?;
        let no_increment = m.take("noinc");
        let space = mbarrier_space(m);
        m.ty(&[Type::B64])?;
        let [a] = exactly(i)?;
        let address = Some(b.address(a, space)?);
        return Ok(Op::Mbarrier { space, address, op: Mbarrier::CopyArrive { no_increment } });
    }
    let through_l2 = m.need(&[("ca", false), ("cg", true)])?;
    m.need(&[("shared", ()), ("shared::cta", ())])?;
    m.expect("global")?;
    m.ignore(&["L2::64B", "L2::128B", "L2::256B"]);
    let given = policy(b, i, m)?;
    if !(3..=4).contains(&given) {
        return Err(m.refuse(format!("'cp.async' takes 3 or 4 operands, found {given}")));
    }
    let dst: Address = b.address(&i.operands[0], Space::Shared)?;
    let src = b.address(&i.operands[1], Space::Global)?;
    let size = match b.literal(&i.operands[2], 16, "the size")? {
        16 => 16,
        size @ (4 | 8) if !through_l2 => size as u8,
        _ => return Err(Refusal::new(i.operands[2].at, "the size is 4, 8 or 16, with .cg 16")),
    };
    let (mut src_size, mut ignore_src) = (None, None);
    if let Some(fourth) = i.operands[..given].get(3) {
        let is_predicate = match &fourth.kind {
            OperandKind::Not(_) => true,
            _ => b.register(fourth)?.is_some_and(|r| r.ty == Type::Pred),
        };
        if is_predicate {
            ignore_src = Some(b.predicate(fourth)?);
        } else {
            src_size = Some(b.src(fourth, Type::U32)?);
        }
    }
    Ok(Op::CpAsync(Box::new(CpAsync { size, dst, src, src_size, ignore_src })))
}

/// `mbarrier` objects live in shared memory.
pub(super) fn mbarrier_space(m: &mut Modifiers<'_>) -> Space {
    m.choose(&[("shared", Space::Shared), ("shared::cta", Space::Shared)]).unwrap_or(Space::Generic)
}
