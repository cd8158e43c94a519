//! `cvt` in all its pairs of types.

use super::float::{f16_to_f32, f32_to_bf16, f32_to_f16, flush};
use super::integer::{low, value};
use super::regs::{LANES, Regs};
use super::soft::{self, BF16, F16, F32, F64, Format, TF32};
use crate::program::*;

fn format(ty: Type) -> Format {
    match ty {
        Type::F16 | Type::F16x2 => F16,
        Type::BF16 | Type::BF16x2 => BF16,
        Type::TF32 => TF32,
        Type::F64 => F64,
        _ => F32,
    }
}

#[inline(always)]
pub(super) fn cvt(r: &mut Regs, m: u32, c: &Cvt) {
    // Of a register that is wider than the type, the general case takes the lower bits.
    let plain = !c.sat && !c.relu && !c.ftz && (c.from_width == Width::W64) == (c.from.bits() == 64);
    let near = c.round.is_none_or(|x| x == Round::Near);
    let (d, a) = (c.dst, c.a);
    match (c.from, c.to) {
        (Type::S32, Type::S64 | Type::U64) if plain => {
            let v = r.u32s(a).map(|v| v as i32 as i64 as u64);
            return r.put64(d, m, &v);
        }
        (Type::U32, Type::S64 | Type::U64) if plain => {
            let v = r.u32s(a).map(u64::from);
            return r.put64(d, m, &v);
        }
        (Type::S64 | Type::U64, Type::S32 | Type::U32) if plain && c.to_width == Width::W32 => {
            let v = r.u64s(a).map(|v| v as u32);
            return r.put32(d, m, &v);
        }
        (Type::S32, Type::F32) if plain && near => return r.map1(d, m, a, |v| (v as i32 as f32).to_bits()),
        (Type::U32, Type::F32) if plain && near => return r.map1(d, m, a, |v| (v as f32).to_bits()),
        (Type::F32, Type::S32) if plain && c.round == Some(Round::IntZero) && c.to_width == Width::W32 => {
            return r.map1(d, m, a, |v| f32::from_bits(v) as i32 as u32);
        }
        (Type::F32, Type::U32) if plain && c.round == Some(Round::IntZero) && c.to_width == Width::W32 => {
            return r.map1(d, m, a, |v| f32::from_bits(v) as u32);
        }
        (Type::F16, Type::F32) if plain => {
            return r.map1(d, m, a, |v| {
                let x = f16_to_f32(v as u16);
                if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
            });
        }
        (Type::BF16, Type::F32) if plain => return r.map1(d, m, a, |v| v << 16),
        (Type::F32, Type::F16) if plain && near => {
            return r.map1(d, m, a, |v| f32_to_f16(f32::from_bits(v)).into());
        }
        (Type::F32, Type::BF16) if plain && near => {
            return r.map1(d, m, a, |v| f32_to_bf16(f32::from_bits(v)).into());
        }
        _ => {}
    }
    r.lanes(d, c.to_width.class(), m, [(a, c.from_width.class())], |[a]| extend(one(c, a), c.to, c.to_width));
}

/// Sign- or zero-extends a result to its register.
fn extend(v: u64, ty: Type, width: Width) -> u64 {
    if ty.signed() { low(value(v, ty) as u64, width.bits()) } else { low(v, ty.bits().max(1)) }
}

fn one(c: &Cvt, a: u64) -> u64 {
    let (from, to) = (c.from, c.to);
    match (from.float(), to.float()) {
        (false, false) => {
            let v = value(a, from);
            low(if c.sat { clamp(v, to) as u64 } else { v as u64 }, to.bits())
        }
        (false, true) => {
            let f = format(to);
            finish(soft::from_int(value(a, from), f, c.round.unwrap_or(Round::Near)), c)
        }
        (true, false) => to_int(c, a),
        (true, true) => to_float(c, a),
    }
}

fn clamp(v: i128, ty: Type) -> i128 {
    let (least, most) = range(ty);
    v.clamp(least, most)
}

fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) }
}

fn source(c: &Cvt, a: u64) -> u64 {
    let a = low(a, c.from.bits());
    if c.ftz && c.from == Type::F32 { flush(a as u32).into() } else { a }
}

fn integral(x: f64, round: Option<Round>) -> f64 {
    match round {
        Some(Round::IntNear | Round::Near) => x.round_ties_even(),
        Some(Round::IntDown | Round::Down) => x.floor(),
        Some(Round::IntUp | Round::Up) => x.ceil(),
        Some(Round::IntZero | Round::Zero) => x.trunc(),
        _ => x,
    }
}

/// The value of a float in any format: doubles hold all of them.
fn double(a: u64, ty: Type) -> f64 {
    f64::from_bits(if ty == Type::F64 { a } else { soft::convert(a, format(ty), F64, Round::Near) })
}

/// Out of range clamps to the ends of the type. NaN is 0, or the top bit alone where a double or 64-bit integer takes part.
fn to_int(c: &Cvt, a: u64) -> u64 {
    let x = integral(double(source(c, a), c.from), c.round.or(Some(Round::IntZero)));
    if x.is_nan() {
        let bits = c.to.bits();
        return if c.from == Type::F64 || bits == 64 { 1 << (bits - 1) } else { 0 };
    }
    // The cast saturates and the clamp cuts to the type.
    low(clamp(x as i128, c.to) as u64, c.to.bits())
}

fn to_float(c: &Cvt, a: u64) -> u64 {
    let a = source(c, a);
    let (f, t) = (format(c.from), format(c.to));
    let to_integral = matches!(c.round, Some(Round::IntNear | Round::IntZero | Round::IntDown | Round::IntUp));
    let v = if to_integral {
        let x = integral(double(a, c.from), c.round);
        soft::convert(x.to_bits(), F64, t, Round::Near)
    } else if f == t {
        a
    } else {
        soft::convert(a, f, t, c.round.unwrap_or(Round::Near))
    };
    finish(v, c)
}

/// Saturation, `.relu` and flushing of a float result.
fn finish(v: u64, c: &Cvt) -> u64 {
    let f = format(c.to);
    let x = if c.sat || c.relu { f64::from_bits(soft::convert(v, f, F64, Round::Near)) } else { 1.0 };
    let top = u64::from(f.exponent + f.mantissa);
    let one = ((1u64 << (f.exponent - 1)) - 1) << f.mantissa;
    let v = match () {
        () if c.sat && (x.is_nan() || x <= 0.0) => 0,
        () if c.sat && x > 1.0 => one,
        () if c.relu && !x.is_nan() && v >> top & 1 == 1 => 0,
        () => v,
    };
    match c.to {
        Type::TF32 => v << 13,
        Type::F32 if c.ftz => flush(v as u32).into(),
        _ => v,
    }
}

/// `cvt.rn.f16x2.f32 d, a, b`.
#[inline(always)]
pub(super) fn pair(r: &mut Regs, m: u32, to: Type, round: Round, relu: bool, d: Reg, a: Src, b: Src) {
    if round == Round::Near && !relu {
        return if to == Type::F16x2 {
            r.map2(d, m, a, b, |a, b| {
                u32::from(f32_to_f16(f32::from_bits(a))) << 16 | u32::from(f32_to_f16(f32::from_bits(b)))
            })
        } else {
            r.map2(d, m, a, b, |a, b| {
                u32::from(f32_to_bf16(f32::from_bits(a))) << 16 | u32::from(f32_to_bf16(f32::from_bits(b)))
            })
        };
    }
    let f = format(to);
    r.lanes(d, Class::R32, m, [(a, Class::R32), (b, Class::R32)], |ab| {
        let [a, b] = ab.map(|v| {
            let h = soft::convert(v, F32, f, round);
            let nan = h & 0x7fff > f.infinity(false);
            if relu && h >> 15 == 1 && !nan { 0 } else { h }
        });
        a << 16 | b
    });
}

/// `cvt.pack`.
pub(super) fn pack(r: &mut Regs, m: u32, to: Type, two_bits: bool, d: Reg, a: Src, b: Src, c: Option<Src>) {
    let bits = if two_bits { 2 } else { to.bits() };
    let limits = |v: u64| {
        let x = value(v, Type::S32);
        let (least, most) =
            if to.signed() { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
        low(x.clamp(least, most) as u64, bits)
    };
    let c = c.unwrap_or(Src::Imm(0));
    r.lanes(d, Class::R32, m, [(a, Class::R32), (b, Class::R32), (c, Class::R32)], |[a, b, c]| {
        let pair = limits(a) << bits | limits(b);
        low(c << (2 * bits) | pair, 32)
    });
}

/// `set`: the bits for true in a type, per half for packed ones.
pub(super) fn truth(to: Type) -> u64 {
    match to {
        Type::F32 => 0x3f80_0000,
        Type::F64 => 0x3ff0_0000_0000_0000,
        Type::F16 | Type::F16x2 => 0x3c00,
        Type::BF16 | Type::BF16x2 => 0x3f80,
        t => low(!0, t.bits()),
    }
}

/// `mov` that packs.
pub(super) fn join(r: &mut Regs, m: u32, width: Width, part: Width, d: Reg, parts: &[Src; 4]) {
    let n = ((width.bits() / part.bits()) as usize).min(4);
    let mut v = [0u64; LANES];
    for (i, p) in parts[..n].iter().enumerate() {
        let values = r.wide(*p, part.class());
        for l in 0..LANES {
            v[l] |= low(values[l], part.bits()) << (i as u32 * part.bits());
        }
    }
    r.put(d, width.class(), m, &v);
}

/// `mov` that unpacks.
pub(super) fn split(r: &mut Regs, m: u32, width: Width, part: Width, d: &RegVec, a: Src) {
    let v = r.wide(a, width.class());
    for (i, d) in d.iter().enumerate() {
        if let Some(d) = d {
            let shift = i as u32 * part.bits();
            let v = v.map(|x| if shift < 64 { low(x >> shift, part.bits()) } else { 0 });
            r.put(*d, part.class(), m, &v);
        }
    }
}
