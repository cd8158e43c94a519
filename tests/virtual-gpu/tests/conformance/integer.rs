//! Integer arithmetic, carries, bit fields, logic, shifts.

use crate::harness::{bits, check, eval};
use crate::values::{mask, rows};

const INTEGERS: [&str; 6] = ["u16", "u32", "u64", "s16", "s32", "s64"];
const WIDE: [&str; 4] = ["u32", "s32", "u64", "s64"];

fn signed(ty: &str) -> bool {
    ty.starts_with('s')
}

/// The integer that bits of a type mean.
fn int(v: u64, ty: &str) -> i128 {
    let n = bits(ty);
    let v = v & mask(n);
    if signed(ty) && v >> (n - 1) & 1 == 1 { i128::from(v) - (1 << n) } else { v.into() }
}

/// An integer cut to a type.
fn cut(v: i128, ty: &str) -> u64 {
    v as u64 & mask(bits(ty))
}

fn clamp(v: i128, ty: &str) -> u64 {
    let n = bits(ty);
    let (min, max) = if signed(ty) { (-(1 << (n - 1)), (1 << (n - 1)) - 1) } else { (0, (1 << n) - 1) };
    cut(v.clamp(min, max), ty)
}

fn one(name: &str, ty: &str, out: &str, f: impl Fn(i128) -> i128) {
    check(&format!("{name}.{ty} d, a;"), out, &[ty], &rows(&[ty], 200), |r| cut(f(int(r[0], ty)), out));
}

fn two(name: &str, ty: &str, f: impl Fn(i128, i128) -> i128) {
    check(&format!("{name}.{ty} d, a, b;"), ty, &[ty, ty], &rows(&[ty, ty], 200), |r| {
        cut(f(int(r[0], ty), int(r[1], ty)), ty)
    });
}

fn three(name: &str, ty: &str, out: &str, f: impl Fn(i128, i128, i128) -> u64) {
    let types = [ty, ty, out];
    check(&format!("{name}.{ty} d, a, b, c;"), out, &types, &rows(&types, 600), |r| {
        f(int(r[0], ty), int(r[1], ty), int(r[2], out))
    });
}

#[test]
fn arithmetic() {
    for ty in INTEGERS {
        let n = bits(ty);
        two("add", ty, |a, b| a + b);
        two("sub", ty, |a, b| a - b);
        two("mul.lo", ty, |a, b| a.wrapping_mul(b));
        two("mul.hi", ty, |a, b| high(a, b, n));
        two("min", ty, |a, b| a.min(b));
        two("max", ty, |a, b| a.max(b));
        three("sad", ty, ty, |a, b, c| cut(c + (a - b).abs(), ty));
        three("mad.lo", ty, ty, |a, b, c| cut(a.wrapping_mul(b).wrapping_add(c), ty));
        three("mad.hi", ty, ty, |a, b, c| cut(high(a, b, n) + c, ty));
        // Division by zero has no value in the ISA; it is tried elsewhere that it does no harm.
        let divisible: Vec<_> = rows(&[ty, ty], 200).into_iter().filter(|r| r[1] != 0).collect();
        check(&format!("div.{ty} d, a, b;"), ty, &[ty, ty], &divisible, |r| cut(int(r[0], ty) / int(r[1], ty), ty));
        check(&format!("rem.{ty} d, a, b;"), ty, &[ty, ty], &divisible, |r| cut(int(r[0], ty) % int(r[1], ty), ty));
    }
    for ty in ["s16", "s32", "s64"] {
        one("abs", ty, ty, i128::abs);
        one("neg", ty, ty, |a| -a);
    }
    let types = ["s32", "s32"];
    for (name, sign) in [("add", 1), ("sub", -1)] {
        check(&format!("{name}.sat.s32 d, a, b;"), "s32", &types, &rows(&types, 200), |r| {
            clamp(int(r[0], "s32") + sign * int(r[1], "s32"), "s32")
        });
    }
    three("mad.hi.sat", "s32", "s32", |a, b, c| clamp(((a * b) >> 32) + c, "s32"));
    for (ty, out) in [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")] {
        check(&format!("mul.wide.{ty} d, a, b;"), out, &[ty, ty], &rows(&[ty, ty], 200), |r| {
            cut(int(r[0], ty) * int(r[1], ty), out)
        });
        three("mad.wide", ty, out, |a, b, c| cut(a * b + c, out));
    }
}

/// The upper half of a product; 128 bits hold products of 64-bit integers only as wrapped halves.
fn high(a: i128, b: i128, n: u32) -> i128 {
    if n < 64 {
        return (a * b) >> n;
    }
    // Schoolbook on 32-bit limbs of the magnitudes, then the sign.
    let (x, y) = (a.unsigned_abs(), b.unsigned_abs());
    let (x1, x0, y1, y0) = (x >> 32, x & 0xffff_ffff, y >> 32, y & 0xffff_ffff);
    let middle = x1 * y0 + ((x0 * y0) >> 32);
    let middle2 = x0 * y1 + (middle & 0xffff_ffff);
    let upper = x1 * y1 + (middle >> 32) + (middle2 >> 32);
    let lower = x.wrapping_mul(y) as u64;
    if (a < 0) == (b < 0) || (upper == 0 && lower == 0) {
        return upper as i128;
    }
    // -(upper·2^64 + lower), upper half.
    !(upper as i128) + i128::from(lower == 0)
}

#[test]
fn twenty_four_bits() {
    for ty in ["u32", "s32"] {
        let low = |v: i128| {
            let v = v & 0xff_ffff;
            if signed(ty) && v >> 23 == 1 { v - (1 << 24) } else { v }
        };
        two("mul24.lo", ty, |a, b| low(a) * low(b));
        two("mul24.hi", ty, |a, b| (low(a) * low(b)) >> 16);
        three("mad24.lo", ty, ty, |a, b, c| cut(low(a) * low(b) + c, ty));
        three("mad24.hi", ty, ty, |a, b, c| cut(((low(a) * low(b)) >> 16) + c, ty));
    }
    let low = |v: i128| i128::from(((v as i32) << 8) >> 8);
    three("mad24.hi.sat", "s32", "s32", |a, b, c| clamp(((low(a) * low(b)) >> 16) + c, "s32"));
}

#[test]
fn carries() {
    // Two words of a longer number: the carry out of the first goes into the second, and its own carry out is read by a
    // third instruction.
    for ty in WIDE {
        let n = bits(ty);
        let types = [ty; 4];
        let wrap = 1i128 << n;
        let u = |v: u64| i128::from(v & mask(n));
        let rows = rows(&types, 500);
        let add = format!("add.cc.{ty} d, a, c; addc.cc.{ty} q, b, e; addc.{ty} r, 0, 0;");
        for (row, found) in rows.iter().zip(eval(80, &add, &[ty; 3], &types, &rows)) {
            let low = u(row[0]) + u(row[2]);
            let high = u(row[1]) + u(row[3]) + low / wrap;
            assert_eq!(found, [cut(low, ty), cut(high, ty), (high / wrap) as u64], "{add} {row:x?}");
        }
        let sub = format!("sub.cc.{ty} d, a, c; subc.cc.{ty} q, b, e; subc.{ty} r, 0, 0;");
        for (row, found) in rows.iter().zip(eval(80, &sub, &[ty; 3], &types, &rows)) {
            let low = u(row[0]) - u(row[2]);
            let high = u(row[1]) - u(row[3]) - i128::from(low < 0);
            assert_eq!(found, [cut(low, ty), cut(high, ty), cut(-i128::from(high < 0), ty)], "{sub} {row:x?}");
        }
        for half in ["lo", "hi"] {
            let product = |a: u64, b: u64| {
                let (a, b) = (int(a, ty), int(b, ty));
                u(if half == "lo" { a.wrapping_mul(b) as u64 } else { high(a, b, n) as u64 })
            };
            let mad = format!(
                "mad.{half}.cc.{ty} d, a, b, c; madc.{half}.cc.{ty} q, a, c, e; madc.{half}.{ty} r, b, c, e; addc.{ty} s, 0, 0;"
            );
            for (row, found) in rows.iter().zip(eval(80, &mad, &[ty; 4], &types, &rows)) {
                let first = product(row[0], row[1]) + u(row[2]);
                let second = product(row[0], row[2]) + u(row[3]) + first / wrap;
                let third = product(row[1], row[2]) + u(row[3]) + second / wrap;
                // The third writes no carry: the last instruction still sees the second's.
                let wanted = [cut(first, ty), cut(second, ty), cut(third, ty), (second / wrap) as u64];
                assert_eq!(found, wanted, "{mad} {row:x?}");
            }
        }
    }
}

#[test]
fn bit_fields() {
    for ty in ["b32", "b64"] {
        let n = bits(ty) as i128;
        one("popc", ty, "u32", |a| i128::from(a.count_ones()));
        one("clz", ty, "u32", |a| i128::from(a.leading_zeros()) - (128 - n));
        one("brev", ty, ty, |a| a.reverse_bits() >> (128 - n) & mask(n as u32) as i128);
        let types = [ty, ty, "u32", "u32"];
        check(&format!("bfi.{ty} d, a, b, c, e;"), ty, &types, &rows(&types, 800), |r| {
            // The ISA's loop: position and length are their low bytes.
            let (position, length) = ((r[2] & 255) as i128, (r[3] & 255) as i128);
            let mut f = r[1];
            for i in 0..length {
                if position + i < n {
                    let bit = r[0] >> i & 1;
                    f = f & !(1 << (position + i)) | bit << (position + i);
                }
            }
            f
        });
    }
    for ty in WIDE {
        let n = bits(ty) as i128;
        let top = move |v: u64| {
            let v = if signed(ty) && v >> (n - 1) == 1 { !v & mask(n as u32) } else { v };
            (0..n).rev().find(|i| v >> i & 1 == 1)
        };
        let find = |r: &[u64]| top(r[0]).map_or(0xffff_ffff, |i| i as u64);
        check(&format!("bfind.{ty} d, a;"), "u32", &[ty], &rows(&[ty], 200), find);
        let shift = |r: &[u64]| top(r[0]).map_or(0xffff_ffff, |i| (n - 1 - i) as u64);
        check(&format!("bfind.shiftamt.{ty} d, a;"), "u32", &[ty], &rows(&[ty], 200), shift);
        let types = [ty, "u32", "u32"];
        check(&format!("bfe.{ty} d, a, b, c;"), ty, &types, &rows(&types, 800), |r| {
            let (position, length) = ((r[1] & 255) as i128, (r[2] & 255) as i128);
            let bit = |i: i128| r[0] >> i.min(n - 1) & 1;
            let sign = if signed(ty) && length > 0 { bit((position + length - 1).min(n - 1)) } else { 0 };
            (0..n).fold(0, |d, i| d | (if i < length && position + i < n { bit(position + i) } else { sign }) << i)
        });
    }
    for (mode, wraps) in [("clamp", false), ("wrap", true)] {
        let amount = move |v: u64| if wraps { v & 31 } else { v.min(32) };
        for ty in ["u32", "s32"] {
            check(&format!("szext.{mode}.{ty} d, a, b;"), ty, &[ty, "u32"], &rows(&[ty, "u32"], 200), |r| {
                let length = amount(r[1]) as u32;
                let kept = r[0] & mask(length);
                let negative = length > 0 && signed(ty) && kept >> (length - 1) & 1 == 1;
                (if negative { kept | !mask(length) } else { kept }) & mask(32)
            });
        }
        check(&format!("bmsk.{mode}.b32 d, a, b;"), "b32", &["u32", "u32"], &rows(&["u32", "u32"], 200), |r| {
            let (position, length) = (amount(r[0]), amount(r[1]));
            (0..32).filter(|i| (position..position + length).contains(i)).fold(0, |d, i| d | 1 << i)
        });
    }
    let mut fns = rows(&["b32", "b32", "s32"], 300);
    for row in &mut fns {
        row[1] &= 31;
        row[2] = (row[2] % 41).wrapping_sub(20) & mask(32);
    }
    check("fns.b32 d, a, b, c;", "b32", &["b32", "b32", "s32"], &fns, |r| {
        // The ISA's own program.
        let (base, offset) = (r[1] as i32, r[2] as i32);
        let (mut count, step) = if offset == 0 { (0, 0) } else { (offset.abs() - 1, offset.signum()) };
        let mut position = base;
        while (0..32).contains(&position) {
            if r[0] >> position & 1 == 1 {
                if count == 0 {
                    return position as u64;
                }
                count -= 1;
            } else if offset == 0 {
                return 0xffff_ffff;
            }
            position += step;
        }
        0xffff_ffff
    });
}

#[test]
fn dot_products() {
    for at in ["u32", "s32"] {
        for bt in ["u32", "s32"] {
            let out = if signed(at) || signed(bt) { "s32" } else { "u32" };
            let types = [at, bt, out];
            let rows = rows(&types, 400);
            let part = |v: u64, i: u64, n: u32, ty: &str| int(v >> (i * u64::from(n)), &format!("{}{n}", &ty[..1]));
            check(&format!("dp4a.{at}.{bt} d, a, b, c;"), out, &types, &rows, |r| {
                cut(int(r[2], out) + (0..4).map(|i| part(r[0], i, 8, at) * part(r[1], i, 8, bt)).sum::<i128>(), out)
            });
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                check(&format!("dp2a.{mode}.{at}.{bt} d, a, b, c;"), out, &types, &rows, |r| {
                    let products = (0..2).map(|i| part(r[0], i, 16, at) * part(r[1], first + i, 8, bt));
                    cut(int(r[2], out) + products.sum::<i128>(), out)
                });
            }
        }
    }
}

#[test]
fn absolute_differences() {
    for (name, n) in [("vabsdiff4", 8), ("vabsdiff2", 16)] {
        for ty in ["u32", "s32"] {
            let types = [ty, ty, "u32"];
            let element = format!("{}{n}", &ty[..1]);
            let difference = |r: &[u64], i: u64| {
                let part = |v: u64| int(v >> (i * n), &element);
                (part(r[0]) - part(r[1])).unsigned_abs() as u64
            };
            let rows = rows(&types, 300);
            check(&format!("{name}.u32.{ty}.{ty} d, a, b, c;"), "u32", &types, &rows, |r| {
                (0..32 / n).fold(0, |d, i| d | (difference(r, i) & mask(n as u32)) << (i * n))
            });
            check(&format!("{name}.u32.{ty}.{ty}.add d, a, b, c;"), "u32", &types, &rows, |r| {
                (0..32 / n).fold(r[2], |d, i| d + difference(r, i)) & mask(32)
            });
        }
    }
}

#[test]
fn logic_and_shifts() {
    for ty in ["b16", "b32", "b64"] {
        two("and", ty, |a, b| a & b);
        two("or", ty, |a, b| a | b);
        two("xor", ty, |a, b| a ^ b);
        one("not", ty, ty, |a| !a);
        one("cnot", ty, ty, |a| i128::from(a == 0));
        let types = [ty, "u32"];
        check(&format!("shl.{ty} d, a, b;"), ty, &types, &rows(&types, 300), |r| {
            if r[1] >= bits(ty).into() { 0 } else { cut((r[0] as i128) << r[1], ty) }
        });
    }
    for ty in ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"] {
        let types = [ty, "u32"];
        check(&format!("shr.{ty} d, a, b;"), ty, &types, &rows(&types, 300), |r| {
            cut(int(r[0], ty) >> r[1].min(100), ty)
        });
    }
    let types = ["b32", "b32", "u32"];
    for (mode, wraps) in [("clamp", false), ("wrap", true)] {
        let amount = move |v: u64| if wraps { v & 31 } else { v.min(32) };
        check(&format!("shf.l.{mode}.b32 d, a, b, c;"), "b32", &types, &rows(&types, 400), |r| {
            let both = u128::from(r[1]) << 32 | u128::from(r[0]);
            (both << amount(r[2]) >> 32) as u64 & mask(32)
        });
        check(&format!("shf.r.{mode}.b32 d, a, b, c;"), "b32", &types, &rows(&types, 400), |r| {
            let both = u128::from(r[1]) << 32 | u128::from(r[0]);
            (both >> amount(r[2])) as u64 & mask(32)
        });
    }
    let look_up = |table: u64, r: &[u64]| {
        (0..32).fold(0, |d, i| d | (table >> ((r[0] >> i & 1) << 2 | (r[1] >> i & 1) << 1 | r[2] >> i & 1) & 1) << i)
    };
    for table in [0u64, 0x1a, 0x80, 0xfe, 0x96, 0xca, 0xff, 0x40] {
        let code = format!("lop3.b32 d, a, b, c, {table};");
        check(&code, "b32", &["b32"; 3], &rows(&["b32"; 3], 100), |r| look_up(table, r));
    }
    for (name, and) in [("or", false), ("and", true)] {
        let types = ["b32", "b32", "b32", "pred"];
        let code = format!("lop3.{name}.b32 d|q, a, b, c, 0x28, e;");
        let rows = rows(&types, 300);
        for (row, found) in rows.iter().zip(eval(80, &code, &["b32", "pred"], &types, &rows)) {
            let d = look_up(0x28, row);
            let (some, e) = (d != 0, row[3] != 0);
            assert_eq!(found, [d, u64::from(if and { some && e } else { some || e })], "{code} {row:x?}");
        }
    }
    for (name, f) in [("and", (|a, b| a & b) as fn(u64, u64) -> u64), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)] {
        check(&format!("{name}.pred d, a, b;"), "pred", &["pred"; 2], &rows(&["pred"; 2], 0), |r| f(r[0], r[1]));
    }
    check("not.pred d, a;", "pred", &["pred"], &rows(&["pred"], 0), |r| 1 - r[0]);
}

#[test]
fn permutations() {
    let byte = |r: &[u64], i: u64| (if i < 4 { r[0] >> (8 * i) } else { r[1] >> (8 * (i - 4)) }) & 255;
    let types = ["b32", "b32", "u32"];
    check("prmt.b32 d, a, b, c;", "b32", &types, &rows(&types, 600), |r| {
        (0..4).fold(0, |d, i| {
            let selector = r[2] >> (4 * i) & 15;
            let v = byte(r, selector & 7);
            d | (if selector & 8 != 0 { (v >> 7) * 255 } else { v }) << (8 * i)
        })
    });
    // Table of the ISA: which source byte each result byte is, highest first, by mode and the low bits of c.
    let tables = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, table) in tables {
        check(&format!("prmt.b32.{mode} d, a, b, c;"), "b32", &types, &rows(&types, 300), |r| {
            table[(r[2] & 3) as usize].iter().fold(0, |d, i| d << 8 | byte(r, *i))
        });
    }
}

pub fn all() {
    arithmetic();
    twenty_four_bits();
    carries();
    bit_fields();
    dot_products();
    absolute_differences();
    logic_and_shifts();
    permutations();
}
