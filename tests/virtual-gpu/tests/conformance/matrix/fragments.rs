//! Matrices of small integers, as fragments and through instructions.

use crate::harness::Program;
use crate::oracle::{self as o, BF16, F16, F32, F64, Round};
use crate::values::Random;

pub const HALVES: &[&str] = &["f16", "bf16"];
pub const BYTES: &[&str] = &["u8", "s8"];
pub const NIBBLES: &[&str] = &["u4", "s4"];

pub fn dimensions(name: &str) -> (usize, usize, usize) {
    let (m, rest) = name[1..].split_once('n').unwrap();
    let (n, k) = rest.split_once('k').unwrap();
    (m.parse().unwrap(), n.parse().unwrap(), k.parse().unwrap())
}

pub fn bits(ty: &str) -> usize {
    match ty {
        "b1" => 1,
        "u4" | "s4" => 4,
        "u8" | "s8" => 8,
        "f16" | "bf16" => 16,
        "f64" => 64,
        _ => 32,
    }
}

/// A small integer as an element.
pub fn encode(v: i64, ty: &str) -> u64 {
    let float = |f: o::Format| f.bits(o::integer(v.into()), Round::Near);
    match ty {
        "f16" => float(F16),
        "bf16" => float(BF16),
        "f32" | "tf32" => float(F32),
        "f64" => float(F64),
        _ => v as u64 & crate::values::mask(bits(ty) as u32),
    }
}

/// Small integers that a type holds.
pub fn range(ty: &str) -> (i64, i64) {
    match ty {
        "b1" => (0, 2),
        "u4" => (0, 16),
        "s4" => (-8, 8),
        "u8" => (0, 256),
        "s8" => (-128, 128),
        _ => (-6, 7),
    }
}

pub type Matrix = Vec<Vec<i64>>;

pub fn random_matrix(random: &mut Random, rows: usize, cols: usize, ty: &str) -> Matrix {
    let (low, high) = range(ty);
    (0..rows).map(|_| (0..cols).map(|_| low + random.below((high - low) as u64) as i64).collect()).collect()
}

/// The registers of a fragment, per lane, as 64-bit words each: elements packed lowest first into 32 bits (f64: 64).
pub fn fragment(
    matrix: &Matrix,
    ty: &str,
    elements: usize,
    place: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<Vec<u64>> {
    let per = if ty == "f64" { 1 } else { 32 / bits(ty) };
    (0..32)
        .map(|lane| {
            let all: Vec<u64> = (0..elements)
                .map(|i| {
                    let (row, col) = place(lane, i);
                    encode(matrix[row][col], ty)
                })
                .collect();
            all.chunks(per)
                .map(|c| c.iter().rev().fold(0, |w, v| if per == 1 { *v } else { w << bits(ty) | v }))
                .collect()
        })
        .collect()
}

/// Runs a matrix instruction over fragments of registers; gives the fragment of D.
pub fn multiply(
    name: &str,
    a: &[Vec<u64>],
    b: &[Vec<u64>],
    c: &[Vec<u64>],
    types: [&str; 4],
    extra: &str,
    e: &[u64],
) -> Vec<Vec<u64>> {
    let [dt, at, bt, ct] = types;
    let register = |ty: &str, i: usize| match ty {
        "f64" => format!("%fd{i}"),
        "f32" => format!("%f{i}"),
        _ => format!("%r{}", i + 10),
    };
    let width = |ty: &str| if ty == "f64" { 64 } else { 32 };
    let d_registers = if dt == ct {
        c[0].len()
    } else if dt == "f16" {
        c[0].len() / 2
    } else {
        c[0].len() * 2
    };
    let mut next = 0;
    let mut list = |ty: &str, n: usize| -> Vec<String> {
        let names = (0..n).map(|i| register(ty, next + i)).collect();
        next += n;
        names
    };
    let (da, db, dc, dd) = (list(at, a[0].len()), list(bt, b[0].len()), list(ct, c[0].len()), list(dt, d_registers));
    let stride = 8 * (da.len() + db.len() + dc.len() + dd.len() + 1);
    let mut body = format!("mad.wide.u32 %rd2, %r1, {stride}, %rd1;\n");
    for (i, (name, ty)) in
        da.iter().map(|n| (n, at)).chain(db.iter().map(|n| (n, bt))).chain(dc.iter().map(|n| (n, ct))).enumerate()
    {
        body += &format!("ld.global.b{} {name}, [%rd2+{}];\n", width(ty), 8 * i);
    }
    let at_d = da.len() + db.len() + dc.len();
    body += &format!("ld.global.b32 %r3, [%rd2+{}];\n", 8 * (at_d + dd.len()));
    let braces = |names: &[String]| format!("{{{}}}", names.join(", "));
    body += &format!("{name} {}, {}, {}, {}{extra};\n", braces(&dd), braces(&da), braces(&db), braces(&dc));
    for (i, name) in dd.iter().enumerate() {
        body += &format!("st.global.b{} [%rd2+{}], {name};\n", width(dt), 8 * (at_d + i));
    }
    let mut buffer = Vec::new();
    for lane in 0..32 {
        for v in a[lane].iter().chain(&b[lane]).chain(&c[lane]) {
            buffer.extend(v.to_le_bytes());
        }
        buffer.resize(buffer.len() + 8 * dd.len(), 0);
        buffer.extend(e.get(lane).unwrap_or(&0).to_le_bytes());
    }
    let found = Program { body: &body, ..Program::default() }.run(&buffer);
    (0..32)
        .map(|lane| {
            let row = &found[lane * stride + 8 * at_d..][..8 * dd.len()];
            row.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
        })
        .collect()
}

/// What D must be: A·B + C in integers, or bits compared.
pub fn product(a: &Matrix, b: &Matrix, c: &Matrix, combine: impl Fn(i64, i64) -> i64) -> Matrix {
    let mut d = c.clone();
    for (i, row) in a.iter().enumerate() {
        for (k, x) in row.iter().enumerate() {
            for (j, y) in b[k].iter().enumerate() {
                d[i][j] += combine(*x, *y);
            }
        }
    }
    d
}
