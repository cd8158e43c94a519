//! Floating point in integers: exact results rounded once, in any direction, to any format of up to 64 bits.
//!
//! The host rounds to nearest; the other directions, and the narrow formats, come from here.

use crate::program::Round;

/// A binary format: width of exponent and mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Stored bits of the mantissa.
    pub mantissa: u32,
}

/// IEEE half.
pub const F16: Format = Format { exponent: 5, mantissa: 10 };
/// The upper half of a float.
pub const BF16: Format = Format { exponent: 8, mantissa: 7 };
/// A float with a short mantissa (here in its own 19 bits).
pub const TF32: Format = Format { exponent: 8, mantissa: 10 };
/// IEEE single.
pub const F32: Format = Format { exponent: 8, mantissa: 23 };
/// IEEE double.
pub const F64: Format = Format { exponent: 11, mantissa: 52 };

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn top(self) -> u64 {
        (1 << self.exponent) - 1
    }

    fn sign(self, negative: bool) -> u64 {
        u64::from(negative) << (self.exponent + self.mantissa)
    }

    /// Infinity's bits.
    pub fn infinity(self, negative: bool) -> u64 {
        self.sign(negative) | self.top() << self.mantissa
    }

    /// PTX's NaN: all ones but the sign; for doubles, the quiet NaN.
    pub fn nan(self) -> u64 {
        if self == F64 { 0x7ff8_0000_0000_0000 } else { self.sign(true) - 1 }
    }

    /// The finite value of bits: sign, exponent, integer significand. None for infinities and NaN.
    fn finite(self, bits: u64) -> Option<(bool, i32, u64)> {
        let negative = bits >> (self.exponent + self.mantissa) & 1 == 1;
        let e = bits >> self.mantissa & self.top();
        let m = bits & ((1 << self.mantissa) - 1);
        let lowest = 1 - self.bias() - self.mantissa as i32;
        match e {
            _ if e == self.top() => None,
            0 => Some((negative, lowest, m)),
            _ => Some((negative, lowest + e as i32 - 1, m | 1 << self.mantissa)),
        }
    }
}

/// Rounds `significand * 2^exponent`, and a little more in magnitude if `sticky`, to a format. With `sticky` the
/// significand must have at least two bits more than the format.
pub fn round(negative: bool, exponent: i32, significand: u128, sticky: bool, f: Format, mode: Round) -> u64 {
    if significand == 0 {
        return f.sign(negative);
    }
    let highest = exponent + 127 - significand.leading_zeros() as i32;
    let lowest = 1 - f.bias() - f.mantissa as i32;
    let mut unit = (highest - f.mantissa as i32).max(lowest);
    let shift = unit - exponent;
    let (mut q, above_half, half, inexact) = if shift <= 0 {
        (significand << -shift, false, false, sticky)
    } else {
        let (q, rest) =
            if shift >= 128 { (0, significand) } else { (significand >> shift, significand & ((1u128 << shift) - 1)) };
        let middle = if shift > 128 { 0 } else { 1u128 << (shift - 1) };
        let at_half = middle != 0 && rest == middle;
        (q, middle != 0 && rest > middle || at_half && sticky, at_half && !sticky, rest != 0 || sticky)
    };
    let up = match mode {
        Round::Near | Round::IntNear => above_half || half && q & 1 == 1,
        Round::NearAway => above_half || half,
        Round::Zero | Round::IntZero => false,
        Round::Down | Round::IntDown => negative && inexact,
        Round::Up | Round::IntUp => !negative && inexact,
    };
    q += u128::from(up);
    if q >> (f.mantissa + 1) != 0 {
        q >>= 1;
        unit += 1;
    }
    if q >> f.mantissa == 0 {
        return f.sign(negative) | q as u64;
    }
    let e = unit - lowest + 1;
    if e as i64 >= f.top() as i64 {
        let stays = match mode {
            Round::Zero | Round::IntZero => true,
            Round::Down | Round::IntDown => !negative,
            Round::Up | Round::IntUp => negative,
            _ => false,
        };
        return f.infinity(negative) - u64::from(stays);
    }
    f.sign(negative) | (e as u64) << f.mantissa | (q as u64 & ((1 << f.mantissa) - 1))
}

/// A format's bits in another format.
pub fn convert(bits: u64, from: Format, to: Format, mode: Round) -> u64 {
    match from.finite(bits) {
        Some((negative, e, m)) => round(negative, e, m.into(), false, to, mode),
        None if bits & ((1 << from.mantissa) - 1) != 0 => to.nan(),
        None => to.infinity(bits >> (from.exponent + from.mantissa) & 1 == 1),
    }
}

/// An integer in a format.
pub fn from_int(v: i128, to: Format, mode: Round) -> u64 {
    round(v < 0, 0, v.unsigned_abs(), false, to, mode)
}

/// `a * b + c`, rounded once. All three finite, else None (the host's own result is exact then).
pub fn fma(a: u64, b: u64, c: u64, f: Format, mode: Round) -> Option<u64> {
    let ((sa, ea, ma), (sb, eb, mb), (sc, ec, mc)) = (f.finite(a)?, f.finite(b)?, f.finite(c)?);
    let (sp, ep, mp) = (sa != sb, ea + eb, u128::from(ma) * u128::from(mb));
    if mp == 0 || mc == 0 {
        return Some(match (mp, mc) {
            (0, 0) if sp == sc => f.sign(sp),
            (0, 0) => f.sign(mode == Round::Down),
            (0, _) => c,
            _ => round(sp, ep, mp, false, f, mode),
        });
    }
    // Align the smaller to the larger, with the larger's top bit at 125; what falls off is sticky.
    let lift = |e: i32, m: u128| {
        let s = m.leading_zeros() as i32 - 2;
        (e - s, m << s)
    };
    let ((ep, mp), (ec, mc)) = (lift(ep, mp), lift(ec, mc.into()));
    let ((s1, e, m1), (s2, e2, m2)) =
        if (ep, mp) >= (ec, mc) { ((sp, ep, mp), (sc, ec, mc)) } else { ((sc, ec, mc), (sp, ep, mp)) };
    let d = (e - e2) as u32;
    let (m2, sticky) = if d >= 128 { (0, true) } else { (m2 >> d, d > 0 && m2 & ((1u128 << d) - 1) != 0) };
    if s1 == s2 {
        return Some(round(s1, e, m1 + m2, sticky, f, mode));
    }
    // A lost tail makes the difference smaller: borrow one and let the tail be what is above.
    let m = m1 - m2 - u128::from(sticky);
    if m == 0 && !sticky {
        return Some(f.sign(mode == Round::Down));
    }
    Some(round(s1, e, m, sticky, f, mode))
}

/// `a + b`, rounded once, of finite values.
pub fn add(a: u64, b: u64, f: Format, mode: Round) -> Option<u64> {
    let one = (f.bias() as u64) << f.mantissa;
    fma(a, one, b, f, mode)
}

/// `a * b`, rounded once, of finite values.
pub fn mul(a: u64, b: u64, f: Format, mode: Round) -> Option<u64> {
    let ((sa, ea, ma), (sb, eb, mb)) = (f.finite(a)?, f.finite(b)?);
    Some(round(sa != sb, ea + eb, u128::from(ma) * u128::from(mb), false, f, mode))
}

/// `a / b`, rounded once, of finite values and a non-zero divisor.
pub fn div(a: u64, b: u64, f: Format, mode: Round) -> Option<u64> {
    let ((sa, ea, ma), (sb, eb, mb)) = (f.finite(a)?, f.finite(b)?);
    if mb == 0 {
        return None;
    }
    if ma == 0 {
        return Some(f.sign(sa != sb));
    }
    let s = u128::from(ma).leading_zeros() as i32 - 1;
    let (n, d) = (u128::from(ma) << s, u128::from(mb));
    Some(round(sa != sb, ea - s - eb, n / d, n % d != 0, f, mode))
}

/// The root of a finite value that is not negative, rounded once.
pub fn sqrt(a: u64, f: Format, mode: Round) -> Option<u64> {
    let (s, e, m) = f.finite(a)?;
    if m == 0 {
        return Some(a);
    }
    if s {
        return None;
    }
    let mut shift = u128::from(m).leading_zeros() as i32 - 2;
    if (e - shift) % 2 != 0 {
        shift -= 1;
    }
    let n = u128::from(m) << shift;
    let r = n.isqrt();
    Some(round(false, (e - shift) / 2, r, r * r != n, f, mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn same(a: f64, b: u64) -> bool {
        a.to_bits() == b || a.is_nan()
    }

    proptest! {
        #[test]
        fn to_nearest_equals_the_hosts(a in any::<u64>(), b in any::<u64>(), c in any::<u64>(), near in -60i64..60) {
            let (x, y, z) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
            // A third operand close to the product, for cancellation.
            let w = (x * y * (1.0 + near as f64 * f64::EPSILON)).to_bits() ^ (1 << 63);
            for c in [c, w] {
                if let Some(r) = fma(a, b, c, F64, Round::Near) {
                    prop_assert!(same(x.mul_add(y, f64::from_bits(c)), r));
                }
            }
            if let Some(r) = add(a, c, F64, Round::Near) { prop_assert!(same(x + z, r)); }
            if let Some(r) = mul(a, b, F64, Round::Near) { prop_assert!(same(x * y, r)); }
            if let Some(r) = div(a, b, F64, Round::Near) { prop_assert!(same(x / y, r)); }
            if let Some(r) = sqrt(a, F64, Round::Near) { prop_assert!(same(x.sqrt(), r)); }
            prop_assert!(x.is_nan() || (x as f32).to_bits() as u64 == convert(a, F64, F32, Round::Near));
        }

        #[test]
        fn directions_bracket_the_exact_result(a in any::<f32>(), b in any::<f32>(), c in any::<f32>()) {
            let bits = |x: f32| u64::from(x.to_bits());
            let (Some(lo), Some(hi), Some(z)) = (
                fma(bits(a), bits(b), bits(c), F32, Round::Down),
                fma(bits(a), bits(b), bits(c), F32, Round::Up),
                fma(bits(a), bits(b), bits(c), F32, Round::Zero),
            ) else { return Ok(()) };
            let (lo, hi, z) = (f32::from_bits(lo as u32), f32::from_bits(hi as u32), f32::from_bits(z as u32));
            let near = a.mul_add(b, c);
            prop_assert!(lo <= near && near <= hi);
            prop_assert!(lo == hi || lo.next_up() == hi);
            prop_assert_eq!(z, if lo >= 0.0 { lo } else { hi });
        }

        #[test]
        fn halves_convert_as_the_half_crate_does(a in any::<f32>()) {
            prop_assume!(!a.is_nan());
            let bits = u64::from(a.to_bits());
            prop_assert_eq!(convert(bits, F32, F16, Round::Near), u64::from(half::f16::from_f32(a).to_bits()));
            prop_assert_eq!(convert(bits, F32, BF16, Round::Near), u64::from(half::bf16::from_f32(a).to_bits()));
        }
    }
}
