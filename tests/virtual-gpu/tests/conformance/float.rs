//! Single and double precision.

use crate::harness::{check, check_with};
use crate::oracle::{self as o, F32, F64, Format, Round, Value};
use crate::values::rows;

const ROUNDS: [&str; 5] = ["", ".rn", ".rz", ".rm", ".rp"];

fn is_nan(f: Format, v: u64) -> bool {
    f.is_nan(v)
}

/// Equal bits, any NaN for any other.
fn same(f: Format) -> impl Fn(u64, u64) -> bool {
    move |a, b| a == b || is_nan(f, a) && is_nan(f, b)
}

/// What `.ftz` and `.sat` make of a result.
fn finish(f: Format, v: Value, round: Round, ftz: bool, sat: bool) -> u64 {
    let bits = f.bits(v, round);
    let bits = if ftz { f.flush(bits) } else { bits };
    if !sat {
        return bits;
    }
    let one = f.bits(o::integer(1), Round::Near);
    match f.value(bits) {
        Value::Nan | Value::Zero(_) => 0,
        Value::Infinite(s) | Value::Finite(s, ..) if s => 0,
        _ => bits.min(one),
    }
}

type Exact = fn(&[Value], Round) -> Value;

/// Checks one operation in all its roundings and modes.
fn arithmetic(name: &str, ty: &str, operands: usize, rounds: &[&str], modes: bool, exact: Exact) {
    let f = o::format(ty);
    let names = ["a", "b", "c"];
    let types = vec![ty; operands];
    let rows = rows(&types, 700);
    let flags: &[(bool, bool)] =
        if modes { &[(false, false), (true, false), (false, true), (true, true)] } else { &[(false, false)] };
    for round in rounds {
        for &(ftz, sat) in flags {
            let mods = format!("{round}{}{}", if ftz { ".ftz" } else { "" }, if sat { ".sat" } else { "" });
            let code = format!("{name}{mods}.{ty} d, {};", names[..operands].join(", "));
            let expect = |r: &[u64]| {
                let values: Vec<Value> = r.iter().map(|v| f.value(if ftz { f.flush(*v) } else { *v })).collect();
                let mode = o::round(round);
                finish(f, exact(&values, mode), mode, ftz, sat)
            };
            check_with(&code, ty, &types, &rows, expect, same(f));
        }
    }
}

/// Whether a number of a format is of some class.
type Test = fn(Format, u64) -> bool;

#[test]
fn exact_arithmetic() {
    for (ty, modes) in [("f32", true), ("f64", false)] {
        arithmetic("add", ty, 2, &ROUNDS, modes, |v, r| o::add(v[0], v[1], r));
        arithmetic("sub", ty, 2, &ROUNDS, modes, |v, r| o::add(v[0], o::neg(v[1]), r));
        arithmetic("mul", ty, 2, &ROUNDS, modes, |v, _| o::mul(v[0], v[1]));
        for name in ["fma", "mad"] {
            arithmetic(name, ty, 3, &ROUNDS[1..], modes, |v, r| o::add(o::mul(v[0], v[1]), v[2], r));
        }
    }
}

/// Operations with `.ftz` but without `.sat`.
fn flushable(name: &str, ty: &str, operands: usize, exact: Exact) {
    let f = o::format(ty);
    let types = vec![ty; operands];
    let rows = rows(&types, 500);
    let ftzs: &[bool] = if ty == "f32" { &[false, true] } else { &[false] };
    for round in &ROUNDS[1..] {
        for &ftz in ftzs {
            let code = format!(
                "{name}{round}{}.{ty} d, {};",
                if ftz { ".ftz" } else { "" },
                ["a", "b"][..operands].join(", ")
            );
            let expect = |r: &[u64]| {
                let values: Vec<Value> = r.iter().map(|v| f.value(if ftz { f.flush(*v) } else { *v })).collect();
                finish(f, exact(&values, o::round(round)), o::round(round), ftz, false)
            };
            check_with(&code, ty, &types, &rows, expect, same(f));
        }
    }
}

#[test]
fn exact_division_and_roots() {
    for ty in ["f32", "f64"] {
        flushable("div", ty, 2, |v, _| o::div(v[0], v[1]));
        flushable("rcp", ty, 1, |v, _| o::div(o::integer(1), v[0]));
        flushable("sqrt", ty, 1, |v, _| o::sqrt(v[0]));
    }
}

#[test]
fn signs_and_extremes() {
    for ty in ["f32", "f64"] {
        let f = o::format(ty);
        let ftzs: &[bool] = if ty == "f32" { &[false, true] } else { &[false] };
        for &ftz in ftzs {
            let suffix = if ftz { ".ftz" } else { "" };
            let read = |v: u64| if ftz { f.flush(v) } else { v };
            let plain: Vec<_> = rows(&[ty], 100);
            let abs = |r: &[u64]| read(r[0]) & !f.sign();
            check_with(&format!("abs{suffix}.{ty} d, a;"), ty, &[ty], &plain, abs, same(f));
            check_with(&format!("neg{suffix}.{ty} d, a;"), ty, &[ty], &plain, |r| read(r[0]) ^ f.sign(), same(f));
            let options: &[(&str, bool, bool)] = match ty {
                "f32" => &[
                    ("", false, false),
                    (".NaN", true, false),
                    (".xorsign.abs", false, true),
                    (".NaN.xorsign.abs", true, true),
                ],
                _ => &[("", false, false)],
            };
            for (option, nan, xorsign) in options {
                for name in ["min", "max"] {
                    let code = format!("{name}{suffix}{option}.{ty} d, a, b;");
                    let expect = |r: &[u64]| extreme(f, name == "max", *nan, *xorsign, read(r[0]), read(r[1]));
                    check_with(&code, ty, &[ty, ty], &rows(&[ty, ty], 200), expect, same(f));
                }
            }
        }
        let pairs = rows(&[ty, ty], 100);
        check(&format!("copysign.{ty} d, a, b;"), ty, &[ty, ty], &pairs, |r| r[0] & f.sign() | r[1] & !f.sign());
        let tests: [(&str, Test); 6] = [
            ("finite", |f, v| matches!(f.value(v), Value::Finite(..) | Value::Zero(_))),
            ("infinite", |f, v| matches!(f.value(v), Value::Infinite(_))),
            ("number", |f, v| !f.is_nan(v)),
            ("notanumber", |f, v| f.is_nan(v)),
            ("normal", |f, v| matches!(f.value(v), Value::Finite(..)) && !f.is_subnormal(v)),
            ("subnormal", |f, v| f.is_subnormal(v)),
        ];
        for (test, holds) in tests {
            check(&format!("testp.{test}.{ty} d, a;"), "pred", &[ty], &rows(&[ty], 100), |r| holds(f, r[0]).into());
        }
    }
}

/// `min` and `max` by the ISA: a NaN gives way to a number unless `.NaN`; -0 is less than +0; `.xorsign.abs` takes
/// magnitudes and gives the product of the signs.
pub fn extreme(f: Format, max: bool, nan: bool, xorsign: bool, a: u64, b: u64) -> u64 {
    let sign = (a ^ b) & f.sign();
    let (x, y) = if xorsign { (a & !f.sign(), b & !f.sign()) } else { (a, b) };
    let picked = match (f.is_nan(x), f.is_nan(y)) {
        (true, true) => return f.nan(),
        (true, false) | (false, true) if nan => return f.nan(),
        (true, false) => y,
        (false, true) => x,
        _ => {
            // Sign-magnitude order, in which -0 < +0.
            let key = |v: u64| if v & f.sign() != 0 { -((v & !f.sign()) as i128) - 1 } else { v as i128 };
            if (key(x) > key(y)) == max { x } else { y }
        }
    };
    if xorsign { picked | sign } else { picked }
}

fn host(f: Format, v: u64) -> f64 {
    if f == F32 { f32::from_bits(v as u32).into() } else { f64::from_bits(v) }
}

/// Found within `relative` of the exact value (or `absolute`), special cases as computed.
fn near(f: Format, relative: f64, absolute: f64) -> impl Fn(u64, u64) -> bool {
    move |wanted, found| {
        let (w, x) = (host(F64, wanted), host(f, found));
        if w.is_nan() || w.is_infinite() || x.is_infinite() {
            // A result beyond the largest number may round to it or to infinity.
            let beyond = w.abs() >= 3.4e38 && f == F32 && x.is_infinite();
            return (w.is_nan() && x.is_nan()) || w == x || beyond && (w > 0.0) == (x > 0.0);
        }
        if w == 0.0 {
            return x == 0.0 && w.is_sign_negative() == x.is_sign_negative() || x.abs() <= absolute;
        }
        // Where the result is subnormal, one unit of it.
        let tiny = if f == F32 { 2f64.powi(-149) } else { 0.0 };
        (x - w).abs() <= (w.abs() * relative).max(absolute).max(tiny)
    }
}

/// An approximation against the host's double precision; `domain` keeps to where the ISA states the bound.
fn approximate(
    code: &str,
    operands: usize,
    bound: (f64, f64),
    domain: impl Fn(&[f64]) -> bool,
    exact: impl Fn(&[f64]) -> f64,
) {
    let ftz = code.contains(".ftz");
    let read = |v: &u64| host(F32, if ftz { F32.flush(*v) } else { *v });
    let types = vec!["f32"; operands];
    let mut rows = rows(&types, 2000);
    rows.retain(|r| domain(&r.iter().map(read).collect::<Vec<_>>()));
    assert!(rows.len() > 20, "{code}");
    let compare = near(F32, bound.0, bound.1);
    check_with(
        code,
        "f32",
        &types,
        &rows,
        |r| exact(&r.iter().map(read).collect::<Vec<_>>()).to_bits(),
        |wanted, found| {
            let flushed = ftz && host(F64, wanted).abs() < 2f64.powi(-126) && found & 0x7fff_ffff == 0;
            flushed || compare(wanted, found)
        },
    );
}

#[test]
fn approximations_within_the_bounds_of_the_isa() {
    let ulp = 2f64.powi(-23);
    for ftz in ["", ".ftz"] {
        let divisor = |v: &[f64]| v[1].abs() >= 2f64.powi(-126) && v[1].abs() <= 2f64.powi(126);
        approximate(&format!("div.approx{ftz}.f32 d, a, b;"), 2, (2.0 * ulp, 0.0), divisor, |v| v[0] / v[1]);
        approximate(&format!("div.full{ftz}.f32 d, a, b;"), 2, (2.0 * ulp, 0.0), divisor, |v| v[0] / v[1]);
        let any = |_: &[f64]| true;
        approximate(&format!("rcp.approx{ftz}.f32 d, a;"), 1, (ulp, 0.0), any, |v| 1.0 / v[0]);
        approximate(&format!("sqrt.approx{ftz}.f32 d, a;"), 1, (ulp, 0.0), any, |v| v[0].sqrt());
        let inverse = |v: &[f64]| if v[0] == 0.0 { f64::INFINITY.copysign(v[0]) } else { 1.0 / v[0].sqrt() };
        approximate(&format!("rsqrt.approx{ftz}.f32 d, a;"), 1, (2f64.powf(-22.4), 0.0), any, inverse);
        approximate(&format!("ex2.approx{ftz}.f32 d, a;"), 1, (2f64.powf(-22.5), 0.0), any, |v| v[0].exp2());
        approximate(&format!("lg2.approx{ftz}.f32 d, a;"), 1, (2f64.powf(-22.0), 2f64.powf(-22.0)), any, |v| {
            v[0].log2()
        });
        let turn = |v: &[f64]| v[0].abs() <= std::f64::consts::TAU;
        let bound = (0.0, 2f64.powf(-20.5));
        approximate(&format!("sin.approx{ftz}.f32 d, a;"), 1, bound, turn, |v| v[0].sin());
        approximate(&format!("cos.approx{ftz}.f32 d, a;"), 1, bound, turn, |v| v[0].cos());
        let none = [vec![0x7f80_0000], vec![0xff80_0000]];
        for name in ["sin", "cos"] {
            let code = format!("{name}.approx{ftz}.f32 d, a;");
            check_with(&code, "f32", &["f32"], &none, |_| F32.nan(), |a, b| a == b || F32.is_nan(b));
        }
    }
    approximate("tanh.approx.f32 d, a;", 1, (2f64.powf(-11.0), 0.0), |_| true, |v| v[0].tanh());
}

#[test]
fn double_approximations() {
    let rows = rows(&["f64"], 500);
    // Both read and write the upper 32 bits; subnormals count as zeros.
    let read = |v: u64| host(F64, F64.flush(v & !0xffff_ffff));
    let within = |wanted: u64, found: u64| {
        let (w, x) = (host(F64, wanted), host(F64, found));
        let flushed = w.abs() < f64::MIN_POSITIVE && x == 0.0;
        w.is_nan() && x.is_nan() || w == x || flushed || (x - w).abs() <= w.abs() * 2f64.powi(-19)
    };
    let inverse = |r: &[u64]| (1.0 / read(r[0])).to_bits();
    check_with("rcp.approx.ftz.f64 d, a;", "f64", &["f64"], &rows, inverse, within);
    let root = |v: f64| if v == 0.0 { f64::INFINITY.copysign(v) } else { 1.0 / v.sqrt() };
    check_with("rsqrt.approx.ftz.f64 d, a;", "f64", &["f64"], &rows, |r| root(read(r[0])).to_bits(), within);
    let whole = |r: &[u64]| root(host(F64, r[0])).to_bits();
    check_with("rsqrt.approx.f64 d, a;", "f64", &["f64"], &rows, whole, within);
}

#[test]
fn nan_results_of_single_precision_are_canonical() {
    let nan = vec![vec![0x7fc0_1234, 0xffff_ffff], vec![0x7f80_0000, 0xff80_0000]];
    check("add.f32 d, a, b;", "f32", &["f32", "f32"], &nan, |_| 0x7fff_ffff);
}

pub fn all() {
    exact_arithmetic();
    exact_division_and_roots();
    signs_and_extremes();
    approximations_within_the_bounds_of_the_isa();
    double_approximations();
    nan_results_of_single_precision_are_canonical();
}
