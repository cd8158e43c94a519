//! Calls of functions, and the services of the device runtime.

use super::access::lanes;
use super::block::{Block, Next, first, split, trouble};
use super::link::FUNCTIONS;
use super::recursion;
use super::regs::LANES;
use super::warp::{Trouble, Warp, Worker};
use crate::fault::Kind;
use crate::program::*;

impl Worker<'_> {
    pub(super) fn call(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        call: &Call,
        pc: u32,
        exec: u32,
        mask: u32,
    ) -> Result<Next, Trouble> {
        let k = self.ctx.kernel;
        let (target, part) = match &call.target {
            CallTarget::Builtin(builtin) => {
                self.builtin(b, w, *builtin, call, pc, exec)?;
                return Ok(Next::Following);
            }
            CallTarget::Function(f) => (*f, exec),
            CallTarget::Indirect(s) => {
                let v = b.warps[w].regs.u64s(*s);
                let a = v[first(exec)];
                let f = a.wrapping_sub(FUNCTIONS);
                if !f.is_multiple_of(16) || !k.functions.contains_key(&((f / 16).min(u64::from(u32::MAX)) as u32)) {
                    let what = format!("a call of address {a:#x}, which is no function");
                    return Err(trouble(first(exec), Kind::InvalidCall, what));
                }
                (f as u32 / 16, lanes(exec).filter(|l| v[*l] == a).fold(0, |m, l| m | 1 << l))
            }
        };
        let Some(callee) = k.functions.get(&target) else {
            return Err(trouble(first(exec), Kind::InvalidCall, "a call of a function that is not defined"));
        };
        if callee.params.len() != call.args.len() || callee.returns.len() != call.returns.len() {
            let what = format!(
                "a call with {} arguments and {} results of a function of {} and {}",
                call.args.len(),
                call.returns.len(),
                callee.params.len(),
                callee.returns.len()
            );
            return Err(trouble(first(exec), Kind::InvalidCall, what));
        }
        let warp = &mut b.warps[w];
        if recursion::active(k, &warp.groups[g].stack, pc, target) {
            recursion::enter(k, warp, g, call, target, part)?;
        } else {
            // What an earlier call left behind counts as never written.
            for (from, n) in callee.init {
                warp.regs.init[from as usize..(from + n) as usize].iter_mut().for_each(|m| *m &= !part);
            }
            for l in lanes(part) {
                warp.frame.forget(l, callee.frame.0, callee.frame.1);
                warp.local.forget(l, callee.local.0, callee.local.1);
            }
            for (from, to) in call.args.iter().zip(&callee.params) {
                pass(warp, part, from, to);
            }
        }
        // Whom the guard or another target excludes does not go along.
        let stays = mask & !part;
        if stays != 0 {
            let others = exec & !part;
            if others != 0 && others != stays {
                split(warp, g, stays & !others, pc + 1, pc);
            }
            let remains = warp.groups[g].mask & !part;
            split(warp, g, remains, if others != 0 { pc } else { pc + 1 }, pc);
            if others != 0
                && let Some(last) = warp.groups.last_mut()
            {
                last.counted = true;
            }
        }
        let group = &mut warp.groups[g];
        group.stack.push(pc);
        group.pc = callee.entry;
        Ok(Next::Choose)
    }

    pub(super) fn ret(
        &mut self,
        b: &mut Block,
        w: usize,
        g: usize,
        pc: u32,
        exec: u32,
        mask: u32,
    ) -> Result<Next, Trouble> {
        let k = self.ctx.kernel;
        let warp = &mut b.warps[w];
        if exec != mask {
            split(warp, g, mask & !exec, pc + 1, pc);
        }
        let Some(at) = warp.groups[g].stack.pop() else { return Ok(Next::Choose) };
        let (site, function) = (&k.code[at as usize], k.code[pc as usize].function);
        if recursion::active(k, &warp.groups[g].stack, at, function) {
            recursion::leave(k, warp, site, function, exec);
        } else if let (Op::Call(call), Some(callee)) = (&site.op, k.functions.get(&function)) {
            for (from, to) in callee.returns.iter().zip(&call.returns) {
                pass(warp, exec, from, to);
            }
        }
        for d in &k.operands[site.defs.0 as usize..site.defs.1 as usize] {
            warp.regs.init[*d as usize] |= exec;
        }
        warp.groups[g].pc = at + 1;
        Ok(Next::Choose)
    }

    fn builtin(
        &mut self,
        b: &mut Block,
        w: usize,
        builtin: Builtin,
        call: &Call,
        pc: u32,
        exec: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(exec) {
            let arg = |warp: &Warp, i: usize| call.args.get(i).map_or(0, |a| argument(warp, lane, a));
            let result = match builtin {
                Builtin::Free => {
                    let address = arg(&b.warps[w], 0);
                    if address != 0 {
                        let wrong = |error| Trouble { lane: lane as u32, error };
                        self.ctx.memory.heap_free(address).map_err(wrong)?;
                    }
                    0
                }
                // Null where the heap has no room.
                Builtin::Malloc => self.ctx.memory.heap_alloc(arg(&b.warps[w], 0)).unwrap_or(0),
                Builtin::AssertFail => {
                    let texts = [0, 1, 3].map(|i| self.string(arg(&b.warps[w], i)).unwrap_or_default());
                    let line = arg(&b.warps[w], 2) as u32;
                    let what = format!("{}:{line}: {}: assertion `{}` failed", texts[1], texts[2], texts[0]);
                    return Err(trouble(lane, Kind::Assert, what));
                }
                Builtin::Vprintf => {
                    let (format, at) = (arg(&b.warps[w], 0), arg(&b.warps[w], 1));
                    let text = self.print(b, w, pc, lane, format, at)?;
                    self.ctx.print(&text);
                    1
                }
            };
            if let Some(to) = call.returns.first() {
                store(&mut b.warps[w], lane, to, result);
            }
        }
        Ok(())
    }

    /// Formats as C's printf, arguments laid out as in a C structure.
    fn print(
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
            let mut wide = false;
            while let Some(c) = chars.next_if(|c| "hlLqjzt".contains(*c)) {
                wide |= c != 'h';
            }
            let Some(kind) = chars.next() else { break };
            let n = if wide { 8 } else { 4 };
            let body = match kind {
                '%' => "%".to_owned(),
                'd' | 'i' => {
                    let v = take(self, n)?;
                    spec.signed(if wide { v as i64 } else { v as i32 as i64 })
                }
                'u' => spec.digits(take(self, n)?.to_string(), ""),
                'x' => spec.digits(format!("{:x}", take(self, n)?), "0x"),
                'X' => spec.digits(format!("{:X}", take(self, n)?), "0X"),
                'o' => spec.digits(format!("{:o}", take(self, n)?), "0"),
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
        let number = !"csp%".contains(kind);
        if self.has('-') || self.width < 0 {
            format!("{body}{}", " ".repeat(missing))
        } else if self.has('0') && number && (self.precision.is_none() || "fFeEgGaA".contains(kind)) {
            let signs = body.len() - body.trim_start_matches(['-', '+', ' ']).len();
            format!("{}{}{}", &body[..signs], "0".repeat(missing), &body[signs..])
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

/// Copies a value between a caller's and a callee's place, for the lanes of `m`.
fn pass(warp: &mut Warp, m: u32, from: &Arg, to: &Arg) {
    if let (Arg::Param { offset: a, size: n }, Arg::Param { offset: b, size }) = (from, to) {
        for l in lanes(m) {
            warp.frame.copy(l, *a, *b, *n.min(size));
        }
        return;
    }
    for l in lanes(m) {
        let v = argument(warp, l, from);
        store(warp, l, to, v);
    }
    if let Arg::Reg { width, reg } = to {
        let i = warp.regs.init_index(*reg, width.class());
        warp.regs.init[i] |= m;
    }
}

pub(super) fn argument(warp: &Warp, lane: usize, a: &Arg) -> u64 {
    match a {
        Arg::Reg { width, reg } => warp.regs.lane(Src::Reg(*reg), width.class(), lane),
        Arg::Imm { value: Src::Imm(v), .. } => *v,
        Arg::Imm { .. } => 0,
        Arg::Param { offset, size } => warp.frame.load(lane, u64::from(*offset), (*size).clamp(1, 8)).0,
    }
}

pub(super) fn store(warp: &mut Warp, lane: usize, a: &Arg, v: u64) {
    debug_assert!(lane < LANES);
    match a {
        Arg::Reg { width, reg } => warp.regs.put_lane(*reg, width.class(), lane, v),
        Arg::Param { offset, size } => warp.frame.store(lane, u64::from(*offset), (*size).clamp(1, 8), v),
        Arg::Imm { .. } => {}
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
