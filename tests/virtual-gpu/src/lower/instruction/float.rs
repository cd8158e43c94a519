//! Floating-point arithmetic, single, double and half.

use super::*;
use crate::program::{FloatMode, FloatOp1, FloatOp2, Round, Testp};

const SINGLE_DOUBLE: [Type; 2] = [Type::F32, Type::F64];

fn all() -> Vec<Type> {
    SINGLE_DOUBLE.into_iter().chain(HALVES).collect()
}

fn is_bf16(ty: Type) -> bool {
    matches!(ty, Type::BF16 | Type::BF16x2)
}

fn is_f16(ty: Type) -> bool {
    matches!(ty, Type::F16 | Type::F16x2)
}

/// `add`, `sub`, `mul`, `mad`, `fma`, `div`, `abs`, `neg`, `min`, `max`.
pub(super) fn arithmetic<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    match i.opcode {
        "div" => return divide(b, i, m),
        "abs" | "neg" => {
            let ty = m.ty(&all())?;
            let ftz = matches!(ty, Type::F32 | Type::F16 | Type::F16x2) && m.take("ftz");
            let op = if i.opcode == "abs" { FloatOp1::Abs } else { FloatOp1::Neg };
            let [d, x] = exactly(i)?;
            let mode = FloatMode { ftz, ..FloatMode::default() };
            return Ok(Op::Float1 { op, ty, mode, dst: b.dst(d, ty)?, a: b.src(x, ty)? });
        }
        "min" | "max" => {
            let ty = m.ty(&all())?;
            let mode = FloatMode {
                ftz: !matches!(ty, Type::F64) && !is_bf16(ty) && m.take("ftz"),
                nan: ty != Type::F64 && m.take("NaN"),
                xorsign_abs: ty != Type::F64 && m.take("xorsign") && m.take("abs"),
                ..FloatMode::default()
            };
            if mode.xorsign_abs {
                b.require(i, ".xorsign.abs", 86)?;
            }
            let op = if i.opcode == "min" { FloatOp2::Min } else { FloatOp2::Max };
            return two(b, i, op, ty, mode);
        }
        _ => {}
    }
    let fused = matches!(i.opcode, "fma" | "mad");
    let ty = m.ty(if i.opcode == "mad" { &SINGLE_DOUBLE } else { &HALF_AND_UP })?;
    if is_bf16(ty) {
        b.require(i, &format!("{}.bf16", i.opcode), if fused { 80 } else { 90 })?;
    }
    let half = is_f16(ty) || is_bf16(ty);
    let round = match (half, fused) {
        (true, true) => m.need(&[("rn", Round::Near)])?,
        (true, false) => m.choose(&[("rn", Round::Near)]).unwrap_or_default(),
        (false, true) => m.need_round()?,
        (false, false) => m.round().unwrap_or_default(),
    };
    let mode = FloatMode {
        round,
        ftz: (ty == Type::F32 || is_f16(ty)) && m.take("ftz"),
        sat: (ty == Type::F32 || is_f16(ty)) && m.take("sat"),
        relu: i.opcode == "fma" && half && m.take("relu"),
        ..FloatMode::default()
    };
    if mode.sat && mode.relu {
        return Err(m.refuse(".sat and .relu exclude each other"));
    }
    if fused {
        let [d, x, y, z] = exactly(i)?;
        let (dst, a, y, c) = (b.dst(d, ty)?, b.src(x, ty)?, b.src(y, ty)?, b.src(z, ty)?);
        return Ok(Op::Fma { ty, mode, dst, a, b: y, c });
    }
    let op = match i.opcode {
        "add" => FloatOp2::Add,
        "sub" => FloatOp2::Sub,
        _ => FloatOp2::Mul,
    };
    two(b, i, op, ty, mode)
}

const HALF_AND_UP: [Type; 6] = [Type::F32, Type::F64, Type::F16, Type::F16x2, Type::BF16, Type::BF16x2];

fn two<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, op: FloatOp2, ty: Type, mode: FloatMode) -> Lowered<Op> {
    let [d, x, y] = exactly(i)?;
    Ok(Op::Float2 { op, ty, mode, dst: b.dst(d, ty)?, a: b.src(x, ty)?, b: b.src(y, ty)? })
}

/// How exact, and how rounded: `.approx`, `.full` or a rounding; one must be named.
fn precision(m: &mut Modifiers<'_>, ty: Type, full: bool) -> Lowered<FloatMode> {
    let mut mode = FloatMode::default();
    if ty == Type::F32 && m.take("approx") {
        mode.approx = true;
    } else if ty == Type::F32 && full && m.take("full") {
        mode.full = true;
    } else {
        mode.round = m.need_round()?;
    }
    mode.ftz = ty == Type::F32 && m.take("ftz");
    Ok(mode)
}

fn divide<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let ty = m.ty(&SINGLE_DOUBLE)?;
    let mode = precision(m, ty, true)?;
    two(b, i, FloatOp2::Div, ty, mode)
}

/// `rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `lg2`, `ex2`, `tanh`.
pub(super) fn unary<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let (op, types): (FloatOp1, &[Type]) = match i.opcode {
        "rcp" => (FloatOp1::Rcp, &SINGLE_DOUBLE),
        "sqrt" => (FloatOp1::Sqrt, &SINGLE_DOUBLE),
        "rsqrt" => (FloatOp1::Rsqrt, &SINGLE_DOUBLE),
        "sin" => (FloatOp1::Sin, &[Type::F32]),
        "cos" => (FloatOp1::Cos, &[Type::F32]),
        "lg2" => (FloatOp1::Lg2, &[Type::F32]),
        "ex2" => (FloatOp1::Ex2, &[Type::F32, Type::F16, Type::F16x2, Type::BF16, Type::BF16x2]),
        _ => (FloatOp1::Tanh, &[Type::F32, Type::F16, Type::F16x2, Type::BF16, Type::BF16x2]),
    };
    let ty = m.ty(types)?;
    if is_bf16(ty) {
        b.require(i, &format!("{}.bf16", i.opcode), 90)?;
    } else if is_f16(ty) || op == FloatOp1::Tanh {
        b.require(i, &format!("{}{}", i.opcode, crate::lower::types::name(ty)), 75)?;
    }
    let mode = match op {
        FloatOp1::Rcp if ty == Type::F64 && m.take("approx") => {
            m.expect("ftz")?;
            FloatMode { approx: true, ftz: true, ..FloatMode::default() }
        }
        FloatOp1::Rcp | FloatOp1::Sqrt => precision(m, ty, false)?,
        _ => {
            m.expect("approx")?;
            let ftz = match (op, ty) {
                (FloatOp1::Tanh, _) => false,
                (FloatOp1::Ex2, Type::F16 | Type::F16x2) => false,
                (FloatOp1::Ex2, Type::BF16 | Type::BF16x2) => m.expect("ftz").map(|()| true)?,
                _ => m.take("ftz"),
            };
            FloatMode { approx: true, ftz, ..FloatMode::default() }
        }
    };
    let [d, x] = exactly(i)?;
    Ok(Op::Float1 { op, ty, mode, dst: b.dst(d, ty)?, a: b.src(x, ty)? })
}

/// `copysign` and `testp`.
pub(super) fn sign<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let ty = m.ty(&SINGLE_DOUBLE)?;
    if i.opcode == "copysign" {
        return two(b, i, FloatOp2::CopySign, ty, FloatMode::default());
    }
    let test = m.need(&[
        ("finite", Testp::Finite),
        ("infinite", Testp::Infinite),
        ("number", Testp::Number),
        ("notanumber", Testp::NotANumber),
        ("normal", Testp::Normal),
        ("subnormal", Testp::Subnormal),
    ])?;
    let [p, x] = exactly(i)?;
    Ok(Op::Testp { test, ty, dst: b.dst(p, Type::Pred)?, a: b.src(x, ty)? })
}
