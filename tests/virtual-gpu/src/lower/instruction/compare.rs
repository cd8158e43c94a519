//! Comparisons and selections.

use super::*;
use crate::program::{BoolOp, Compare, Comparison, Width};

/// `setp`, `set`, `selp`, `slct`.
pub(super) fn lower<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    match i.opcode {
        "setp" => setp(b, i, m),
        "set" => set(b, i, m),
        "selp" => {
            let ty = m.ty(&anything())?;
            let [d, x, y, p] = exactly(i)?;
            let width = Width::of_bits(ty.bits());
            Ok(Op::Selp { width, dst: b.dst(d, ty)?, a: b.src(x, ty)?, b: b.src(y, ty)?, p: b.predicate(p)? })
        }
        _ => {
            let ty = m.ty(&anything())?;
            let on = m.ty(&[Type::S32, Type::F32])?;
            let ftz = on == Type::F32 && m.take("ftz");
            let [d, x, y, z] = exactly(i)?;
            let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, on)?);
            Ok(Op::Slct { width: Width::of_bits(ty.bits()), on, ftz, dst, a, b: y, c })
        }
    }
}

fn anything() -> Vec<Type> {
    BITS.into_iter().chain(INTEGERS).chain([Type::F32, Type::F64]).collect()
}

fn comparable() -> Vec<Type> {
    anything().into_iter().chain(HALVES).collect()
}

/// The comparison, checked against the operands' type.
fn compare(m: &mut Modifiers<'_>) -> Lowered<Compare> {
    m.need(&[
        ("eq", Compare::Eq),
        ("ne", Compare::Ne),
        ("lt", Compare::Lt),
        ("le", Compare::Le),
        ("gt", Compare::Gt),
        ("ge", Compare::Ge),
        ("equ", Compare::Equ),
        ("neu", Compare::Neu),
        ("ltu", Compare::Ltu),
        ("leu", Compare::Leu),
        ("gtu", Compare::Gtu),
        ("geu", Compare::Geu),
        ("num", Compare::Num),
        ("nan", Compare::Nan),
    ])
}

/// `.lo .ls .hi .hs`, which only unsigned types have.
fn unsigned_compare(m: &mut Modifiers<'_>) -> Option<Compare> {
    m.choose(&[("lo", Compare::Lt), ("ls", Compare::Le), ("hi", Compare::Gt), ("hs", Compare::Ge)])
}

struct Parts {
    compare: Compare,
    unsigned: bool,
    combine: Option<BoolOp>,
}

fn parts(m: &mut Modifiers<'_>) -> Lowered<Parts> {
    let unsigned = unsigned_compare(m);
    let compare = match unsigned {
        Some(compare) => compare,
        None => compare(m)?,
    };
    let combine = m.choose(&[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)]);
    Ok(Parts { compare, unsigned: unsigned.is_some(), combine })
}

fn check(m: &Modifiers<'_>, parts: &Parts, ty: Type) -> Lowered<()> {
    use Compare::*;
    let unordered = matches!(parts.compare, Equ | Neu | Ltu | Leu | Gtu | Geu | Num | Nan);
    let equality = matches!(parts.compare, Eq | Ne);
    let allowed = match ty {
        Type::B16 | Type::B32 | Type::B64 => equality,
        _ if ty.float() => !parts.unsigned,
        _ if parts.unsigned => !ty.signed(),
        _ => !unordered,
    };
    if allowed {
        Ok(())
    } else {
        Err(m.refuse(format!("this comparison does not apply to {}", crate::lower::types::name(ty))))
    }
}

fn setp<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let parts = parts(m)?;
    let ty = m.ty(&comparable())?;
    check(m, &parts, ty)?;
    if matches!(ty, Type::BF16 | Type::BF16x2) {
        b.require(i, "setp.bf16", 90)?;
    }
    let ftz = matches!(ty, Type::F32 | Type::F16 | Type::F16x2) && m.take("ftz");
    let (p, x, y, combine) = operands(b, i, m, parts.combine)?;
    let (dst, other) = b.dst_pair(p, Type::Pred)?;
    let two = matches!(p.kind, OperandKind::Pair(..));
    if two && matches!(ty, Type::F16 | Type::BF16) {
        return Err(m.refuse("a comparison of halves writes one predicate"));
    }
    if matches!(ty, Type::F16x2 | Type::BF16x2) && !two {
        return Err(m.refuse("a comparison of pairs writes two predicates, p|q"));
    }
    let comparison = Comparison { compare: parts.compare, ty, ftz, a: b.src(x, ty)?, b: b.src(y, ty)?, combine };
    Ok(Op::Setp { dst, other, comparison })
}

type Operands<'i, 'a> = (&'i Operand<'a>, &'i Operand<'a>, &'i Operand<'a>, Option<(BoolOp, PredSrc)>);

/// d, a, b and, with a Boolean operation, the predicate it combines with.
fn operands<'i, 'a>(
    b: &mut Body<'_, 'a>,
    i: &'i Instruction<'a>,
    m: &Modifiers<'_>,
    combine: Option<BoolOp>,
) -> Lowered<Operands<'i, 'a>> {
    match (i.operands.as_slice(), combine) {
        ([d, x, y], None) => Ok((d, x, y, None)),
        ([d, x, y, c], Some(op)) => Ok((d, x, y, Some((op, b.predicate(c)?)))),
        ([_, _, _], Some(_)) => Err(m.refuse("a Boolean operation needs a fourth operand, a predicate")),
        _ => Err(m.refuse(format!("'{}' takes 3 operands, or 4 with a Boolean operation", i.opcode))),
    }
}

fn set<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let parts = parts(m)?;
    let plain = [Type::U32, Type::S32, Type::F32];
    let half = [Type::U16, Type::S16, Type::F16, Type::F16x2, Type::BF16, Type::BF16x2];
    let to = m.ty(&plain.into_iter().chain(half).collect::<Vec<_>>())?;
    let ty = m.ty(&comparable())?;
    check(m, &parts, ty)?;
    let pairs = |ty| matches!(ty, Type::F16x2 | Type::BF16x2);
    let fits = match ty {
        Type::F16x2 => matches!(to, Type::F16x2 | Type::U32 | Type::S32),
        Type::BF16x2 => matches!(to, Type::BF16x2 | Type::U32 | Type::S32),
        Type::F16 | Type::BF16 => !pairs(to) && to != Type::F32,
        _ => plain.contains(&to) || to == Type::F16 || to == Type::BF16,
    };
    if !fits {
        return Err(m.refuse("these two types do not go together on 'set'"));
    }
    if matches!(ty, Type::BF16 | Type::BF16x2) || matches!(to, Type::BF16 | Type::BF16x2) {
        b.require(i, "set.bf16", 90)?;
    }
    let ftz = matches!(ty, Type::F32 | Type::F16 | Type::F16x2) && m.take("ftz");
    let (d, x, y, combine) = operands(b, i, m, parts.combine)?;
    let comparison = Comparison { compare: parts.compare, ty, ftz, a: b.src(x, ty)?, b: b.src(y, ty)?, combine };
    Ok(Op::Set { to, dst: b.dst(d, to)?, comparison })
}
