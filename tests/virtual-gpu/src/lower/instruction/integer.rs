//! Integer arithmetic, bit fields, logic and shifts.

use super::*;
use crate::program::{BoolOp, IntOp1, IntOp2, IntOp3, Prmt, Src};

fn two<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, op: IntOp2, ty: Type) -> Lowered<Op> {
    let [d, x, y] = exactly(i)?;
    Ok(Op::Int2 { op, ty, dst: b.dst(d, ty)?, a: b.src(x, ty)?, b: b.src(y, ty)? })
}

fn one<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, op: IntOp1, ty: Type, result: Type) -> Lowered<Op> {
    let [d, x] = exactly(i)?;
    Ok(Op::Int1 { op, ty, dst: b.dst(d, result)?, a: b.src(x, ty)? })
}

/// `add`, `sub` and their carries.
pub(super) fn add<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let subtract = i.opcode.starts_with("sub");
    let carry_in = i.opcode.ends_with('c');
    let carry_out = m.take("cc");
    if carry_in || carry_out {
        let ty = m.ty(&[Type::U32, Type::S32, Type::U64, Type::S64])?;
        let [d, x, y] = exactly(i)?;
        let (dst, a, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?);
        return Ok(Op::Carry { subtract, carry_in, carry_out, ty, dst, a, b: c });
    }
    let saturate = m.take("sat");
    let packed = b.module.target >= 90 && !subtract && !saturate;
    let ty = match m.peek_type() {
        Some(Type::U16x2 | Type::S16x2) if packed => m.ty(&[Type::U16x2, Type::S16x2])?,
        _ if saturate => m.ty(&[Type::S32])?,
        _ => m.ty(&INTEGERS)?,
    };
    let op = match (subtract, saturate) {
        (false, false) => IntOp2::Add,
        (false, true) => IntOp2::AddSat,
        (true, false) => IntOp2::Sub,
        (true, true) => IntOp2::SubSat,
    };
    two(b, i, op, ty)
}

fn twice(ty: Type) -> Type {
    match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        _ => Type::S64,
    }
}

const NARROW: [Type; 4] = [Type::U16, Type::S16, Type::U32, Type::S32];

/// `mul` and `mul24`.
pub(super) fn multiply<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    if i.opcode == "mul24" {
        let op = m.need(&[("lo", IntOp2::Mul24Lo), ("hi", IntOp2::Mul24Hi)])?;
        let ty = m.ty(&[Type::U32, Type::S32])?;
        return two(b, i, op, ty);
    }
    let op = m.need(&[("lo", IntOp2::MulLo), ("hi", IntOp2::MulHi), ("wide", IntOp2::MulWide)])?;
    let ty = m.ty(if op == IntOp2::MulWide { &NARROW } else { &INTEGERS })?;
    if op != IntOp2::MulWide {
        return two(b, i, op, ty);
    }
    let [d, x, y] = exactly(i)?;
    Ok(Op::Int2 { op, ty, dst: b.dst(d, twice(ty))?, a: b.src(x, ty)?, b: b.src(y, ty)? })
}

/// `mad`, `mad24` and the carries of `mad`.
pub(super) fn multiply_add<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let [d, x, y, z] = exactly(i)?;
    let carry_in = i.opcode == "madc";
    let carry_out = i.opcode != "mad24" && m.take("cc");
    if carry_in || carry_out {
        let high = m.need(&[("lo", false), ("hi", true)])?;
        let ty = m.ty(&[Type::U32, Type::S32, Type::U64, Type::S64])?;
        let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, ty)?);
        return Ok(Op::MadCarry { high, carry_in, carry_out, ty, dst, a, b: y, c });
    }
    let (op, ty) = if i.opcode == "mad24" {
        let high = m.need(&[("lo", false), ("hi", true)])?;
        match (high, high && m.take("sat")) {
            (false, _) => (IntOp3::Mad24Lo, m.ty(&[Type::U32, Type::S32])?),
            (true, false) => (IntOp3::Mad24Hi, m.ty(&[Type::U32, Type::S32])?),
            (true, true) => (IntOp3::Mad24HiSat, m.ty(&[Type::S32])?),
        }
    } else {
        match m.need(&[("lo", IntOp3::MadLo), ("hi", IntOp3::MadHi), ("wide", IntOp3::MadWide)])? {
            IntOp3::MadWide => (IntOp3::MadWide, m.ty(&NARROW)?),
            IntOp3::MadHi if m.take("sat") => (IntOp3::MadHiSat, m.ty(&[Type::S32])?),
            op => (op, m.ty(&INTEGERS)?),
        }
    };
    let result = if op == IntOp3::MadWide { twice(ty) } else { ty };
    let (dst, a, y, c) = (b.dst(d, result)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, result)?);
    Ok(Op::Int3 { op, ty, dst, a, b: y, c })
}

/// `div`, `rem`, `min`, `max`, `sad`, `abs`, `neg`.
pub(super) fn plain<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    match i.opcode {
        "abs" | "neg" => {
            let ty = m.ty(&[Type::S16, Type::S32, Type::S64])?;
            one(b, i, if i.opcode == "abs" { IntOp1::Abs } else { IntOp1::Neg }, ty, ty)
        }
        "sad" => {
            let ty = m.ty(&INTEGERS)?;
            let [d, x, y, z] = exactly(i)?;
            let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, ty)?);
            Ok(Op::Int3 { op: IntOp3::Sad, ty, dst, a, b: y, c })
        }
        "div" => {
            let ty = m.ty(&INTEGERS)?;
            two(b, i, IntOp2::Div, ty)
        }
        "rem" => {
            let ty = m.ty(&INTEGERS)?;
            two(b, i, IntOp2::Rem, ty)
        }
        _ => {
            let relu = m.take("relu");
            let packed = matches!(m.peek_type(), Some(Type::U16x2 | Type::S16x2));
            if relu || packed {
                b.require(i, if relu { ".relu" } else { ".u16x2" }, 90)?;
            }
            let ty = match (relu, packed) {
                (true, _) => m.ty(&[Type::S32, Type::S16x2])?,
                (false, true) => m.ty(&[Type::U16x2, Type::S16x2])?,
                _ => m.ty(&INTEGERS)?,
            };
            let op = match (i.opcode == "min", relu) {
                (true, false) => IntOp2::Min,
                (true, true) => IntOp2::MinRelu,
                (false, false) => IntOp2::Max,
                (false, true) => IntOp2::MaxRelu,
            };
            two(b, i, op, ty)
        }
    }
}

/// `popc`, `clz`, `brev`, `bfind`, `fns`, `bfe`, `bfi`, `szext`, `bmsk`.
pub(super) fn bit_fields<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let wide = [Type::U32, Type::S32, Type::U64, Type::S64];
    match i.opcode {
        "popc" | "clz" => {
            let ty = m.ty(&[Type::B32, Type::B64])?;
            one(b, i, if i.opcode == "popc" { IntOp1::Popc } else { IntOp1::Clz }, ty, Type::U32)
        }
        "brev" => {
            let ty = m.ty(&[Type::B32, Type::B64])?;
            one(b, i, IntOp1::Brev, ty, ty)
        }
        "bfind" => {
            let op = if m.take("shiftamt") { IntOp1::BfindShift } else { IntOp1::Bfind };
            let ty = m.ty(&wide)?;
            one(b, i, op, ty, Type::U32)
        }
        "fns" => {
            let ty = m.ty(&[Type::B32])?;
            let [d, x, y, z] = exactly(i)?;
            let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, Type::S32)?);
            Ok(Op::Int3 { op: IntOp3::Fns, ty, dst, a, b: y, c })
        }
        "bfe" => {
            let ty = m.ty(&wide)?;
            let [d, x, y, z] = exactly(i)?;
            let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, Type::U32)?, b.src(z, Type::U32)?);
            Ok(Op::Int3 { op: IntOp3::Bfe, ty, dst, a, b: y, c })
        }
        "bfi" => {
            let ty = m.ty(&[Type::B32, Type::B64])?;
            let [f, x, y, z, n] = exactly(i)?;
            let (dst, a, y) = (b.dst(f, ty)?, b.src(x, ty)?, b.src(y, ty)?);
            Ok(Op::Bfi { ty, dst, a, b: y, c: b.src(z, Type::U32)?, d: b.src(n, Type::U32)? })
        }
        opcode => {
            let clamp = m.need(&[("clamp", true), ("wrap", false)])?;
            let [d, x, y] = exactly(i)?;
            if opcode == "szext" {
                let ty = m.ty(&[Type::U32, Type::S32])?;
                return Ok(Op::Szext { clamp, ty, dst: b.dst(d, ty)?, a: b.src(x, ty)?, b: b.src(y, Type::U32)? });
            }
            m.ty(&[Type::B32])?;
            Ok(Op::Bmsk { clamp, dst: b.dst(d, Type::B32)?, a: b.src(x, Type::U32)?, b: b.src(y, Type::U32)? })
        }
    }
}

/// `dp4a` and `dp2a`.
pub(super) fn dot<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let high = if i.opcode == "dp2a" { m.need(&[("lo", false), ("hi", true)])? } else { false };
    let at = m.ty(&[Type::U32, Type::S32])?;
    let bt = m.ty(&[Type::U32, Type::S32])?;
    let (a_signed, b_signed) = (at.signed(), bt.signed());
    let ty = if a_signed || b_signed { Type::S32 } else { Type::U32 };
    let op = if i.opcode == "dp4a" {
        IntOp3::Dp4a { a_signed, b_signed }
    } else {
        IntOp3::Dp2a { a_signed, b_signed, high }
    };
    let [d, x, y, z] = exactly(i)?;
    let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, Type::B32)?, b.src(y, Type::B32)?, b.src(z, ty)?);
    Ok(Op::Int3 { op, ty, dst, a, b: y, c })
}

/// `vabsdiff2` and `vabsdiff4`, the video instructions that compilers write, without selectors and masks.
pub(super) fn absolute_differences<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    m: &mut Modifiers<'a>,
) -> Lowered<Op> {
    m.ty(&[Type::U32])?;
    let signed = m.ty(&[Type::U32, Type::S32])?.signed();
    if m.ty(&[Type::U32, Type::S32])?.signed() != signed {
        return Err(m.refuse(format!("'{}' takes two operands of one type", i.opcode)));
    }
    let add = m.take("add");
    let [d, x, y, z] = exactly(i)?;
    let (dst, a, y, c) = (b.dst(d, Type::U32)?, b.src(x, Type::B32)?, b.src(y, Type::B32)?, b.src(z, Type::U32)?);
    let lanes = if i.opcode == "vabsdiff4" { 4 } else { 2 };
    Ok(Op::Int3 { op: IntOp3::AbsDiff { lanes, signed, add }, ty: Type::U32, dst, a, b: y, c })
}

/// Logic, shifts and permutation.
pub(super) fn logic<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let bits_or_pred = [Type::Pred, Type::B16, Type::B32, Type::B64];
    match i.opcode {
        "and" | "or" | "xor" => {
            let ty = m.ty(&bits_or_pred)?;
            let (op, logic) = match i.opcode {
                "and" => (IntOp2::And, BoolOp::And),
                "or" => (IntOp2::Or, BoolOp::Or),
                _ => (IntOp2::Xor, BoolOp::Xor),
            };
            if ty != Type::Pred {
                return two(b, i, op, ty);
            }
            let [d, x, y] = exactly(i)?;
            Ok(Op::PredLogic { op: logic, dst: b.dst(d, ty)?, a: b.predicate(x)?, b: b.predicate(y)? })
        }
        "not" => {
            let ty = m.ty(&bits_or_pred)?;
            if ty != Type::Pred {
                return one(b, i, IntOp1::Not, ty, ty);
            }
            let [d, x] = exactly(i)?;
            let a = match b.predicate(x)? {
                PredSrc::Reg { reg, negated } => PredSrc::Reg { reg, negated: !negated },
                PredSrc::Const(value) => PredSrc::Const(!value),
            };
            Ok(Op::PredMov { dst: b.dst(d, ty)?, a })
        }
        "cnot" => {
            let ty = m.ty(&BITS)?;
            one(b, i, IntOp1::Cnot, ty, ty)
        }
        "lop3" => lop3(b, i, m),
        "shl" | "shr" => {
            let left = i.opcode == "shl";
            let any: Vec<Type> = BITS.into_iter().chain(INTEGERS).collect();
            let ty = m.ty(if left { &BITS } else { &any })?;
            let [d, x, y] = exactly(i)?;
            let op = if left { IntOp2::Shl } else { IntOp2::Shr };
            Ok(Op::Int2 { op, ty, dst: b.dst(d, ty)?, a: b.src(x, ty)?, b: b.src(y, Type::U32)? })
        }
        "shf" => {
            let left = m.need(&[("l", true), ("r", false)])?;
            let clamp = m.need(&[("clamp", true), ("wrap", false)])?;
            let ty = m.ty(&[Type::B32])?;
            let [d, x, y, z] = exactly(i)?;
            let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, Type::U32)?);
            Ok(Op::Int3 { op: IntOp3::Shf { left, clamp }, ty, dst, a, b: y, c })
        }
        _ => {
            let modes = [
                ("f4e", Prmt::F4e),
                ("b4e", Prmt::B4e),
                ("rc8", Prmt::Rc8),
                ("ecl", Prmt::Ecl),
                ("ecr", Prmt::Ecr),
                ("rc16", Prmt::Rc16),
            ];
            let mode = m.choose(&modes).unwrap_or(Prmt::Index);
            let ty = m.ty(&[Type::B32])?;
            let [d, x, y, z] = exactly(i)?;
            let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, Type::U32)?);
            Ok(Op::Int3 { op: IntOp3::Prmt(mode), ty, dst, a, b: y, c })
        }
    }
}

/// `lop3.b32`, with the predicate of `lop3.or.b32` and `lop3.and.b32` where it is asked for.
fn lop3<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let combine = m.choose(&[("or", BoolOp::Or), ("and", BoolOp::And)]);
    let ty = m.ty(&[Type::B32])?;
    between(i, 5, 6)?;
    let [d, x, y, z, table, ..] = i.operands.as_slice() else { return Err(m.refuse("'lop3' takes 5 operands")) };
    let table = b.literal(table, 255, "the table of lop3")? as u8;
    let (a, y, c) = (b.src(x, ty)?, b.src(y, ty)?, b.src(z, ty)?);
    match (combine, i.operands.get(5)) {
        (None, None) => Ok(Op::Int3 { op: IntOp3::Lop3(table), ty, dst: b.dst(d, ty)?, a, b: y, c }),
        (Some(op), Some(q)) => {
            let (dst, p) = b.dst_pair(d, ty)?;
            let p = p.ok_or_else(|| m.refuse("'lop3' with a Boolean operation writes d|p"))?;
            let sources: [Src; 3] = [a, y, c];
            Ok(Op::Lop3Pred { table, op, dst, p, sources, q: b.predicate(q)? })
        }
        _ => Err(m.refuse("a Boolean operation and a predicate operand go together on 'lop3'")),
    }
}
