//! Floating point in integer arithmetic: exact values, rounded once, as IEEE 754 and the ISA define it.

use std::cmp::Ordering;

/// A binary format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    pub exponent: u32,
    pub fraction: u32,
}

pub const F16: Format = Format { exponent: 5, fraction: 10 };
pub const BF16: Format = Format { exponent: 8, fraction: 7 };
pub const TF32: Format = Format { exponent: 8, fraction: 10 };
pub const F32: Format = Format { exponent: 8, fraction: 23 };
pub const F64: Format = Format { exponent: 11, fraction: 52 };

/// The format of a type by name.
pub fn format(ty: &str) -> Format {
    match ty {
        "f16" | "f16x2" => F16,
        "bf16" | "bf16x2" => BF16,
        "f32" => F32,
        "f64" => F64,
        _ => panic!("{ty} is no float"),
    }
}

/// A value: (-1)^negative · magnitude · 2^exponent. The lowest bit of a magnitude with its top bit set may stand for any
/// smaller bits lost ("sticky").
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Nan,
    Infinite(bool),
    Zero(bool),
    Finite(bool, u128, i32),
}
use Value::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Round {
    Near,
    Zero,
    Down,
    Up,
    /// Ties away from zero.
    Away,
}

/// `.rn`, none, ….
pub fn round(name: &str) -> Round {
    match name {
        ".rz" | ".rzi" => Round::Zero,
        ".rm" | ".rmi" => Round::Down,
        ".rp" | ".rpi" => Round::Up,
        ".rna" => Round::Away,
        _ => Round::Near,
    }
}

impl Format {
    pub fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    fn top(self) -> u64 {
        (1 << self.exponent) - 1
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The canonical NaN: all ones but the sign.
    pub fn nan(self) -> u64 {
        self.sign() - 1
    }

    pub fn infinity(self) -> u64 {
        self.top() << self.fraction
    }

    pub fn largest(self) -> u64 {
        self.infinity() - 1
    }

    pub fn is_nan(self, v: u64) -> bool {
        v & (self.sign() - 1) > self.infinity()
    }

    pub fn is_subnormal(self, v: u64) -> bool {
        let magnitude = v & (self.sign() - 1);
        magnitude != 0 && magnitude >> self.fraction == 0
    }

    /// Subnormals to zeros of their sign.
    pub fn flush(self, v: u64) -> u64 {
        if self.is_subnormal(v) { v & self.sign() } else { v }
    }

    pub fn value(self, v: u64) -> Value {
        let negative = v & self.sign() != 0;
        let (exponent, fraction) = ((v >> self.fraction) & self.top(), v & ((1 << self.fraction) - 1));
        match (exponent == self.top(), exponent, fraction) {
            (true, _, 0) => Infinite(negative),
            (true, ..) => Nan,
            (_, 0, 0) => Zero(negative),
            (_, 0, _) => Finite(negative, fraction.into(), 1 - self.bias() - self.fraction as i32),
            _ => {
                let magnitude = fraction | 1 << self.fraction;
                Finite(negative, magnitude.into(), exponent as i32 - self.bias() - self.fraction as i32)
            }
        }
    }

    /// The bits of a value, rounded once.
    pub fn bits(self, v: Value, round: Round) -> u64 {
        let (negative, magnitude, exponent) = match v {
            Nan => return self.nan(),
            Infinite(negative) => return self.infinity() | if negative { self.sign() } else { 0 },
            Zero(negative) => return if negative { self.sign() } else { 0 },
            Finite(negative, magnitude, exponent) => (negative, magnitude, exponent),
        };
        let sign = if negative { self.sign() } else { 0 };
        let least = 1 - self.bias() - self.fraction as i32;
        let length = 128 - magnitude.leading_zeros() as i32;
        // The unit of the result: so that fraction + 1 bits remain, or the least subnormal.
        let unit = (exponent + length - self.fraction as i32 - 1).max(least);
        let mut kept = round_shift(magnitude, unit - exponent, round, negative);
        let mut unit = unit;
        if kept >> (self.fraction + 1) != 0 {
            kept >>= 1;
            unit += 1;
        }
        let normal = kept >> self.fraction != 0;
        let biased = if normal { unit + self.bias() + self.fraction as i32 } else { 0 };
        if biased >= self.top() as i32 {
            let finite = match round {
                Round::Near | Round::Away => false,
                Round::Zero => true,
                Round::Down => !negative,
                Round::Up => negative,
            };
            return sign | if finite { self.largest() } else { self.infinity() };
        }
        sign | (biased as u64) << self.fraction | (kept as u64 & ((1 << self.fraction) - 1))
    }
}

/// magnitude / 2^shift, rounded to an integer.
pub fn round_shift(magnitude: u128, shift: i32, round: Round, negative: bool) -> u128 {
    if shift <= 0 {
        return magnitude << -shift;
    }
    let (kept, rest, half) = match shift {
        1..=127 => (magnitude >> shift, magnitude & ((1 << shift) - 1), 1 << (shift - 1)),
        _ => (0, magnitude.min(1), u128::MAX),
    };
    let up = match round {
        Round::Near => rest > half || rest == half && kept & 1 == 1,
        Round::Away => rest >= half,
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
    };
    kept + u128::from(up)
}

fn sign_of(v: Value) -> bool {
    match v {
        Nan => false,
        Infinite(s) | Zero(s) | Finite(s, ..) => s,
    }
}

pub fn neg(v: Value) -> Value {
    match v {
        Nan => Nan,
        Infinite(s) => Infinite(!s),
        Zero(s) => Zero(!s),
        Finite(s, m, e) => Finite(!s, m, e),
    }
}

pub fn mul(a: Value, b: Value) -> Value {
    let sign = sign_of(a) != sign_of(b);
    match (a, b) {
        (Nan, _) | (_, Nan) | (Infinite(_), Zero(_)) | (Zero(_), Infinite(_)) => Nan,
        (Infinite(_), _) | (_, Infinite(_)) => Infinite(sign),
        (Zero(_), _) | (_, Zero(_)) => Zero(sign),
        (Finite(_, m, e), Finite(_, n, f)) => Finite(sign, m * n, e + f),
    }
}

/// Normalises a magnitude to 126 bits.
fn stretch(m: u128, e: i32) -> (u128, i32) {
    let shift = m.leading_zeros() as i32 - 2;
    (m << shift, e - shift)
}

/// The sum; `round` decides the sign of an exact zero.
pub fn add(a: Value, b: Value, round: Round) -> Value {
    match (a, b) {
        (Nan, _) | (_, Nan) => Nan,
        (Infinite(s), Infinite(t)) => {
            if s == t {
                a
            } else {
                Nan
            }
        }
        (Infinite(_), _) => a,
        (_, Infinite(_)) => b,
        (Zero(s), Zero(t)) => Zero(if s == t { s } else { round == Round::Down }),
        (Zero(_), _) => b,
        (_, Zero(_)) => a,
        (Finite(s, m, e), Finite(t, n, f)) => {
            let ((m, e), (n, f)) = (stretch(m, e), stretch(n, f));
            let ((s, m, e), (t, n, f)) = if (e, m) >= (f, n) { ((s, m, e), (t, n, f)) } else { ((t, n, f), (s, m, e)) };
            let shift = (e - f) as u32;
            let low = match shift {
                0 => n,
                1..=126 => n >> shift | u128::from(n & ((1 << shift) - 1) != 0),
                _ => 1,
            };
            if s == t {
                return Finite(s, m + low, e);
            }
            match m.cmp(&low) {
                Ordering::Equal => Zero(round == Round::Down),
                _ => Finite(s, m - low, e),
            }
        }
    }
}

pub fn div(a: Value, b: Value) -> Value {
    let sign = sign_of(a) != sign_of(b);
    match (a, b) {
        (Nan, _) | (_, Nan) | (Infinite(_), Infinite(_)) | (Zero(_), Zero(_)) => Nan,
        (Infinite(_), _) | (_, Zero(_)) => Infinite(sign),
        (Zero(_), _) | (_, Infinite(_)) => Zero(sign),
        (Finite(_, m, e), Finite(_, n, f)) => {
            let (m, e) = stretch(m, e);
            // Two more bits make room for the sticky one.
            let (q, r) = (m / n, m % n);
            Finite(sign, q << 2 | u128::from(r != 0), e - f - 2)
        }
    }
}

pub fn sqrt(a: Value) -> Value {
    match a {
        Finite(false, m, e) => {
            let (mut m, mut e) = stretch(m, e);
            if e % 2 != 0 {
                m <<= 1;
                e -= 1;
            }
            let mut root = (m as f64).sqrt() as u128;
            while root * root > m {
                root -= 1;
            }
            while (root + 1) * (root + 1) <= m {
                root += 1;
            }
            Finite(false, root << 2 | u128::from(root * root != m), e / 2 - 2)
        }
        Finite(true, ..) | Infinite(true) => Nan,
        other => other,
    }
}

/// To an integral value.
pub fn integral(v: Value, round: Round) -> Value {
    let Finite(s, m, e) = v else { return v };
    match round_shift(m, if e < 0 { -e } else { 0 }, round, s) {
        0 => Zero(s),
        kept => Finite(s, kept, e.max(0)),
    }
}

/// An integer as a value.
pub fn integer(v: i128) -> Value {
    if v == 0 { Zero(false) } else { Finite(v < 0, v.unsigned_abs(), 0) }
}

/// An integral value as an integer, clamped to ±2^100; NaN is 0.
pub fn to_integer(v: Value) -> i128 {
    let large = |s| if s { -(1i128 << 100) } else { 1 << 100 };
    match v {
        Nan | Zero(_) => 0,
        Infinite(s) => large(s),
        Finite(s, m, e) => {
            let length = 128 - m.leading_zeros() as i32 + e;
            if length > 100 {
                return large(s);
            }
            let magnitude = if e >= 0 { m << e } else { m >> -e } as i128;
            if s { -magnitude } else { magnitude }
        }
    }
}

/// Order of two values, None where one is NaN.
pub fn compare(a: Value, b: Value) -> Option<Ordering> {
    match add(a, neg(b), Round::Near) {
        _ if matches!((a, b), (Nan, _) | (_, Nan)) => None,
        Nan | Zero(_) => Some(Ordering::Equal), // ∞ - ∞ of one sign
        Infinite(s) | Finite(s, ..) => Some(if s { Ordering::Less } else { Ordering::Greater }),
    }
}

#[test]
fn agrees_with_the_host_where_the_host_can_tell() {
    let rows = crate::values::rows(&["f32", "f32"], 2000);
    for row in rows {
        let (a, b) = (f32::from_bits(row[0] as u32), f32::from_bits(row[1] as u32));
        let (x, y) = (F32.value(row[0]), F32.value(row[1]));
        let same = |v: Value, host: f32| {
            let bits = F32.bits(v, Round::Near);
            bits == u64::from(host.to_bits()) || F32.is_nan(bits) && host.is_nan()
        };
        assert!(same(add(x, y, Round::Near), a + b), "{a} + {b}");
        assert!(same(mul(x, y), a * b), "{a} * {b}");
        assert!(same(div(x, y), a / b), "{a} / {b}");
        assert!(same(sqrt(x), a.sqrt()), "sqrt {a}");
        assert_eq!(compare(x, y), a.partial_cmp(&b), "{a} ? {b}");
    }
}
