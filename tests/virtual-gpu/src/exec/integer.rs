//! Integer and bit instructions. The common ones run over all lanes at once; the rest go by lane, through arithmetic
//! wide enough to be exact.

use super::regs::Regs;
use crate::program::*;

/// Low `bits` of a value.
#[inline(always)]
pub(super) fn low(v: u64, bits: u32) -> u64 {
    if bits >= 64 { v } else { v & ((1 << bits) - 1) }
}

/// The number that bits mean in an integer type.
#[inline(always)]
pub(super) fn value(v: u64, ty: Type) -> i128 {
    let bits = ty.bits();
    let v = low(v, bits);
    if ty.signed() && v >> (bits - 1) & 1 == 1 { i128::from(v) - (1i128 << bits) } else { v.into() }
}

#[inline(always)]
pub(super) fn int1(r: &mut Regs, m: u32, op: IntOp1, ty: Type, d: Reg, a: Src) {
    let (class, bits) = (ty.class(), ty.bits());
    let to =
        if matches!(op, IntOp1::Popc | IntOp1::Clz | IntOp1::Bfind | IntOp1::BfindShift) { Class::R32 } else { class };
    if bits == 32 && !matches!(ty, Type::S16x2 | Type::U16x2) {
        match op {
            IntOp1::Not => return r.map1(d, m, a, |a| !a),
            IntOp1::Neg => return r.map1(d, m, a, u32::wrapping_neg),
            IntOp1::Popc => return r.map1(d, m, a, u32::count_ones),
            _ => {}
        }
    }
    r.lanes(d, to, m, [(a, class)], |[a]| {
        let v = low(a, bits);
        match op {
            IntOp1::Neg if ty == Type::S16x2 => halves2(v, v, |x, _| 0u64.wrapping_sub(x)),
            IntOp1::Abs if ty == Type::S16x2 => halves2(v, v, |x, _| u64::from((x as i16).unsigned_abs())),
            IntOp1::Neg => low(v.wrapping_neg(), bits),
            IntOp1::Abs => low(value(v, ty).unsigned_abs() as u64, bits),
            IntOp1::Not => low(!v, bits),
            IntOp1::Cnot => u64::from(v == 0),
            IntOp1::Popc => v.count_ones().into(),
            IntOp1::Clz => u64::from(v.leading_zeros() - (64 - bits)),
            IntOp1::Brev => v.reverse_bits() >> (64 - bits),
            IntOp1::Bfind | IntOp1::BfindShift => {
                let v = if value(v, ty) < 0 { low(!v, bits) } else { v };
                match 63u32.checked_sub(v.leading_zeros()) {
                    None => 0xffff_ffff,
                    Some(at) if op == IntOp1::BfindShift => u64::from(bits - 1 - at),
                    Some(at) => at.into(),
                }
            }
        }
    });
}

#[inline(always)]
pub(super) fn int2(r: &mut Regs, m: u32, op: IntOp2, ty: Type, d: Reg, a: Src, b: Src) {
    use IntOp2::*;
    let (bits, signed) = (ty.bits(), ty.signed());
    match (bits, op) {
        _ if matches!(ty, Type::S16x2 | Type::U16x2) => {}
        (32, Add) => return r.map2(d, m, a, b, u32::wrapping_add),
        (32, Sub) => return r.map2(d, m, a, b, u32::wrapping_sub),
        (32, MulLo) => return r.map2(d, m, a, b, u32::wrapping_mul),
        (32, MulHi) if signed => {
            return r.map2(d, m, a, b, |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
        }
        (32, MulHi) => return r.map2(d, m, a, b, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        (_, And) if bits <= 32 => return r.map2(d, m, a, b, |a, b| a & b),
        (_, Or) if bits <= 32 => return r.map2(d, m, a, b, |a, b| a | b),
        (_, Xor) if bits <= 32 => return r.map2(d, m, a, b, |a, b| a ^ b),
        (32, Shl) => return r.map2(d, m, a, b, |a, b| if b > 31 { 0 } else { a << (b & 31) }),
        (32, Shr) if signed => return r.map2(d, m, a, b, |a, b| (a as i32 >> b.min(31)) as u32),
        (32, Shr) => return r.map2(d, m, a, b, |a, b| if b > 31 { 0 } else { a >> (b & 31) }),
        (32, Min) if signed => return r.map2(d, m, a, b, |a, b| (a as i32).min(b as i32) as u32),
        (32, Max) if signed => return r.map2(d, m, a, b, |a, b| (a as i32).max(b as i32) as u32),
        (32, Min) => return r.map2(d, m, a, b, u32::min),
        (32, Max) => return r.map2(d, m, a, b, u32::max),
        (64, Add) => return r.map2_64(d, m, a, b, u64::wrapping_add),
        (64, Sub) => return r.map2_64(d, m, a, b, u64::wrapping_sub),
        (64, MulLo) => return r.map2_64(d, m, a, b, u64::wrapping_mul),
        (64, And) => return r.map2_64(d, m, a, b, |a, b| a & b),
        (64, Or) => return r.map2_64(d, m, a, b, |a, b| a | b),
        (64, Xor) => return r.map2_64(d, m, a, b, |a, b| a ^ b),
        (32, MulWide) => {
            let (a, b) = (r.u32s(a), r.u32s(b));
            let mut v = [0; 32];
            for l in 0..32 {
                v[l] = if signed {
                    (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64
                } else {
                    u64::from(a[l]) * u64::from(b[l])
                };
            }
            return r.put64(d, m, &v);
        }
        (64, Shl | Shr) => {
            let (a, n) = (r.u64s(a), r.u32s(b));
            let mut v = [0; 32];
            for l in 0..32 {
                let s = n[l].min(63);
                v[l] = match op {
                    Shl if n[l] > 63 => 0,
                    Shl => a[l] << s,
                    _ if signed => (a[l] as i64 >> s) as u64,
                    _ if n[l] > 63 => 0,
                    _ => a[l] >> s,
                };
            }
            return r.put64(d, m, &v);
        }
        _ => {}
    }
    let class = ty.class();
    let to = if op == MulWide { visit_double(ty) } else { class };
    let b_class = if matches!(op, Shl | Shr) { Class::R32 } else { class };
    r.lanes(d, to, m, [(a, class), (b, b_class)], |[a, b]| scalar2(op, ty, a, b));
}

fn visit_double(ty: Type) -> Class {
    if ty.bits() >= 32 { Class::R64 } else { Class::R32 }
}

fn halves2(a: u64, b: u64, f: impl Fn(u64, u64) -> u64) -> u64 {
    f(a & 0xffff, b & 0xffff) & 0xffff | (f(a >> 16 & 0xffff, b >> 16 & 0xffff) & 0xffff) << 16
}

fn scalar2(op: IntOp2, ty: Type, a: u64, b: u64) -> u64 {
    use IntOp2::*;
    let half = match ty {
        Type::S16x2 => Some(Type::S16),
        Type::U16x2 => Some(Type::U16),
        _ => None,
    };
    if let Some(half) = half {
        return halves2(a, b, |x, y| scalar2(op, half, x, y));
    }
    let bits = ty.bits();
    let (x, y) = (value(a, ty), value(b, ty));
    let wrap = |v: i128| low(v as u64, bits);
    match op {
        Add => wrap(x + y),
        Sub => wrap(x - y),
        AddSat => wrap((x + y).clamp(i32::MIN.into(), i32::MAX.into())),
        SubSat => wrap((x - y).clamp(i32::MIN.into(), i32::MAX.into())),
        MulLo => wrap(x.wrapping_mul(y)),
        MulHi => low(high(x, y, ty), bits),
        MulWide => low(x.wrapping_mul(y) as u64, bits * 2),
        Mul24Lo => product24(a, b, ty) as u32 as u64,
        Mul24Hi => (product24(a, b, ty) >> 16) as u32 as u64,
        // By zero: PTX leaves the result open; the quotient here is all ones, the remainder the dividend.
        Div => {
            if y == 0 {
                low(!0, bits)
            } else {
                wrap(x / y)
            }
        }
        Rem => {
            if y == 0 {
                wrap(x)
            } else {
                wrap(x % y)
            }
        }
        Min => wrap(x.min(y)),
        Max => wrap(x.max(y)),
        MinRelu => wrap(x.min(y).max(0)),
        MaxRelu => wrap(x.max(y).max(0)),
        And => low(a & b, bits),
        Or => low(a | b, bits),
        Xor => low(a ^ b, bits),
        Shl => {
            let n = b as u32;
            if n >= bits { 0 } else { low(a << n, bits) }
        }
        Shr => wrap(x >> (b as u32).min(bits)),
    }
}

/// High half of a product.
fn high(x: i128, y: i128, ty: Type) -> u64 {
    if ty == Type::U64 { ((x as u128 * y as u128) >> 64) as u64 } else { ((x * y) >> ty.bits()) as u64 }
}

/// The 48-bit product of the low 24 bits.
fn product24(a: u64, b: u64, ty: Type) -> i64 {
    let v = |x: u64| if ty.signed() { (x as i64) << 40 >> 40 } else { (x & 0xff_ffff) as i64 };
    v(a) * v(b)
}

#[inline(always)]
pub(super) fn int3(r: &mut Regs, m: u32, op: IntOp3, ty: Type, d: Reg, a: Src, b: Src, c: Src) {
    use IntOp3::*;
    let (bits, signed) = (ty.bits(), ty.signed());
    match (bits, op) {
        (32, MadLo) => return r.map3(d, m, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        (64, MadLo) => return r.map3_64(d, m, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        (32, MadWide) => {
            let (a, b, c) = (r.u32s(a), r.u32s(b), r.u64s(c));
            let mut v = [0; 32];
            for l in 0..32 {
                let p = if signed {
                    (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64
                } else {
                    u64::from(a[l]) * u64::from(b[l])
                };
                v[l] = p.wrapping_add(c[l]);
            }
            return r.put64(d, m, &v);
        }
        (_, Lop3(table)) => return r.map3(d, m, a, b, c, |a, b, c| lop3(table, a, b, c)),
        (_, Shf { left, clamp }) => {
            return r.map3(d, m, a, b, c, |a, b, c| {
                let n = if clamp { c.min(32) } else { c & 31 };
                let v = u64::from(b) << 32 | u64::from(a);
                if left { (v << n >> 32) as u32 } else { (v >> n) as u32 }
            });
        }
        _ => {}
    }
    let class = ty.class();
    let full = if op == MadWide { visit_double(ty) } else { class };
    let (bc, cc) = if op == Bfe { (Class::R32, Class::R32) } else { (class, full) };
    r.lanes(d, full, m, [(a, class), (b, bc), (c, cc)], |[a, b, c]| scalar3(op, ty, a, b, c));
}

fn scalar3(op: IntOp3, ty: Type, a: u64, b: u64, c: u64) -> u64 {
    use IntOp3::*;
    let bits = ty.bits();
    if op == Bfe {
        return bfe(a, b as u32 & 0xff, c as u32 & 0xff, ty);
    }
    let (x, y) = (value(a, ty), value(b, ty));
    let saturated = |v: i128| v.clamp(i32::MIN.into(), i32::MAX.into()) as i32 as u32 as u64;
    let (a32, b32, c32) = (a as u32, b as u32, c as u32);
    match op {
        MadLo => low((x.wrapping_mul(y) as u64).wrapping_add(c), bits),
        MadHi => low(high(x, y, ty).wrapping_add(c), bits),
        MadHiSat => saturated(((x * y) >> 32) + value(c, ty)),
        MadWide => low((x.wrapping_mul(y) as u64).wrapping_add(c), bits * 2),
        Mad24Lo => (product24(a, b, ty) as u32).wrapping_add(c32).into(),
        Mad24Hi => ((product24(a, b, ty) >> 16) as u32).wrapping_add(c32).into(),
        Mad24HiSat => saturated(i128::from((product24(a, b, ty) >> 16) as i32) + value(c, ty)),
        Sad => low(c.wrapping_add((x - y).unsigned_abs() as u64), bits),
        Prmt(mode) => prmt(mode, a32, b32, c32).into(),
        Dp4a { a_signed, b_signed } => {
            let sum = (0..4).map(|i| byte(a32, i, a_signed) * byte(b32, i, b_signed)).sum::<i32>();
            c32.wrapping_add(sum as u32).into()
        }
        Dp2a { a_signed, b_signed, high } => {
            let word = |i: u32| {
                let v = (a32 >> (16 * i)) as u16;
                if a_signed { i32::from(v as i16) } else { v.into() }
            };
            let first = if high { 2 } else { 0 };
            let sum = (0..2).map(|i| word(i) * byte(b32, first + i, b_signed)).sum::<i32>();
            c32.wrapping_add(sum as u32).into()
        }
        AbsDiff { lanes, signed, add } => abs_diff(a32, b32, c32, u32::from(lanes.max(1)), signed, add).into(),
        Fns => fns(a32, b32, c32 as i32).into(),
        // These have run over all lanes.
        Bfe | Lop3(_) | Shf { .. } => 0,
    }
}

/// Differences of `lanes` parts of two words, packed or summed up.
fn abs_diff(a: u32, b: u32, c: u32, lanes: u32, signed: bool, add: bool) -> u32 {
    let width = 32 / lanes;
    let part = |v: u32, i: u32| {
        let v = v << (32 - width * (i + 1));
        if signed { i64::from(v as i32 >> (32 - width)) } else { i64::from(v >> (32 - width)) }
    };
    let difference = |i: u32| (part(a, i) - part(b, i)).unsigned_abs() as u32;
    if add {
        return (0..lanes).fold(c, |sum, i| sum.wrapping_add(difference(i)));
    }
    (0..lanes).fold(0, |d, i| d | difference(i) << (width * i))
}

fn byte(v: u32, i: u32, signed: bool) -> i32 {
    let b = (v >> (8 * i)) as u8;
    if signed { i32::from(b as i8) } else { b.into() }
}

#[inline(always)]
pub(super) fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut d = 0;
    for i in 0..8 {
        let pick = |v: u32, bit: u32| if i >> bit & 1 == 1 { v } else { !v };
        let term = pick(a, 2) & pick(b, 1) & pick(c, 0);
        d |= term & (table as u32 >> i & 1).wrapping_neg();
    }
    d
}

fn bfe(a: u64, pos: u32, len: u32, ty: Type) -> u64 {
    let (bits, msb) = (ty.bits(), ty.bits() - 1);
    let a = low(a, bits);
    let sign = ty.signed() && len > 0 && a >> (pos + len - 1).min(msb) & 1 == 1;
    let taken = len.min(bits.saturating_sub(pos));
    let field = if taken == 0 { 0 } else { low(a >> pos, taken) };
    if sign { low(field | if taken >= 64 { 0 } else { !0 << taken }, bits) } else { field }
}

/// `bfi`: `a` into `b`.
pub(super) fn bfi(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let taken = len.min(bits.saturating_sub(pos));
    if taken == 0 {
        return low(b, bits);
    }
    let field = low(!0, taken) << pos;
    low(b & !field | a << pos & field, bits)
}

fn prmt(mode: Prmt, a: u32, b: u32, c: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let order: [u32; 4] = match (mode, c & 3) {
        (Prmt::Index, _) => {
            let pick = |i: u32| {
                let s = c >> (4 * i) & 0xf;
                let v = bytes[(s & 7) as usize];
                if s & 8 == 0 { v } else { ((v as i8) >> 7) as u8 }
            };
            return u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)]);
        }
        (Prmt::F4e, s) => [s, s + 1, s + 2, s + 3],
        (Prmt::B4e, s) => [s, s + 7, s + 6, s + 5],
        (Prmt::Rc8, s) => [s; 4],
        (Prmt::Ecl, s) => [s, s.max(1), s.max(2), 3],
        (Prmt::Ecr, s) => [0, s.min(1), s.min(2), s],
        (Prmt::Rc16, s) => [(s & 1) * 2, (s & 1) * 2 + 1, (s & 1) * 2, (s & 1) * 2 + 1],
    };
    u32::from_le_bytes(order.map(|i| bytes[(i & 7) as usize]))
}

fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    if offset == 0 {
        return if base < 32 && mask >> base & 1 == 1 { base } else { !0 };
    }
    let (mut at, mut left) = (i64::from(base), offset.unsigned_abs() - 1);
    while (0..32).contains(&at) {
        if mask >> at & 1 == 1 {
            if left == 0 {
                return at as u32;
            }
            left -= 1;
        }
        at += i64::from(offset.signum());
    }
    !0
}

/// `add/sub` with carry in and out: sum and carry.
pub(super) fn carry(subtract: bool, a: u64, b: u64, carry: bool, bits: u32) -> (u64, bool) {
    let (x, y, c) = (i128::from(low(a, bits)), i128::from(low(b, bits)), i128::from(carry));
    let v = if subtract { x - y - c } else { x + y + c };
    (low(v as u64, bits), !(0..1i128 << bits).contains(&v))
}

/// Low or high half of a product.
pub(super) fn half_product(upper: bool, a: u64, b: u64, ty: Type) -> u64 {
    let (x, y) = (value(a, ty), value(b, ty));
    low(if upper { high(x, y, ty) } else { x.wrapping_mul(y) as u64 }, ty.bits())
}

/// `szext`.
pub(super) fn szext(clamp: bool, signed: bool, a: u32, b: u32) -> u32 {
    let n = b & 31;
    if b >= 32 && clamp {
        return a;
    }
    let mask = !0u32 << n;
    let sign = signed && n != 0 && a >> (n - 1) & 1 == 1;
    a & !mask | if sign { mask } else { 0 }
}

/// `bmsk`.
pub(super) fn bmsk(clamp: bool, a: u32, b: u32) -> u32 {
    let (start, width) = (a & 31, b & 31);
    let outside = clamp && a >= 32;
    let to_end = start + width >= 32 || outside || clamp && b >= 32;
    let from = if outside { 0 } else { !0u32 << start };
    from & !(if to_end { 0 } else { !0u32 << (start + width) })
}
