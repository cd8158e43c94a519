//! Constant expressions, in the 64-bit arithmetic of the PTX ISA.

use super::{Kind, Parsed, Parser, Refusal};
use crate::ptx::tree::{Constant, Position};

/// Binary operators by how tightly they bind.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<", "<=", ">", ">="],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

/// The level of `+` and `-`: a `|` behind a constant then stays for whoever called.
const ADDITIVE: usize = 8;

impl Parser<'_, '_> {
    /// A constant expression.
    pub(super) fn constant(&mut self) -> Parsed<Constant> {
        self.nested(|p| p.conditional())
    }

    /// A constant expression that counts something.
    pub(super) fn size(&mut self) -> Parsed<u64> {
        let at = self.at();
        match self.constant()? {
            Constant::Signed(value) if value >= 0 => Ok(value as u64),
            Constant::Unsigned(value) => Ok(value),
            _ => Err(Refusal::new(at, "expected a size")),
        }
    }

    /// `+ 4`, `- 4`, `+ -4` or nothing.
    pub(super) fn offset(&mut self) -> Parsed<i64> {
        let negative = self.is("-");
        if !negative && !self.is("+") {
            return Ok(0);
        }
        self.next += 1;
        let at = self.at();
        let first = self.nested(|p| p.unary())?;
        let value = integer(first, at)?.wrapping_mul(if negative { -1 } else { 1 });
        Ok(value.wrapping_add(self.offset_rest()?))
    }

    fn offset_rest(&mut self) -> Parsed<i64> {
        if self.is("+") || self.is("-") { self.nested(|p| p.offset()) } else { Ok(0) }
    }

    fn conditional(&mut self) -> Parsed<Constant> {
        let condition = self.binary(0)?;
        if !self.take("?") {
            return Ok(condition);
        }
        let then = self.nested(|p| p.conditional())?;
        self.expect(":")?;
        let otherwise = self.nested(|p| p.conditional())?;
        Ok(if truth(condition) { then } else { otherwise })
    }

    /// Operators of `level` and above.
    fn binary(&mut self, level: usize) -> Parsed<Constant> {
        if level >= LEVELS.len() {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        loop {
            let at = self.at();
            let Kind::Mark(mark) = self.kind() else { return Ok(left) };
            if !LEVELS[level].contains(&mark) {
                return Ok(left);
            }
            self.next += 1;
            let right = self.binary(level + 1)?;
            left = apply(mark, left, right, at)?;
        }
    }

    /// A constant of an instruction's operand: sums only, as `|` and its kin part operands there.
    pub(super) fn operand_constant(&mut self) -> Parsed<Constant> {
        self.nested(|p| p.binary(ADDITIVE))
    }

    fn unary(&mut self) -> Parsed<Constant> {
        let token = self.advance();
        let at = token.at;
        match token.kind {
            Kind::Integer(value, true) => Ok(Constant::Unsigned(value)),
            Kind::Integer(value, false) => Ok(Constant::Signed(value as i64)),
            Kind::Single(bits) => Ok(Constant::Single(bits)),
            Kind::Double(value) => Ok(Constant::Double(value)),
            Kind::Name("WARP_SZ") => Ok(Constant::Signed(32)),
            Kind::Mark("(") => self.nested(|p| p.parenthesised()),
            Kind::Mark("+") => self.nested(|p| p.unary()),
            Kind::Mark("-") => Ok(match self.nested(|p| p.unary())? {
                Constant::Signed(value) => Constant::Signed(value.wrapping_neg()),
                Constant::Unsigned(value) => Constant::Unsigned(value.wrapping_neg()),
                Constant::Single(bits) => Constant::Single(bits ^ 1 << 31),
                Constant::Double(value) => Constant::Double(-value),
            }),
            Kind::Mark("!") => {
                let value = self.nested(|p| p.unary())?;
                Ok(Constant::Signed(i64::from(!truth(value))))
            }
            Kind::Mark("~") => Ok(match self.nested(|p| p.unary())? {
                Constant::Signed(value) => Constant::Signed(!value),
                other => Constant::Unsigned(!integer(other, at)? as u64),
            }),
            _ => {
                self.next -= 1;
                Err(self.unexpected("a constant"))
            }
        }
    }

    /// What follows `(`: an expression, or a cast and what it applies to.
    fn parenthesised(&mut self) -> Parsed<Constant> {
        let cast = match self.kind() {
            Kind::Dot(cast @ ("s64" | "u64")) => cast,
            Kind::Dot(_) => return Err(self.unexpected("'.s64' or '.u64'")),
            _ => {
                let value = self.conditional()?;
                self.expect(")")?;
                return Ok(value);
            }
        };
        self.next += 1;
        self.expect(")")?;
        let at = self.at();
        let value = integer(self.unary()?, at)?;
        Ok(if cast == "s64" { Constant::Signed(value) } else { Constant::Unsigned(value as u64) })
    }
}

fn truth(value: Constant) -> bool {
    match value {
        Constant::Signed(v) => v != 0,
        Constant::Unsigned(v) => v != 0,
        Constant::Single(bits) => f32::from_bits(bits) != 0.0,
        Constant::Double(v) => v != 0.0,
    }
}

/// The 64 bits of an integer constant.
pub(super) fn integer(value: Constant, at: Position) -> Parsed<i64> {
    match value {
        Constant::Signed(v) => Ok(v),
        Constant::Unsigned(v) => Ok(v as i64),
        _ => Err(Refusal::new(at, "expected an integer constant")),
    }
}

fn float(value: Constant) -> f64 {
    match value {
        Constant::Signed(v) => v as f64,
        Constant::Unsigned(v) => v as f64,
        Constant::Single(bits) => f64::from(f32::from_bits(bits)),
        Constant::Double(v) => v,
    }
}

fn apply(mark: &str, left: Constant, right: Constant, at: Position) -> Parsed<Constant> {
    let is_float = |c| matches!(c, Constant::Single(_) | Constant::Double(_));
    let flag = |value: bool| Ok(Constant::Signed(i64::from(value)));
    match mark {
        "&&" => return flag(truth(left) && truth(right)),
        "||" => return flag(truth(left) || truth(right)),
        _ => {}
    }
    if is_float(left) || is_float(right) {
        let (a, b) = (float(left), float(right));
        return match mark {
            "+" => Ok(Constant::Double(a + b)),
            "-" => Ok(Constant::Double(a - b)),
            "*" => Ok(Constant::Double(a * b)),
            "/" => Ok(Constant::Double(a / b)),
            "<" => flag(a < b),
            "<=" => flag(a <= b),
            ">" => flag(a > b),
            ">=" => flag(a >= b),
            "==" => flag(a == b),
            "!=" => flag(a != b),
            _ => Err(Refusal::new(at, format!("'{mark}' does not apply to floating-point constants"))),
        };
    }
    let (a, b) = (integer(left, at)?, integer(right, at)?);
    let unsigned = matches!(left, Constant::Unsigned(_)) || matches!(right, Constant::Unsigned(_));
    let (ua, ub) = (a as u64, b as u64);
    let value = |signed: i64| if unsigned { Constant::Unsigned(signed as u64) } else { Constant::Signed(signed) };
    match mark {
        "+" => Ok(value(a.wrapping_add(b))),
        "-" => Ok(value(a.wrapping_sub(b))),
        "*" => Ok(value(a.wrapping_mul(b))),
        "/" | "%" if b == 0 => Err(Refusal::new(at, "division by zero")),
        "/" if unsigned => Ok(Constant::Unsigned(ua / ub)),
        "/" => Ok(Constant::Signed(a.wrapping_div(b))),
        "%" if unsigned => Ok(Constant::Unsigned(ua % ub)),
        "%" => Ok(Constant::Signed(a.wrapping_rem(b))),
        "&" => Ok(value(a & b)),
        "|" => Ok(value(a | b)),
        "^" => Ok(value(a ^ b)),
        "<<" => Ok(keep(left, if ub < 64 { a << ub } else { 0 })),
        ">>" if matches!(left, Constant::Unsigned(_)) => Ok(Constant::Unsigned(if ub < 64 { ua >> ub } else { 0 })),
        ">>" => Ok(Constant::Signed(a >> ub.min(63))),
        "<" => flag(if unsigned { ua < ub } else { a < b }),
        "<=" => flag(if unsigned { ua <= ub } else { a <= b }),
        ">" => flag(if unsigned { ua > ub } else { a > b }),
        ">=" => flag(if unsigned { ua >= ub } else { a >= b }),
        "==" => flag(a == b),
        "!=" => flag(a != b),
        _ => Err(Refusal::new(at, format!("'{mark}' is not an operator of constants"))),
    }
}

/// A shift keeps the signedness of what it shifts.
fn keep(of: Constant, bits: i64) -> Constant {
    if matches!(of, Constant::Unsigned(_)) { Constant::Unsigned(bits as u64) } else { Constant::Signed(bits) }
}
