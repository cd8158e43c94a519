//! Conversions, moves and addresses.

use super::*;
use crate::lower::names::Entity;
use crate::lower::operand::special;
use crate::lower::types::{is_integer, name};
use crate::program::{Class, Cvt, Reg, Round, Space, Special, Src, Width};

/// `cvt`, `cvt.pack`.
pub(super) fn cvt<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    if m.take("pack") {
        return pack(b, i, m);
    }
    let round = m.choose(&[
        ("rni", Round::IntNear),
        ("rzi", Round::IntZero),
        ("rmi", Round::IntDown),
        ("rpi", Round::IntUp),
        ("rna", Round::NearAway),
    ]);
    let round = round.or_else(|| m.round());
    let relu = m.take("relu");
    let (ftz, sat) = (m.take("ftz"), m.take("sat"));
    use Type::*;
    let any = [U8, U16, U32, U64, S8, S16, S32, S64, BF16, F16, F32, F64];
    let to = m.ty(&[U8, U16, U32, U64, S8, S16, S32, S64, BF16, F16, F32, F64, TF32, F16x2, BF16x2])?;
    let from = m.ty(&any)?;
    if ftz && to != F32 && from != F32 {
        return Err(m.refuse(".ftz applies where one type is .f32"));
    }
    if matches!(to, F16x2 | BF16x2) {
        return pair(b, i, m, to, from, round, relu, ftz || sat);
    }
    check_round(m, to, from, round, relu)?;
    if to == BF16 && from == F32 {
        b.require(i, "cvt.bf16.f32", 80)?;
    } else if to == BF16 || from == BF16 {
        b.require(i, "cvt of .bf16", 90)?;
    }
    if sat && !to.float() && !from.float() && holds(to, from) {
        return Err(m.refuse(format!(".sat: every {} fits {}", name(from), name(to))));
    }
    if sat && matches!(to, TF32 | BF16) {
        return Err(m.refuse(format!(".sat does not apply to {}", name(to))));
    }
    let [d, x] = exactly(i)?;
    let (dst, to_width) = b.wide_dst(d, if to == TF32 { B32 } else { to })?;
    let (a, from_width) = match special_register(b, x)? {
        Some(special) => {
            let ty = if special.width() == Width::W64 { U64 } else { U32 };
            let reg = b.temporary(ty, x.at)?;
            b.emit(Op::MovSpecial { width: special.width(), dst: reg, special }, None, i.at.line);
            (Src::Reg(reg), special.width())
        }
        None => b.wide_src(x, from)?,
    };
    Ok(Op::Cvt(Cvt { to, from, to_width, from_width, round, ftz, sat, relu, dst, a }))
}

/// Whether an integer type holds every value of another.
fn holds(to: Type, from: Type) -> bool {
    match (to.signed(), from.signed()) {
        (true, false) => to.bits() > from.bits(),
        (false, true) => false,
        _ => to.bits() >= from.bits(),
    }
}

/// Which conversions need a rounding, and which may not have one.
fn check_round(m: &Modifiers<'_>, to: Type, from: Type, round: Option<Round>, relu: bool) -> Lowered<()> {
    use Type::*;
    let integral = matches!(round, Some(Round::IntNear | Round::IntZero | Round::IntDown | Round::IntUp));
    let refuse = |what: &str| Err(m.refuse(format!("cvt{}{}: {what}", name(to), name(from))));
    if to == TF32 {
        let exact = from == F32 && round == Some(Round::NearAway);
        return if exact && !relu { Ok(()) } else { refuse("only cvt.rna.tf32.f32 exists") };
    }
    if round == Some(Round::NearAway) {
        return refuse(".rna rounds to .tf32 alone");
    }
    if relu && !(from == F32 && matches!(to, F16 | BF16) && matches!(round, Some(Round::Near | Round::Zero))) {
        return refuse(".relu goes with .rn or .rz from .f32 to a half type");
    }
    let size = |ty| match ty {
        BF16 | F16 => 16,
        _ => Type::bits(ty),
    };
    match (to.float(), from.float()) {
        (false, false) if round.is_some() => refuse("integers convert without rounding"),
        (false, true) if !integral => refuse("needs an integer rounding: .rni, .rzi, .rmi or .rpi"),
        (true, false) if round.is_none() || integral => refuse("needs a rounding: .rn, .rz, .rm or .rp"),
        (true, true) if size(to) < size(from) && (round.is_none() || integral) => {
            refuse("needs a rounding: .rn, .rz, .rm or .rp")
        }
        (true, true) if size(to) > size(from) && round.is_some() => refuse("is exact and takes no rounding"),
        (true, true) if to == from && round.is_some() && !integral => refuse("takes an integer rounding or none"),
        _ => Ok(()),
    }
}

fn pair<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &Modifiers<'_>,
    to: Type,
    from: Type,
    round: Option<Round>,
    relu: bool,
    other: bool,
) -> Lowered<Op> {
    b.require(i, &format!("cvt{}", name(to)), 80)?;
    let round = match round {
        Some(round @ (Round::Near | Round::Zero)) if from == Type::F32 && !other => round,
        _ => return Err(m.refuse("two halves come from .f32 with .rn or .rz, and .relu at most")),
    };
    let [d, x, y] = exactly(i)?;
    Ok(Op::CvtPair { to, round, relu, dst: b.dst(d, to)?, a: b.src(x, Type::F32)?, b: b.src(y, Type::F32)? })
}

/// `cvt.pack.sat.to.s32[.b32] d, a, b[, c]`.
fn pack<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    m.expect("sat")?;
    let two_bits = m.choose(&[("u2", Type::U4), ("s2", Type::S4)]);
    let to = match two_bits {
        Some(to) => to,
        None => m.ty(&[Type::U16, Type::S16, Type::U8, Type::S8, Type::U4, Type::S4])?,
    };
    m.ty(&[Type::S32])?;
    let third = m.maybe_type();
    between(i, 3, 4)?;
    if third.is_some() != (i.operands.len() == 4) || third.is_some_and(|t| t != Type::B32) {
        return Err(m.refuse("a third source goes with .b32 at the end"));
    }
    if third.is_some() == matches!(to, Type::U16 | Type::S16) {
        return Err(m.refuse("16-bit results take two sources, narrower ones three"));
    }
    let o = &i.operands;
    let c = o.get(3).map(|c| b.src(c, Type::B32)).transpose()?;
    let (dst, a, y) = (b.dst(&o[0], Type::B32)?, b.src(&o[1], Type::S32)?, b.src(&o[2], Type::S32)?);
    Ok(Op::CvtPack { to, two_bits: two_bits.is_some(), dst, a, b: y, c })
}

/// The special register that an operand names, unless the text declares the name itself.
fn special_register(b: &mut Body<'_, '_>, op: &Operand<'_>) -> Lowered<Option<Special>> {
    let OperandKind::Name { name, member, offset: 0, index: None } = op.kind else { return Ok(None) };
    Ok(if name.starts_with('%') && !b.declared(name) { special(name, member) } else { None })
}

/// `mov`: registers, constants, addresses, special registers, and vectors to and from scalars.
pub(super) fn mov<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    use Type::*;
    let ty = m.ty(&[Pred, B16, B32, B64, U16, U32, U64, S16, S32, S64, F32, F64, F16, BF16, F16x2, BF16x2])?;
    let [d, x] = exactly(i)?;
    let width = Width::of_bits(ty.bits());
    if ty == Pred {
        return Ok(Op::PredMov { dst: b.dst(d, ty)?, a: b.predicate(x)? });
    }
    if let OperandKind::Vector(parts) = &d.kind {
        let part = part(m, ty, parts.len())?;
        let (dst, _) = vector_dst(b, parts, part)?;
        return Ok(Op::Unpack { width, part: Width::of_bits(part.bits()), dst, a: b.src(x, ty)? });
    }
    if let OperandKind::Vector(elements) = &x.kind {
        let part = part(m, ty, elements.len())?;
        let mut parts = [Src::Imm(0); 4];
        for (slot, element) in parts.iter_mut().zip(elements) {
            *slot = b.src(element, part)?;
        }
        return Ok(Op::Pack { width, part: Width::of_bits(part.bits()), dst: b.dst(d, ty)?, parts });
    }
    let dst = b.dst(d, ty)?;
    if let Some(special) = special_register(b, x)? {
        if ty.float()
            || special.width() == Width::W64 && width != Width::W64
            || width == Width::W64 && special.width() != width
        {
            return Err(m.refuse(format!("this special register has {} bits", special.width().bits())));
        }
        return Ok(Op::MovSpecial { width, dst, special });
    }
    if let OperandKind::Name { name, .. } = x.kind
        && let Entity::Label(_) = b.find(name, x.at)?
    {
        return Err(Refusal::new(x.at, "the address of a label cannot be taken"));
    }
    Ok(Op::Mov { width, dst, a: b.src(x, ty)? })
}

/// The type of one of `count` equal parts.
fn part(m: &Modifiers<'_>, ty: Type, count: usize) -> Lowered<Type> {
    match (ty, count) {
        (Type::B16, 2) | (Type::B32, 4) => Ok(Type::B8),
        (Type::B32, 2) | (Type::B64, 4) => Ok(Type::B16),
        (Type::B64, 2) => Ok(Type::B32),
        _ => Err(m.refuse(format!("{} does not part into {count}", name(ty)))),
    }
}

fn vector_dst<'a>(b: &mut Body<'_, 'a>, parts: &[Operand<'a>], part: Type) -> Lowered<([Option<Reg>; 4], Class)> {
    let mut dst = [None; 4];
    for (slot, element) in dst.iter_mut().zip(parts) {
        *slot = b.dst_or_sink(element, part)?;
    }
    Ok((dst, part.class()))
}

/// `cvta` and `isspacep`.
pub(super) fn address<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let to_specific = i.opcode == "cvta" && m.take("to");
    let space = m.need(&[
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("const", Space::Const),
        ("param", Space::Param),
    ])?;
    let [d, x] = exactly(i)?;
    if i.opcode == "isspacep" {
        let register = b.register(x)?.filter(|r| !r.ty.float() && matches!(r.ty.bits(), 32 | 64));
        let register =
            register.ok_or_else(|| Refusal::new(x.at, "an address in a 32- or 64-bit register is wanted"))?;
        let (wide, a) = (register.ty.bits() == 64, Src::Reg(register.reg));
        return Ok(Op::Isspacep { space, wide, dst: b.dst(d, Type::Pred)?, a });
    }
    let ty = m.ty(&[Type::U64, Type::U32])?;
    if let OperandKind::Name { name, .. } = x.kind
        && let Entity::Variable(variable) = b.find(name, x.at)?
        && (variable.space != space || to_specific)
    {
        return Err(Refusal::new(x.at, format!("'{name}' is in {:?} space", variable.space)));
    }
    debug_assert!(is_integer(ty));
    Ok(Op::Cvta { space, to_generic: !to_specific, wide: ty == Type::U64, dst: b.dst(d, ty)?, a: b.src(x, ty)? })
}
