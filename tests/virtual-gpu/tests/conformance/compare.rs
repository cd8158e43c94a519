//! Comparisons and selections.

use std::cmp::Ordering;

use crate::harness::{bits, check, eval};
use crate::oracle as o;
use crate::values::rows;

/// Whether a comparison holds of an order (None: one is NaN).
fn holds(name: &str, order: Option<Ordering>) -> bool {
    use Ordering::*;
    let Some(order) = order else { return matches!(name, "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan") };
    match name {
        "eq" | "equ" => order == Equal,
        "ne" | "neu" => order != Equal,
        "lt" | "ltu" | "lo" => order == Less,
        "le" | "leu" | "ls" => order != Greater,
        "gt" | "gtu" | "hi" => order == Greater,
        "ge" | "geu" | "hs" => order != Less,
        "num" => true,
        _ => false,
    }
}

fn order(ty: &str, ftz: bool, a: u64, b: u64) -> Option<Ordering> {
    if ty.contains('f') {
        let f = o::format(ty);
        let read = |v: u64| f.value(if ftz { f.flush(v) } else { v });
        return o::compare(read(a), read(b));
    }
    let n = bits(ty);
    let int = |v: u64| if ty.starts_with('s') { (i128::from(v) << (128 - n)) >> (128 - n) } else { v.into() };
    Some(int(a).cmp(&int(b)))
}

const FLOAT: [&str; 14] = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

fn comparisons(ty: &str) -> &'static [&'static str] {
    match ty.as_bytes()[0] {
        b'b' => &["eq", "ne"],
        b's' => &["eq", "ne", "lt", "le", "gt", "ge"],
        b'u' => &["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"],
        _ => &FLOAT,
    }
}

const TYPES: [&str; 12] = ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64", "f16"];

const PAIR: [&str; 2] = ["pred", "pred"];

fn combine(name: &str, a: bool, b: bool) -> bool {
    match name {
        ".and" => a && b,
        ".or" => a || b,
        ".xor" => a != b,
        _ => a,
    }
}

fn flushes(ty: &str) -> &'static [&'static str] {
    if matches!(ty, "f32" | "f16" | "f16x2") { &["", ".ftz"] } else { &[""] }
}

#[test]
fn setp() {
    for ty in TYPES {
        let types = [ty, ty, "pred"];
        let mut rows = rows(&types, 300);
        rows.iter_mut().step_by(3).for_each(|r| r[1] = r[0]);
        for compare in comparisons(ty) {
            for flush in flushes(ty) {
                for op in ["", ".and", ".or", ".xor"] {
                    let third = if op.is_empty() { "" } else { ", !c" };
                    let ftz = !flush.is_empty();
                    let result = |r: &[u64]| holds(compare, order(ty, ftz, r[0], r[1]));
                    // p = (a ? b) op c and q = !(a ? b) op c; without an operation just the comparison and its opposite.
                    let code = format!("setp.{compare}{op}{flush}.{ty} d|q, a, b{third};");
                    // Halves write one predicate.
                    let found = if ty == "f16" { vec![] } else { eval(80, &code, &PAIR, &types, &rows) };
                    for (row, found) in rows.iter().zip(found) {
                        let (t, c) = (result(row), row[2] == 0);
                        let wanted = [combine(op, t, c), combine(op, !t, c)].map(u64::from);
                        assert_eq!(found, wanted, "{code} {row:x?}");
                    }
                    let code = format!("setp.{compare}{op}{flush}.{ty} d, a, b{third};");
                    check(&code, "pred", &types, &rows, |r| combine(op, result(r), r[2] == 0).into());
                }
            }
        }
    }
}

#[test]
fn setp_of_pairs() {
    let types = ["f16x2", "f16x2", "pred"];
    let rows = rows(&types, 400);
    for compare in FLOAT {
        for flush in ["", ".ftz"] {
            for op in ["", ".and", ".or", ".xor"] {
                let third = if op.is_empty() { "" } else { ", c" };
                let code = format!("setp.{compare}{op}{flush}.f16x2 d|q, a, b{third};");
                for (row, found) in rows.iter().zip(eval(80, &code, &["pred", "pred"], &types, &rows)) {
                    let half = |s: u32| {
                        let t =
                            holds(compare, order("f16", !flush.is_empty(), row[0] >> s & 0xffff, row[1] >> s & 0xffff));
                        u64::from(combine(op, t, row[2] != 0))
                    };
                    assert_eq!(found, [half(0), half(16)], "{code} {row:x?}");
                }
            }
        }
    }
}

/// Truth as a value of a type: all ones for integers, 1.0 for floats.
fn truth(ty: &str, t: bool) -> u64 {
    match (t, ty) {
        (false, _) => 0,
        (_, "f32") => 0x3f80_0000,
        (_, "f16") => 0x3c00,
        _ => crate::values::mask(bits(ty)),
    }
}

#[test]
fn set() {
    for ty in TYPES {
        let types = [ty, ty, "pred"];
        let mut rows = rows(&types, 200);
        rows.iter_mut().step_by(3).for_each(|r| r[1] = r[0]);
        let results: &[&str] =
            if ty == "f16" { &["u16", "s16", "u32", "s32", "f16"] } else { &["u32", "s32", "f32", "f16"] };
        for to in results {
            for compare in comparisons(ty) {
                for flush in flushes(ty) {
                    for op in ["", ".and", ".or", ".xor"] {
                        let third = if op.is_empty() { "" } else { ", c" };
                        let code = format!("set.{compare}{op}{flush}.{to}.{ty} d, a, b{third};");
                        check(&code, to, &types, &rows, |r| {
                            truth(to, combine(op, holds(compare, order(ty, !flush.is_empty(), r[0], r[1])), r[2] != 0))
                        });
                    }
                }
            }
        }
    }
}

/// Half by half: 1.0 in a pair of floats, 0xffff in an integer.
#[test]
fn set_of_pairs() {
    let types = ["f16x2", "f16x2", "pred"];
    let rows = rows(&types, 300);
    for (to, yes) in [("f16x2", 0x3c00), ("u32", 0xffff), ("s32", 0xffff)] {
        for compare in FLOAT {
            for flush in ["", ".ftz"] {
                for op in ["", ".and", ".or", ".xor"] {
                    let third = if op.is_empty() { "" } else { ", c" };
                    let code = format!("set.{compare}{op}{flush}.{to}.f16x2 d, a, b{third};");
                    check(&code, "b32", &types, &rows, |r| {
                        let half = |s: u32| {
                            let order = order("f16", !flush.is_empty(), r[0] >> s & 0xffff, r[1] >> s & 0xffff);
                            if combine(op, holds(compare, order), r[2] != 0) { yes } else { 0 }
                        };
                        half(0) | half(16) << 16
                    });
                }
            }
        }
    }
}

#[test]
fn selections() {
    for ty in ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64"] {
        let types = [ty, ty, "pred"];
        check(
            &format!("selp.{ty} d, a, b, c;"),
            ty,
            &types,
            &rows(&types, 100),
            |r| if r[2] != 0 { r[0] } else { r[1] },
        );
        let types = [ty, ty, "s32"];
        let code = format!("slct.{ty}.s32 d, a, b, c;");
        check(&code, ty, &types, &rows(&types, 100), |r| if r[2] as i32 >= 0 { r[0] } else { r[1] });
        let types = [ty, ty, "f32"];
        for flush in ["", ".ftz"] {
            // A NaN or a negative number selects b; -0 is not negative, and with .ftz neither is a negative subnormal.
            check(&format!("slct{flush}.{ty}.f32 d, a, b, c;"), ty, &types, &rows(&types, 200), |r| {
                let c = if flush.is_empty() { r[2] } else { o::F32.flush(r[2]) };
                if f32::from_bits(c as u32) >= 0.0 { r[0] } else { r[1] }
            });
        }
    }
}

pub fn all() {
    setp();
    setp_of_pairs();
    set();
    set_of_pairs();
    selections();
}
