//! Instructions that touch registers alone, compiled once for any processor and once for those with AVX2 and FMA: the
//! lanes then run eight at a time, and a fused multiply-add is one instruction rather than a call.

use super::regs::Regs;
use super::{convert, float, integer};
use crate::program::*;

/// Runs one instruction on the lanes of `m`; false if it is none of these.
pub(super) type Alu = fn(&Op, &mut Regs, u32) -> bool;

/// The best version for this processor.
pub(super) fn best() -> Alu {
    #[cfg(target_arch = "x86_64")]
    if ["avx2", "fma", "bmi1", "bmi2", "lzcnt", "popcnt"].iter().all(|f| detected(f)) {
        return |op, r, m| {
            // SAFETY: the features were detected.
            unsafe { vectors(op, r, m) }
        };
    }
    plain
}

#[cfg(target_arch = "x86_64")]
fn detected(feature: &str) -> bool {
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "bmi1" => is_x86_feature_detected!("bmi1"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "lzcnt" => is_x86_feature_detected!("lzcnt"),
        _ => is_x86_feature_detected!("popcnt"),
    }
}

fn plain(op: &Op, r: &mut Regs, m: u32) -> bool {
    body(op, r, m)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn vectors(op: &Op, r: &mut Regs, m: u32) -> bool {
    body(op, r, m)
}

#[inline(always)]
fn body(op: &Op, r: &mut Regs, m: u32) -> bool {
    match *op {
        Op::Nop => {}
        Op::Int2 { op, ty, dst, a, b } => integer::int2(r, m, op, ty, dst, a, b),
        Op::Int3 { op, ty, dst, a, b, c } => integer::int3(r, m, op, ty, dst, a, b, c),
        Op::Int1 { op, ty, dst, a } => integer::int1(r, m, op, ty, dst, a),
        Op::Fma { ty, mode, dst, a, b, c } => float::fma(r, m, ty, mode, dst, a, b, c),
        Op::Float2 { op, ty, mode, dst, a, b } => float::float2(r, m, op, ty, mode, dst, a, b),
        Op::Float1 { op, ty, mode, dst, a } => float::float1(r, m, op, ty, mode, dst, a),
        Op::Mov { width, dst, a } => match width.class() {
            Class::R64 => {
                let v = r.u64s(a);
                r.put64(dst, m, &v);
            }
            _ => {
                let v = r.u32s(a);
                r.put32(dst, m, &v);
            }
        },
        Op::Setp { dst, other, ref comparison } => {
            let (low, high) = float::comparison(r, comparison);
            let packed = matches!(comparison.ty, Type::F16x2 | Type::BF16x2);
            let second = if packed { high } else { !low };
            let (low, second) = (combine(r, low, comparison), combine(r, second, comparison));
            if let Some(d) = dst {
                r.put_pred(d, m, low);
            }
            if let Some(d) = other {
                r.put_pred(d, m, second);
            }
        }
        Op::Selp { width, dst, a, b, p } => {
            let p = r.mask(p);
            if width == Width::W64 {
                let (a, b) = (r.u64s(a), r.u64s(b));
                let mut v = [0; 32];
                for l in 0..32 {
                    v[l] = if p >> l & 1 == 1 { a[l] } else { b[l] };
                }
                r.put64(dst, m, &v);
            } else {
                let (a, b) = (r.u32s(a), r.u32s(b));
                let mut v = [0; 32];
                for l in 0..32 {
                    v[l] = if p >> l & 1 == 1 { a[l] } else { b[l] };
                }
                r.put32(dst, m, &v);
            }
        }
        Op::Cvt(ref c) => convert::cvt(r, m, c),
        Op::CvtPair { to, round, relu, dst, a, b } => convert::pair(r, m, to, round, relu, dst, a, b),
        _ => return rare(op, r, m),
    }
    true
}

fn combine(r: &Regs, v: u32, c: &Comparison) -> u32 {
    match c.combine {
        None => v,
        Some((op, p)) => logic(op, v, r.mask(p)),
    }
}

fn logic(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

#[inline(never)]
fn rare(op: &Op, r: &mut Regs, m: u32) -> bool {
    match *op {
        Op::Bfi { ty, dst, a, b, c, d } => {
            let k = ty.class();
            r.lanes(dst, k, m, [(a, k), (b, k), (c, Class::R32), (d, Class::R32)], |[a, b, c, d]| {
                integer::bfi(a, b, c as u32, d as u32, ty.bits())
            });
        }
        Op::Carry { subtract, carry_in, carry_out, ty, dst, a, b } => {
            let (k, flags) = (ty.class(), if carry_in { r.carry } else { 0 });
            let (a, b) = (r.wide(a, k), r.wide(b, k));
            let mut out = 0;
            let mut v = [0; 32];
            for l in 0..32 {
                let (sum, c) = integer::carry(subtract, a[l], b[l], flags >> l & 1 == 1, ty.bits());
                v[l] = sum;
                out |= u32::from(c) << l;
            }
            r.put(dst, k, m, &v);
            if carry_out {
                r.carry = r.carry & !m | out & m;
            }
        }
        Op::MadCarry { high, carry_in, carry_out, ty, dst, a, b, c } => {
            let (k, flags) = (ty.class(), if carry_in { r.carry } else { 0 });
            let (a, b, c) = (r.wide(a, k), r.wide(b, k), r.wide(c, k));
            let mut out = 0;
            let mut v = [0; 32];
            for l in 0..32 {
                let p = integer::half_product(high, a[l], b[l], ty);
                let (sum, carry) = integer::carry(false, p, c[l], flags >> l & 1 == 1, ty.bits());
                v[l] = sum;
                out |= u32::from(carry) << l;
            }
            r.put(dst, k, m, &v);
            if carry_out {
                r.carry = r.carry & !m | out & m;
            }
        }
        Op::Lop3Pred { table, op, dst, p, sources: [a, b, c], q } => {
            let (a, b, c, q) = (r.u32s(a), r.u32s(b), r.u32s(c), r.mask(q));
            let v = std::array::from_fn(|l| integer::lop3(table, a[l], b[l], c[l]));
            let set = (0..32).fold(0, |m, l| m | u32::from(v[l] != 0) << l);
            if let Some(d) = dst {
                r.put32(d, m, &v);
            }
            r.put_pred(p, m, logic(op, set, q));
        }
        Op::Szext { clamp, ty, dst, a, b } => {
            r.map2(dst, m, a, b, |a, b| integer::szext(clamp, ty.signed(), a, b));
        }
        Op::Bmsk { clamp, dst, a, b } => r.map2(dst, m, a, b, |a, b| integer::bmsk(clamp, a, b)),
        Op::Testp { test, ty, dst, a } => {
            r.lanes(dst, Class::Pred, m, [(a, ty.class())], |[a]| u64::from(float::testp(test, ty, a)));
        }
        Op::Set { to, dst, ref comparison } => {
            let (low, high) = float::comparison(r, comparison);
            let (low, high) = (combine(r, low, comparison), combine(r, high, comparison));
            let packed = matches!(comparison.ty, Type::F16x2 | Type::BF16x2);
            let one = if packed && !to.float() { 0xffff } else { convert::truth(to) };
            let mut v = [0; 32];
            for (l, v) in v.iter_mut().enumerate() {
                *v = u64::from(low >> l & 1) * one;
                if packed {
                    *v |= (u64::from(high >> l & 1) * one) << 16;
                }
            }
            r.put(dst, to.class(), m, &v);
        }
        Op::Slct { width, on, ftz, dst, a, b, c } => {
            let k = width.class();
            r.lanes(dst, k, m, [(a, k), (b, k), (c, Class::R32)], |[a, b, c]| {
                let c = if ftz { float::flush(c as u32) } else { c as u32 };
                // -0.0 is not less than zero, NaN chooses b.
                let first = if on == Type::F32 { f32::from_bits(c) >= 0.0 } else { c as i32 >= 0 };
                if first { a } else { b }
            });
        }
        Op::PredLogic { op, dst, a, b } => {
            let v = logic(op, r.mask(a), r.mask(b));
            r.put_pred(dst, m, v);
        }
        Op::PredMov { dst, a } => {
            let v = r.mask(a);
            r.put_pred(dst, m, v);
        }
        Op::CvtPack { to, two_bits, dst, a, b, c } => convert::pack(r, m, to, two_bits, dst, a, b, c),
        Op::Pack { width, part, dst, ref parts } => convert::join(r, m, width, part, dst, parts),
        Op::Unpack { width, part, ref dst, a } => convert::split(r, m, width, part, dst, a),
        _ => return false,
    }
    true
}
