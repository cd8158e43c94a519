//! printf as C knows it, with arguments as the device runtime is handed them.

use super::block::Block;
use super::warp::{Trouble, Worker};

impl Worker<'_> {
    /// Formats as C's printf, arguments laid out as in a C structure.
    pub(super) fn print(
        &mut self,
        b: &mut Block,
        w: usize,
        pc: u32,
        lane: usize,
        format: u64,
        mut at: u64,
    ) -> Result<String, Trouble> {
        let code = &self.ctx.kernel.code;
        let wrong = |error| Trouble { lane: lane as u32, error };
        let text = self.string(format).map_err(wrong)?;
        let mut out = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut spec = Spec::default();
            let mut take = |this: &mut Self, n: u32| {
                at = at.next_multiple_of(n.into());
                let v = this.generic(&b.view(code, w, pc), lane, at, n).map_err(wrong);
                at += u64::from(n);
                v
            };
            while let Some(c) = chars.next_if(|c| "-+ #0".contains(*c)) {
                spec.flags.push(c);
            }
            let mut number = |this: &mut Self, chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                if chars.next_if_eq(&'*').is_some() {
                    return take(this, 4).map(|v| v as i32);
                }
                let mut n = 0;
                while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                    n = (n * 10 + d as i32).min(4096);
                    chars.next();
                }
                Ok(n)
            };
            spec.width = number(self, &mut chars)?;
            if chars.next_if_eq(&'.').is_some() {
                spec.precision = Some(number(self, &mut chars)?.clamp(0, 4096) as usize);
            }
            // Bits that count: h halves them each time, and the rest make a long.
            let mut bits = 32;
            while let Some(c) = chars.next_if(|c| "hlLqjzt".contains(*c)) {
                bits = if c == 'h' { bits / 2 } else { 64 };
            }
            let Some(kind) = chars.next() else { break };
            // What is shorter than an int was promoted to one.
            let mut integer = |this: &mut Self| take(this, if bits == 64 { 8 } else { 4 }).map(|v| v << (64 - bits));
            let body = match kind {
                '%' => "%".to_owned(),
                'd' | 'i' => spec.signed(integer(self)? as i64 >> (64 - bits)),
                'u' => spec.digits((integer(self)? >> (64 - bits)).to_string(), ""),
                'x' => spec.digits(format!("{:x}", integer(self)? >> (64 - bits)), "0x"),
                'X' => spec.digits(format!("{:X}", integer(self)? >> (64 - bits)), "0X"),
                'o' => spec.digits(format!("{:o}", integer(self)? >> (64 - bits)), "0"),
                'p' => format!("{:#x}", take(self, 8)?),
                'c' => char::from(take(self, 4)? as u8).to_string(),
                's' => {
                    let a = take(self, 8)?;
                    let s = self.string(a).map_err(wrong)?;
                    spec.precision.map_or(s.clone(), |p| s.chars().take(p).collect())
                }
                'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' => spec.float(kind, f64::from_bits(take(self, 8)?)),
                other => format!("%{other}"),
            };
            out.push_str(&spec.pad(body, kind));
        }
        Ok(out)
    }
}

/// A conversion of printf.
#[derive(Default)]
struct Spec {
    flags: String,
    width: i32,
    precision: Option<usize>,
}

impl Spec {
    fn has(&self, c: char) -> bool {
        self.flags.contains(c)
    }

    fn plus(&self) -> &'static str {
        if self.has('+') {
            "+"
        } else if self.has(' ') {
            " "
        } else {
            ""
        }
    }

    fn signed(&self, v: i64) -> String {
        let digits = format!("{:0>1$}", v.unsigned_abs(), self.precision.unwrap_or(1));
        format!("{}{digits}", if v < 0 { "-" } else { self.plus() })
    }

    fn digits(&self, digits: String, prefix: &str) -> String {
        let prefix = if self.has('#') && digits != "0" { prefix } else { "" };
        format!("{prefix}{digits:0>0$}", self.precision.unwrap_or(1))
    }

    fn float(&self, kind: char, v: f64) -> String {
        let p = self.precision.unwrap_or(6);
        let magnitude = v.abs();
        let body = if !v.is_finite() {
            if v.is_nan() { "nan".to_owned() } else { "inf".to_owned() }
        } else {
            match kind.to_ascii_lowercase() {
                'f' => format!("{magnitude:.p$}"),
                'e' => exponent(magnitude, p),
                'g' => general(magnitude, p.max(1), self.has('#')),
                _ => hexadecimal(magnitude),
            }
        };
        let body = if kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        let negative = v.is_sign_negative() && !v.is_nan();
        format!("{}{body}", if negative { "-" } else { self.plus() })
    }

    fn pad(&self, body: String, kind: char) -> String {
        let width = self.width.unsigned_abs() as usize;
        let missing = width.saturating_sub(body.chars().count());
        let float = "fFeEgGaA".contains(kind);
        let infinite = float && !body.contains(|c: char| c.is_ascii_digit());
        let number = !"csp%".contains(kind) && !infinite;
        if self.has('-') || self.width < 0 {
            format!("{body}{}", " ".repeat(missing))
        } else if self.has('0') && number && (self.precision.is_none() || float) {
            // Zeros come after the sign and what tells the base.
            let digits = body.trim_start_matches(['-', '+', ' ']);
            let digits = digits.strip_prefix("0x").or(digits.strip_prefix("0X")).unwrap_or(digits);
            let (front, digits) = body.split_at(body.len() - digits.len());
            format!("{front}{}{digits}", "0".repeat(missing))
        } else {
            format!("{}{body}", " ".repeat(missing))
        }
    }
}

fn exponent(v: f64, p: usize) -> String {
    let s = format!("{v:.p$e}");
    let (mantissa, e) = s.split_once('e').unwrap_or((&s, "0"));
    let e: i32 = e.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
}

fn general(v: f64, p: usize, keep: bool) -> String {
    let e = if v == 0.0 {
        0
    } else {
        let s = format!("{v:.*e}", p - 1);
        s.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0)
    };
    let trim = |s: &str| {
        if keep || !s.contains('.') { s.to_owned() } else { s.trim_end_matches('0').trim_end_matches('.').to_owned() }
    };
    if e < -4 || e >= p as i32 {
        let s = exponent(v, p - 1);
        let (mantissa, tail) = s.split_once('e').unwrap_or((&s, "+00"));
        format!("{}e{tail}", trim(mantissa))
    } else {
        trim(&format!("{v:.*}", (p as i32 - 1 - e) as usize))
    }
}

fn hexadecimal(v: f64) -> String {
    let bits = v.to_bits();
    let (e, m) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
    let digits = format!("{m:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    match e {
        0 if m == 0 => "0x0p+0".to_owned(),
        0 => format!("0x0{point}{digits}p-1022"),
        _ => format!("0x1{point}{digits}p{:+}", e - 1023),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_c() {
        let spec = |flags: &str, width, precision| Spec { flags: flags.into(), width, precision };
        let float = |s: &Spec, k, v| s.pad(s.float(k, v), k);
        assert_eq!(float(&spec("", 0, None), 'f', 1.5), "1.500000");
        assert_eq!(float(&spec("0", 8, Some(2)), 'f', -1.255), "-0001.25");
        assert_eq!(float(&spec("", 0, None), 'e', 12345.0), "1.234500e+04");
        assert_eq!(float(&spec("", 0, None), 'g', 0.0001), "0.0001");
        assert_eq!(float(&spec("", 0, None), 'g', 1e10), "1e+10");
        assert_eq!(float(&spec("", 0, None), 'g', 100000.0), "100000");
        assert_eq!(float(&spec("+", 0, Some(3)), 'g', 2.71953), "+2.72");
        let s = spec("-", 6, None);
        assert_eq!(s.pad(s.signed(-42), 'd'), "-42   ");
        let s = spec("#", 0, None);
        assert_eq!(s.digits("ff".into(), "0x"), "0xff");
    }
}
