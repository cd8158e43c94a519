//! Half precision: f16, bf16 and their pairs.

use crate::float::extreme;
use crate::harness::check_with;
use crate::oracle::{self as o, Format, Round, Value};
use crate::values::rows;

/// Applies `f` to a scalar or to both halves.
fn halves(ty: &str, r: &[u64], f: impl Fn(&[u64]) -> u64) -> u64 {
    if !ty.ends_with("x2") {
        return f(r);
    }
    let low: Vec<u64> = r.iter().map(|v| v & 0xffff).collect();
    let high: Vec<u64> = r.iter().map(|v| v >> 16).collect();
    f(&low) | f(&high) << 16
}

/// Equal bits half by half, any NaN for any other.
fn same(ty: &str) -> impl Fn(u64, u64) -> bool {
    let f = o::format(ty);
    move |a, b| {
        let part = |s: u32| {
            let (x, y) = (a >> s & 0xffff, b >> s & 0xffff);
            x == y || f.is_nan(x) && f.is_nan(y)
        };
        part(0) && part(16)
    }
}

fn run(code: &str, ty: &str, operands: usize, expect: impl Fn(&[u64]) -> u64) {
    let types = vec![ty; operands];
    check_with(code, ty, &types, &rows(&types, 600), |r| halves(ty, r, &expect), same(ty));
}

fn clamp(f: Format, bits: u64, sat: bool, relu: bool) -> u64 {
    let one = f.bits(o::integer(1), Round::Near);
    match f.value(bits) {
        Value::Nan => {
            if sat {
                0
            } else {
                bits
            }
        }
        Value::Zero(true) | Value::Finite(true, ..) | Value::Infinite(true) if sat || relu => 0,
        _ => {
            if sat {
                bits.min(one)
            } else {
                bits
            }
        }
    }
}

type Exact = fn(&[Value]) -> Value;

#[test]
fn arithmetic() {
    let operations: [(&str, usize, Exact); 4] = [
        ("add", 2, |v| o::add(v[0], v[1], Round::Near)),
        ("sub", 2, |v| o::add(v[0], o::neg(v[1]), Round::Near)),
        ("mul", 2, |v| o::mul(v[0], v[1])),
        ("fma", 3, |v| o::add(o::mul(v[0], v[1]), v[2], Round::Near)),
    ];
    for ty in ["f16", "f16x2", "bf16", "bf16x2"] {
        let f = o::format(ty);
        let brain = ty.starts_with('b');
        for (name, operands, exact) in operations {
            let rounds: &[&str] = if name == "fma" { &[".rn"] } else { &["", ".rn"] };
            let ends: &[&str] = match (name, brain) {
                ("fma", true) => &["", ".relu"],
                ("fma", false) => &["", ".sat", ".relu"],
                (_, true) => continue, // from sm_90 on
                _ => &["", ".sat"],
            };
            let flushes: &[&str] = if brain { &[""] } else { &["", ".ftz"] };
            for round in rounds {
                for flush in flushes {
                    for end in ends {
                        let code =
                            format!("{name}{round}{flush}{end}.{ty} d, {};", ["a", "b", "c"][..operands].join(", "));
                        run(&code, ty, operands, |r| {
                            let ftz = *flush == ".ftz";
                            let read = |v: &u64| f.value(if ftz { f.flush(*v) } else { *v });
                            let bits = f.bits(exact(&r.iter().map(read).collect::<Vec<_>>()), Round::Near);
                            clamp(f, if ftz { f.flush(bits) } else { bits }, *end == ".sat", *end == ".relu")
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn signs_and_extremes() {
    for ty in ["f16", "f16x2", "bf16", "bf16x2"] {
        let f = o::format(ty);
        let flushes: &[&str] = if ty.starts_with('b') { &[""] } else { &["", ".ftz"] };
        for flush in flushes {
            let read = |v: u64| if flush.is_empty() { v } else { f.flush(v) };
            run(&format!("abs{flush}.{ty} d, a;"), ty, 1, |r| read(r[0]) & !f.sign());
            run(&format!("neg{flush}.{ty} d, a;"), ty, 1, |r| read(r[0]) ^ f.sign());
            for (option, nan, xorsign) in [
                ("", false, false),
                (".NaN", true, false),
                (".xorsign.abs", false, true),
                (".NaN.xorsign.abs", true, true),
            ] {
                for name in ["min", "max"] {
                    run(&format!("{name}{flush}{option}.{ty} d, a, b;"), ty, 2, |r| {
                        extreme(f, name == "max", nan, xorsign, read(r[0]), read(r[1]))
                    });
                }
            }
        }
    }
}

/// An approximation against the host: relative error, and absolute.
fn approximate(code: &str, ty: &str, bound: (f64, f64), exact: impl Fn(f64) -> f64) {
    let f = o::format(ty);
    let host = |v: u64| match f.value(v) {
        Value::Nan => f64::NAN,
        Value::Infinite(s) => {
            if s {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            }
        }
        Value::Zero(s) => {
            if s {
                -0.0
            } else {
                0.0
            }
        }
        Value::Finite(s, m, e) => (if s { -1.0 } else { 1.0 }) * m as f64 * 2f64.powi(e),
    };
    let pairs = ty.ends_with("x2");
    let near = |input: u64, found: u64| {
        let (w, x) = (exact(host(input)), host(found));
        let unit = 2f64.powi(-24);
        w.is_nan() && x.is_nan()
            || w == x
            || x.is_infinite() && w > 65504.0
            || (x - w).abs() <= (w.abs() * bound.0).max(bound.1).max(unit)
    };
    let rows = rows(&[ty], 800);
    for (row, found) in rows.iter().zip(crate::harness::eval(80, code, &[ty], &[ty], &rows)) {
        let fine = near(row[0] & 0xffff, found[0] & 0xffff) && (!pairs || near(row[0] >> 16, found[0] >> 16));
        assert!(fine, "{code} of {:#x} gives {:#x}", row[0], found[0]);
    }
}

#[test]
fn approximations_within_the_bounds_of_the_isa() {
    for ty in ["f16", "f16x2"] {
        approximate(&format!("ex2.approx.{ty} d, a;"), ty, (2f64.powf(-9.9), 0.0), f64::exp2);
        approximate(&format!("tanh.approx.{ty} d, a;"), ty, (0.0, 2f64.powf(-10.987)), f64::tanh);
    }
}

pub fn all() {
    arithmetic();
    signs_and_extremes();
    approximations_within_the_bounds_of_the_isa();
}
