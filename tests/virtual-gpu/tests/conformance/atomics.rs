//! `atom` and `red`: what each stores and returns, and that none is lost.

use crate::harness::{Program, bits};
use crate::oracle::{self as o, Round};
use crate::values::{Random, mask, value};

fn int(v: u64, ty: &str) -> i128 {
    let n = bits(ty);
    let v = i128::from(v);
    if ty.starts_with('s') && v >> (n - 1) & 1 == 1 { v - (1 << n) } else { v }
}

/// The sum of floats, half by half for pairs.
fn float_add(ty: &str, a: u64, b: u64) -> u64 {
    let f = o::format(ty);
    let add = |a, b| f.bits(o::add(f.value(a), f.value(b), Round::Near), Round::Near);
    if ty.ends_with("x2") { add(a & 0xffff, b & 0xffff) | add(a >> 16, b >> 16) << 16 } else { add(a, b) }
}

fn apply(op: &str, ty: &str, old: u64, b: u64, c: u64) -> u64 {
    match op {
        "add" if ty.contains('f') => float_add(ty, old, b),
        "add" => (old.wrapping_add(b)) & mask(bits(ty)),
        "min" => {
            if int(old, ty) <= int(b, ty) {
                old
            } else {
                b
            }
        }
        "max" => {
            if int(old, ty) >= int(b, ty) {
                old
            } else {
                b
            }
        }
        "and" => old & b,
        "or" => old | b,
        "xor" => old ^ b,
        "exch" => b,
        "cas" => {
            if old == b {
                c
            } else {
                old
            }
        }
        "inc" => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        "dec" => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        _ => unreachable!(),
    }
}

const OPERATIONS: [(&str, &[&str]); 10] = [
    ("add", &["u32", "s32", "u64", "f32", "f64", "noftz.f16", "noftz.f16x2"]),
    ("min", &["u32", "s32", "u64", "s64"]),
    ("max", &["u32", "s32", "u64", "s64"]),
    ("and", &["b32", "b64"]),
    ("or", &["b32", "b64"]),
    ("xor", &["b32", "b64"]),
    ("exch", &["b32", "b64"]),
    ("cas", &["b16", "b32", "b64"]),
    ("inc", &["u32"]),
    ("dec", &["u32"]),
];

/// Values for which an addition of floats needs no subnormals, which global memory flushes.
fn operand(ty: &str, random: &mut Random) -> u64 {
    loop {
        let v = value(ty, random);
        let plain = match ty {
            "f32" | "f64" => {
                let f = o::format(ty);
                !f.is_subnormal(v)
                    && !f.is_nan(v)
                    && v & f.infinity() != 0
                    && f.bits(f.value(v), Round::Near) & (f.sign() - 1) > 1 << (f.fraction + 4)
            }
            _ => true,
        };
        if plain {
            return v;
        }
    }
}

#[test]
fn every_operation_in_every_space() {
    for (op, types) in OPERATIONS {
        for named in types {
            let ty = named.trim_start_matches("noftz.");
            for space in ["", ".global", ".shared"] {
                for returning in [true, false] {
                    if returning || !matches!(op, "cas" | "exch") {
                        one(op, named, ty, space, returning);
                    }
                }
            }
        }
    }
}

fn one(op: &str, named: &str, ty: &str, space: &str, returning: bool) {
    let n = bits(ty);
    let register = |i: usize| match (ty, n) {
        ("f32", _) => format!("%f{i}"),
        ("f64", _) => format!("%fd{i}"),
        (_, 16) => format!("%h{i}"),
        (_, 64) => format!("%rd{}", i + 10),
        _ => format!("%r{}", i + 10),
    };
    let (d, b, c) = (register(1), register(2), register(3));
    let third = if op == "cas" { format!(", {c}") } else { String::new() };
    let name = if returning { format!("atom{space}.{op}.{named}") } else { format!("red{space}.{op}.{named}") };
    let target = if space == ".shared" { "%r3" } else { "%rd2" };
    let operation = if returning {
        format!("{name} {d}, [{target}], {b}{third}; st.global.b{n} [%rd2+24], {d};")
    } else {
        format!("{name} [{target}], {b}{third};")
    };
    let shared = [
        ".shared .align 8 .b8 area[512]; mov.u32 %r3, area; mad.lo.u32 %r3, %r1, 8, %r3;\n\
         ld.global.b64 %rd9, [%rd2]; st.shared.b64 [%r3], %rd9;"
            .to_owned(),
        "ld.shared.b64 %rd9, [%r3]; st.global.b64 [%rd2], %rd9;".to_owned(),
    ];
    let [before, after] = if space == ".shared" { shared } else { [String::new(), String::new()] };
    let body = format!(
        "mad.wide.u32 %rd2, %r1, 32, %rd1; {before}\n\
         ld.global.b{n} {b}, [%rd2+8]; ld.global.b{n} {c}, [%rd2+16];\n{operation}\n{after}"
    );
    let mut random = Random(n.into());
    let mut rows: Vec<[u64; 4]> =
        (0..64).map(|_| [operand(ty, &mut random), operand(ty, &mut random), operand(ty, &mut random), 0]).collect();
    rows.iter_mut().step_by(3).for_each(|r| r[1] = r[0]);
    let buffer: Vec<u8> = rows.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let found = Program { body: &body, block: 64, ..Program::default() }.run(&buffer);
    let same = |a: u64, b: u64| {
        if !ty.contains('f') {
            return a == b;
        }
        let f = o::format(ty);
        let part = |s: u32, m: u64| {
            let (x, y) = (a >> s & m, b >> s & m);
            x == y || f.is_nan(x) && f.is_nan(y)
        };
        if ty.ends_with("x2") { part(0, 0xffff) && part(16, 0xffff) } else { part(0, mask(n)) }
    };
    for (t, row) in rows.iter().enumerate() {
        let word = |i: usize| u64::from_le_bytes(found[32 * t + 8 * i..][..8].try_into().unwrap()) & mask(n);
        let wanted = apply(op, ty, row[0], row[1], row[2]);
        assert!(same(wanted, word(0)), "{name} of {row:x?} leaves {:x}, wanted {wanted:x}", word(0));
        if returning {
            assert_eq!(word(3), row[0], "{name} returns the old value");
        }
    }
}

#[test]
fn orders_and_scopes() {
    for scope in [".cta", ".gpu", ".sys"] {
        for order in [".relaxed", ".acquire", ".release", ".acq_rel"] {
            contended(&format!("atom{order}{scope}.global.add.u32 %r3, [%rd1], %r1;"));
        }
        for order in [".relaxed", ".release"] {
            contended(&format!("red{order}{scope}.global.add.u32 [%rd1], %r1;"));
        }
        contended(&format!("atom{scope}.global.add.u32 %r3, [%rd1], %r1;"));
        contended(&format!("red{scope}.global.add.u32 [%rd1], %r1;"));
    }
    contended("atom.global.add.u32 _, [%rd1], %r1;");
    let policy = "createpolicy.fractional.L2::evict_last.b64 %rd9;";
    contended(&format!("{policy} atom.global.add.L2::cache_hint.u32 %r3, [%rd1], %r1, %rd9;"));
    contended(&format!("{policy} red.global.add.L2::cache_hint.u32 [%rd1], %r1, %rd9;"));
}

/// All threads of ten blocks add their index to one word.
fn contended(code: &str) {
    let found = Program { body: code, grid: 10, block: 96, ..Program::default() }.words(&[5]);
    assert_eq!(found, [5 + 10 * (95 * 96 / 2)], "{code}");
}

#[test]
fn old_values_are_all_different() {
    let body = "atom.global.inc.u32 %r3, [%rd1], 999999; mad.wide.u32 %rd2, %r3, 4, %rd1; st.global.u32 [%rd2+4], 1;";
    let found = Program { body, grid: 4, block: 128, ..Program::default() }.words(&[0; 513]);
    assert_eq!(found[0], 512);
    assert!(found[1..].iter().all(|v| *v == 1));
}

pub fn all() {
    every_operation_in_every_space();
    orders_and_scopes();
    old_values_are_all_different();
}
