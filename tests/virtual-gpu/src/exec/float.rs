//! Float instructions. Round-to-nearest runs on the host's own arithmetic over all lanes; other directions and what is
//! rare go by lane through [`super::soft`]. Approximate functions are computed in double precision and rounded, which
//! is well within PTX's error bounds.

use super::regs::{LANES, Regs};
use super::soft::{self, BF16, F16, F32, F64, Format};
use crate::program::*;

const NAN32: u32 = 0x7fff_ffff;

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub(super) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

#[inline(always)]
fn finish(x: f32, ftz: bool, sat: bool) -> u32 {
    let x = if sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let bits = if x.is_nan() { NAN32 } else { x.to_bits() };
    if ftz { flush(bits) } else { bits }
}

#[inline(always)]
fn input(bits: u32, ftz: bool) -> f32 {
    f32::from_bits(if ftz { flush(bits) } else { bits })
}

#[inline(always)]
pub(super) fn fma(r: &mut Regs, m: u32, ty: Type, mode: FloatMode, d: Reg, a: Src, b: Src, c: Src) {
    let FloatMode { round, ftz, sat, .. } = mode;
    match ty {
        Type::F32 if round == Round::Near && !ftz && !sat => r.map3(d, m, a, b, c, |a, b, c| {
            finish(f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c)), false, false)
        }),
        Type::F32 if round == Round::Near => {
            r.map3(d, m, a, b, c, |a, b, c| finish(input(a, ftz).mul_add(input(b, ftz), input(c, ftz)), ftz, sat))
        }
        Type::F64 if round == Round::Near => r.map3_64(d, m, a, b, c, |a, b, c| {
            f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
        }),
        Type::F32 => r.lanes(d, Class::R32, m, [(a, Class::R32), (b, Class::R32), (c, Class::R32)], |[a, b, c]| {
            let [a, b, c] = [a, b, c].map(|v| if ftz { flush(v as u32).into() } else { v });
            let host = || {
                let [a, b, c] = [a, b, c].map(|v| f32::from_bits(v as u32));
                u64::from(a.mul_add(b, c).to_bits())
            };
            let v = soft::fma(a, b, c, F32, round).unwrap_or_else(host);
            finish(f32::from_bits(v as u32), ftz, sat).into()
        }),
        Type::F64 => r.lanes(d, Class::R64, m, [(a, Class::R64), (b, Class::R64), (c, Class::R64)], |[a, b, c]| {
            let host = || f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits();
            soft::fma(a, b, c, F64, round).unwrap_or_else(host)
        }),
        _ => r.lanes(d, Class::R32, m, [(a, Class::R32), (b, Class::R32), (c, Class::R32)], |[a, b, c]| {
            each_half(ty, |f, shift| {
                let part = |v: u64| half_in(v >> shift & 0xffff, f, mode);
                let [x, y, z] = [part(a), part(b), part(c)];
                half_out(narrow_fma(x, y, z, f), f, mode)
            })
        }),
    }
}

#[inline(always)]
pub(super) fn float2(r: &mut Regs, m: u32, op: FloatOp2, ty: Type, mode: FloatMode, d: Reg, a: Src, b: Src) {
    let FloatMode { round, ftz, sat, .. } = mode;
    let near = round == Round::Near;
    match (ty, op) {
        (Type::F32, FloatOp2::Add) if near && !ftz && !sat => {
            r.map2(d, m, a, b, |a, b| finish(f32::from_bits(a) + f32::from_bits(b), false, false))
        }
        (Type::F32, FloatOp2::Mul) if near && !ftz && !sat => {
            r.map2(d, m, a, b, |a, b| finish(f32::from_bits(a) * f32::from_bits(b), false, false))
        }
        (Type::F32, FloatOp2::Add) if near => {
            r.map2(d, m, a, b, |a, b| finish(input(a, ftz) + input(b, ftz), ftz, sat));
        }
        (Type::F32, FloatOp2::Sub) if near => {
            r.map2(d, m, a, b, |a, b| finish(input(a, ftz) - input(b, ftz), ftz, sat));
        }
        (Type::F32, FloatOp2::Mul) if near => {
            r.map2(d, m, a, b, |a, b| finish(input(a, ftz) * input(b, ftz), ftz, sat));
        }
        (Type::F32, FloatOp2::Div) if near && !mode.approx => {
            r.map2(d, m, a, b, |a, b| finish(input(a, ftz) / input(b, ftz), ftz, sat));
        }
        (Type::F64, FloatOp2::Add) if near => {
            r.map2_64(d, m, a, b, |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits());
        }
        (Type::F64, FloatOp2::Sub) if near => {
            r.map2_64(d, m, a, b, |a, b| (f64::from_bits(a) - f64::from_bits(b)).to_bits());
        }
        (Type::F64, FloatOp2::Mul) if near => {
            r.map2_64(d, m, a, b, |a, b| (f64::from_bits(a) * f64::from_bits(b)).to_bits());
        }
        (Type::F32, _) => {
            r.lanes(d, Class::R32, m, [(a, Class::R32), (b, Class::R32)], |[a, b]| {
                let [a, b] = [a, b].map(|v| if ftz && op != FloatOp2::CopySign { flush(v as u32) } else { v as u32 });
                binary32(op, mode, a, b).into()
            });
        }
        (Type::F64, _) => {
            r.lanes(d, Class::R64, m, [(a, Class::R64), (b, Class::R64)], |[a, b]| binary64(op, mode, a, b));
        }
        _ => r.lanes(d, Class::R32, m, [(a, Class::R32), (b, Class::R32)], |[a, b]| {
            each_half(ty, |f, shift| {
                let part = |v: u64| half_in(v >> shift & 0xffff, f, mode);
                let (x, y) = (part(a), part(b));
                let v = match op {
                    FloatOp2::Add => x + y,
                    FloatOp2::Sub => x - y,
                    FloatOp2::Mul => x * y,
                    FloatOp2::Div => x / y,
                    FloatOp2::Min | FloatOp2::Max => min_max(op == FloatOp2::Max, x, y, mode),
                    FloatOp2::CopySign => y.copysign(x),
                };
                half_out(v, f, mode)
            })
        }),
    }
}

/// Minimum or maximum: a number wins over NaN unless `.NaN`; -0 is less than +0.
fn min_max(max: bool, x: f64, y: f64, mode: FloatMode) -> f64 {
    let negative = x.is_sign_negative() != y.is_sign_negative();
    let (x, y) = if mode.xorsign_abs { (x.abs(), y.abs()) } else { (x, y) };
    let v = match (x.is_nan(), y.is_nan()) {
        (true, true) => return f64::NAN,
        (true, false) | (false, true) if mode.nan => return f64::NAN,
        (true, false) => y,
        (false, true) => x,
        _ if x == y => {
            if x.is_sign_negative() == max {
                y
            } else {
                x
            }
        }
        _ if (x > y) == max => x,
        _ => y,
    };
    if mode.xorsign_abs && negative { -v } else { v }
}

fn binary32(op: FloatOp2, mode: FloatMode, a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let (wa, wb) = (u64::from(a), u64::from(b));
    let soft = |v: Option<u64>, host: f32| v.map_or(host, |v| f32::from_bits(v as u32));
    let v = match op {
        FloatOp2::Add => soft(soft::add(wa, wb, F32, mode.round), x + y),
        FloatOp2::Sub => soft(soft::add(wa, wb ^ 0x8000_0000, F32, mode.round), x - y),
        FloatOp2::Mul => soft(soft::mul(wa, wb, F32, mode.round), x * y),
        FloatOp2::Div if mode.full => x / y,
        // Divisors above 2^126 have a reciprocal of zero in the approximate form.
        FloatOp2::Div if mode.approx => {
            if y.is_finite() && y.abs() > f32::from_bits(0x7e80_0000) {
                if x.is_infinite() { f32::NAN } else { (0.0 * x) * y.signum() }
            } else {
                x / y
            }
        }
        FloatOp2::Div => soft(soft::div(wa, wb, F32, mode.round), x / y),
        FloatOp2::Min | FloatOp2::Max => min_max(op == FloatOp2::Max, x.into(), y.into(), mode) as f32,
        FloatOp2::CopySign => return b & 0x7fff_ffff | a & 0x8000_0000,
    };
    finish(v, mode.ftz, mode.sat)
}

fn binary64(op: FloatOp2, mode: FloatMode, a: u64, b: u64) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    let host = match op {
        FloatOp2::Add => x + y,
        FloatOp2::Sub => x - y,
        FloatOp2::Mul => x * y,
        FloatOp2::Div => x / y,
        FloatOp2::Min | FloatOp2::Max => min_max(op == FloatOp2::Max, x, y, mode),
        FloatOp2::CopySign => y.copysign(x),
    };
    let soft = match op {
        FloatOp2::Add => soft::add(a, b, F64, mode.round),
        FloatOp2::Sub => soft::add(a, b ^ 1 << 63, F64, mode.round),
        FloatOp2::Mul => soft::mul(a, b, F64, mode.round),
        FloatOp2::Div => soft::div(a, b, F64, mode.round),
        _ => None,
    };
    soft.unwrap_or(host.to_bits())
}

#[inline(always)]
pub(super) fn float1(r: &mut Regs, m: u32, op: FloatOp1, ty: Type, mode: FloatMode, d: Reg, a: Src) {
    let ftz = mode.ftz;
    match (ty, op) {
        (Type::F32, FloatOp1::Neg) => {
            return r.map1(d, m, a, |a| (if ftz { flush(a) } else { a }) ^ 0x8000_0000);
        }
        (Type::F32, FloatOp1::Abs) => {
            return r.map1(d, m, a, |a| (if ftz { flush(a) } else { a }) & 0x7fff_ffff);
        }
        (Type::F32, FloatOp1::Rcp) if mode.approx || mode.round == Round::Near => {
            return r.map1(d, m, a, |a| finish(1.0 / input(a, ftz), ftz, false));
        }
        (Type::F32, FloatOp1::Sqrt) if mode.approx || mode.round == Round::Near => {
            return r.map1(d, m, a, |a| finish(input(a, ftz).sqrt(), ftz, false));
        }
        (Type::F32, FloatOp1::Rsqrt) => {
            return r.map1(d, m, a, |a| finish((1.0 / f64::from(input(a, ftz)).sqrt()) as f32, ftz, false));
        }
        _ => {}
    }
    let class = ty.class();
    r.lanes(d, class, m, [(a, class)], |[a]| match ty {
        Type::F32 => {
            let bits = if ftz { flush(a as u32) } else { a as u32 };
            let x = f32::from_bits(bits);
            let v = match op {
                FloatOp1::Rcp => {
                    soft::div(0x3f80_0000, bits.into(), F32, mode.round).map_or(1.0 / x, |v| f32::from_bits(v as u32))
                }
                FloatOp1::Sqrt => {
                    soft::sqrt(bits.into(), F32, mode.round).map_or(x.sqrt(), |v| f32::from_bits(v as u32))
                }
                _ => unary(op, x.into()) as f32,
            };
            finish(v, ftz, false).into()
        }
        Type::F64 => double1(op, mode, a),
        _ => each_half(ty, |f, shift| {
            let bits = a >> shift & 0xffff;
            match op {
                FloatOp1::Neg => half_flush(bits, f, mode) ^ 0x8000,
                FloatOp1::Abs => half_flush(bits, f, mode) & 0x7fff,
                _ => half_out(unary(op, half_in(bits, f, mode)), f, mode),
            }
        }),
    });
}

fn unary(op: FloatOp1, x: f64) -> f64 {
    match op {
        FloatOp1::Neg => -x,
        FloatOp1::Abs => x.abs(),
        FloatOp1::Rcp => 1.0 / x,
        FloatOp1::Sqrt => x.sqrt(),
        FloatOp1::Rsqrt => 1.0 / x.sqrt(),
        FloatOp1::Ex2 => x.exp2(),
        FloatOp1::Lg2 => x.log2(),
        FloatOp1::Sin => x.sin(),
        FloatOp1::Cos => x.cos(),
        FloatOp1::Tanh => x.tanh(),
    }
}

fn double1(op: FloatOp1, mode: FloatMode, a: u64) -> u64 {
    let x = f64::from_bits(a);
    match op {
        FloatOp1::Neg => a ^ 1 << 63,
        FloatOp1::Abs => a & !(1 << 63),
        // The approximate forms that flush give the upper word alone.
        FloatOp1::Rcp | FloatOp1::Rsqrt if mode.approx && mode.ftz => {
            let tiny = a >> 52 & 0x7ff == 0;
            let v = unary(op, if tiny { 0f64.copysign(x) } else { x });
            let bits = v.to_bits() & !0xffff_ffff;
            if v.is_nan() {
                F64.nan()
            } else if bits >> 52 & 0x7ff == 0 {
                bits & 1 << 63
            } else {
                bits
            }
        }
        FloatOp1::Rcp if !mode.approx => soft::div(1f64.to_bits(), a, F64, mode.round).unwrap_or((1.0 / x).to_bits()),
        FloatOp1::Sqrt => soft::sqrt(a, F64, mode.round).unwrap_or(x.sqrt().to_bits()),
        _ => unary(op, x).to_bits(),
    }
}

/// Runs `f` on the half, or both halves, of a type; it gets the format and the shift.
#[inline(always)]
pub(super) fn each_half(ty: Type, f: impl Fn(Format, u32) -> u64) -> u64 {
    match ty {
        Type::F16 => f(F16, 0),
        Type::BF16 => f(BF16, 0),
        Type::F16x2 => f(F16, 0) | f(F16, 16) << 16,
        _ => f(BF16, 0) | f(BF16, 16) << 16,
    }
}

/// A half's value. Exact.
#[inline(always)]
pub(super) fn half_value(bits: u64, f: Format) -> f64 {
    if f == BF16 { f32::from_bits((bits as u32) << 16).into() } else { f16_to_f32(bits as u16).into() }
}

/// An IEEE half as a float. Exact, without tables or branches.
#[inline(always)]
pub(super) fn f16_to_f32(h: u16) -> f32 {
    let (sign, rest) = (u32::from(h & 0x8000) << 16, u32::from(h & 0x7fff));
    let special = if rest >= 0x7c00 { 0x7f80_0000 } else { 0 };
    let scaled = f32::from_bits(rest << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(scaled.to_bits() | special | sign)
}

/// A float rounded to an IEEE half, to nearest.
#[inline(always)]
pub(super) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    let v = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below the normal halves: adding 0.5 leaves the half's bits at the mantissa's end.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        (magnitude - 0x3800_0000 + 0xfff + (magnitude >> 13 & 1)) >> 13
    };
    sign | v as u16
}

/// A float rounded to bf16, to nearest.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { ((u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) >> 16) as u16 }
}

fn half_flush(bits: u64, f: Format, mode: FloatMode) -> u64 {
    let exponent = if f == F16 { 0x7c00 } else { 0x7f80 };
    if mode.ftz && bits & exponent == 0 { bits & 0x8000 } else { bits }
}

fn half_in(bits: u64, f: Format, mode: FloatMode) -> f64 {
    half_value(half_flush(bits, f, mode), f)
}

/// Rounds an exact (or rounded-to-odd) value to a half under the mode.
fn half_out(x: f64, f: Format, mode: FloatMode) -> u64 {
    let x = if mode.sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let x = if mode.relu && x <= 0.0 { 0.0 } else { x };
    let bits = match mode.round {
        Round::Near => narrow(x, f),
        round => soft::convert(x.to_bits(), F64, f, round),
    };
    half_flush(bits, f, mode)
}

/// A double rounded to a half, to nearest: to a float by rounding to odd first, which keeps the second rounding right.
#[inline(always)]
fn narrow(x: f64, f: Format) -> u64 {
    let near = x as f32;
    let bits = near.to_bits();
    let odd = if f64::from(near) == x || x.is_nan() {
        bits
    } else {
        (if f64::from(near).abs() > x.abs() { bits - 1 } else { bits }) | 1
    };
    let x = f32::from_bits(odd);
    if f == F16 { f32_to_f16(x).into() } else { f32_to_bf16(x).into() }
}

/// `x * y + z` of halves in double precision, rounded to odd so that the rounding to a half is the only one.
fn narrow_fma(x: f64, y: f64, z: f64, f: Format) -> f64 {
    let p = x * y;
    let s = p + z;
    if f == F16 || !s.is_finite() {
        return s;
    }
    let (b, a) = (s - p, s - (s - p));
    let error = (p - a) + (z - b);
    if error == 0.0 || s.to_bits() & 1 == 1 {
        s
    } else if (error > 0.0) == (s > 0.0) {
        f64::from_bits(s.to_bits() + 1)
    } else {
        f64::from_bits(s.to_bits() - 1)
    }
}

/// `testp`.
pub(super) fn testp(test: Testp, ty: Type, bits: u64) -> bool {
    let (finite, nan, normal, zero) = if ty == Type::F64 {
        let x = f64::from_bits(bits);
        (x.is_finite(), x.is_nan(), x.is_normal(), x == 0.0)
    } else {
        let x = f32::from_bits(bits as u32);
        (x.is_finite(), x.is_nan(), x.is_normal(), x == 0.0)
    };
    match test {
        Testp::Finite => finite,
        Testp::Infinite => !finite && !nan,
        Testp::Number => !nan,
        Testp::NotANumber => nan,
        Testp::Normal => normal,
        Testp::Subnormal => finite && !normal && !zero,
    }
}

/// The mask (for packed types, two masks) of a comparison.
#[inline(always)]
pub(super) fn comparison(r: &Regs, c: &Comparison) -> (u32, u32) {
    let Comparison { compare, ty, ftz, a, b, .. } = *c;
    macro_rules! by {
        ($a:expr, $b:expr) => {{
            let (a, b) = ($a, $b);
            match compare {
                Compare::Eq => Regs::compare(&a, &b, |a, b| a == b),
                Compare::Ne => Regs::compare(&a, &b, |a, b| a != b),
                Compare::Lt => Regs::compare(&a, &b, |a, b| a < b),
                Compare::Le => Regs::compare(&a, &b, |a, b| a <= b),
                Compare::Gt => Regs::compare(&a, &b, |a, b| a > b),
                Compare::Ge => Regs::compare(&a, &b, |a, b| a >= b),
                _ => 0,
            }
        }};
    }
    let single = match ty {
        Type::S32 => by!(r.u32s(a).map(|v| v as i32), r.u32s(b).map(|v| v as i32)),
        Type::U32 | Type::B32 => by!(r.u32s(a), r.u32s(b)),
        Type::S64 => by!(r.u64s(a).map(|v| v as i64), r.u64s(b).map(|v| v as i64)),
        Type::U64 | Type::B64 => by!(r.u64s(a), r.u64s(b)),
        Type::S16 => by!(r.u32s(a).map(|v| v as i16), r.u32s(b).map(|v| v as i16)),
        Type::U16 | Type::B16 => by!(r.u32s(a).map(|v| v as u16), r.u32s(b).map(|v| v as u16)),
        Type::F32 => {
            let v = |s| r.u32s(s).map(|v| input(v, ftz));
            floats(compare, &v(a), &v(b), f32::is_nan)
        }
        Type::F64 => {
            let v = |s| r.u64s(s).map(f64::from_bits);
            floats(compare, &v(a), &v(b), f64::is_nan)
        }
        _ => {
            let f = if matches!(ty, Type::F16 | Type::F16x2) { F16 } else { BF16 };
            let mode = FloatMode { ftz, ..FloatMode::default() };
            let v = |s, shift: u32| r.u32s(s).map(|v| half_in(u64::from(v) >> shift & 0xffff, f, mode));
            let low = floats(compare, &v(a, 0), &v(b, 0), f64::is_nan);
            if ty.bits() == 32 {
                return (low, floats(compare, &v(a, 16), &v(b, 16), f64::is_nan));
            }
            low
        }
    };
    (single, single)
}

#[inline(always)]
fn floats<T: Copy + PartialOrd>(c: Compare, a: &[T; LANES], b: &[T; LANES], nan: impl Fn(T) -> bool) -> u32 {
    let either = |a: T, b: T| nan(a) | nan(b);
    match c {
        Compare::Eq => Regs::compare(a, b, |a, b| a == b),
        // Ordered inequality: false for NaN.
        Compare::Ne => Regs::compare(a, b, |a, b| a != b && !either(a, b)),
        Compare::Lt => Regs::compare(a, b, |a, b| a < b),
        Compare::Le => Regs::compare(a, b, |a, b| a <= b),
        Compare::Gt => Regs::compare(a, b, |a, b| a > b),
        Compare::Ge => Regs::compare(a, b, |a, b| a >= b),
        Compare::Equ => Regs::compare(a, b, |a, b| a == b || either(a, b)),
        Compare::Neu => Regs::compare(a, b, |a, b| a != b),
        Compare::Ltu => Regs::compare(a, b, |a, b| a < b || either(a, b)),
        Compare::Leu => Regs::compare(a, b, |a, b| a <= b || either(a, b)),
        Compare::Gtu => Regs::compare(a, b, |a, b| a > b || either(a, b)),
        Compare::Geu => Regs::compare(a, b, |a, b| a >= b || either(a, b)),
        Compare::Num => Regs::compare(a, b, |a, b| !either(a, b)),
        Compare::Nan => Regs::compare(a, b, either),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn halves_are_rounded_once(x in any::<f64>(), small in -20f64..20.0, tie in any::<u16>(), e in 0u32..40) {
            let half = half_value(u64::from(tie), F16);
            // Next to a tie between two halves, where a second rounding would go wrong.
            let near_tie = half * (1.0 + 0.5f64.powi(11)) * (1.0 + 0.5f64.powi(20 + e as i32));
            for x in [x, small.exp2(), near_tie, half] {
                for f in [F16, BF16] {
                    prop_assert_eq!(narrow(x, f), soft::convert(x.to_bits(), F64, f, Round::Near), "{}", x);
                }
            }
        }

        #[test]
        fn a_fused_multiply_add_of_halves_is_exact(a in any::<u16>(), b in any::<u16>(), c in any::<u16>()) {
            let words = [a, b, c].map(u64::from);
            for f in [F16, BF16] {
                if let Some(exact) = soft::fma(words[0], words[1], words[2], f, Round::Near) {
                    let [x, y, z] = words.map(|w| half_value(w, f));
                    prop_assert_eq!(half_out(narrow_fma(x, y, z, f), f, FloatMode::default()), exact);
                }
            }
        }
    }
}
