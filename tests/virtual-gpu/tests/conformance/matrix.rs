//! Matrices across a warp. Every fragment is laid out lane by lane with the formulas of the ISA's section on matrix
//! multiplication: `groupID = lane >> 2`, `threadID_in_group = lane % 4`.

use crate::harness::Program;
use crate::oracle::{self as o, BF16, F16, F32, F64, Round};
use crate::values::Random;

#[test]
fn ldmatrix() {
    for count in [1usize, 2, 4] {
        for trans in ["", ".trans"] {
            for space in ["", ".shared", ".shared::cta"] {
                let regs = ["%r20", "%r21", "%r22", "%r23"][..count].join(", ");
                let list = format!("{{{regs}}}");
                let address = if space.is_empty() { "cvta.shared.u64 %rd3, %rd3;" } else { "" };
                // 32 rows of 8 halves, in an order of rows that is not that of memory.
                let mut body = format!(
                    ".shared .align 16 .b8 area[512]; mov.u64 %rd4, area; mad.wide.u32 %rd3, %r1, 16, %rd4;\n\
                     mad.wide.u32 %rd2, %r1, 16, %rd1; ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%rd2];\n\
                     st.shared.v4.u32 [%rd3], {{%r10, %r11, %r12, %r13}}; bar.sync 0;\n\
                     xor.b32 %r3, %r1, 3; mad.wide.u32 %rd3, %r3, 16, %rd4; {address}\n\
                     ldmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 {list}, [%rd3];\n"
                );
                for i in 0..count {
                    body += &format!("st.global.u32 [%rd2+{}], %r{};\n", 4 * i, 20 + i);
                }
                let halves: Vec<u16> = (0..256).map(|i| i * 257 + 1).collect();
                let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
                let found = crate::harness::words(&Program { body: &body, ..Program::default() }.run(&bytes));
                for lane in 0..32 {
                    for i in 0..count {
                        let element = |j: usize| {
                            let (row, col) = (lane / 4, 2 * (lane % 4) + j);
                            let (row, col) = if trans.is_empty() { (row, col) } else { (col, row) };
                            // Row `row` of matrix `i` is at the address of lane 8 i + row.
                            u32::from(halves[((8 * i + row) ^ 3) * 8 + col])
                        };
                        assert_eq!(found[4 * lane + i], element(0) | element(1) << 16, "x{count}{trans} lane {lane}");
                    }
                }
            }
        }
    }
}

#[test]
fn movmatrix() {
    let body = "mad.wide.u32 %rd2, %r1, 4, %rd1; ld.global.u32 %r3, [%rd2];\n\
         movmatrix.sync.aligned.m8n8.trans.b16 %r4, %r3; st.global.u32 [%rd2], %r4;";
    let halves: Vec<u16> = (0..64).map(|i| i * 1021 + 3).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let found = Program { body, ..Program::default() }.run(&bytes);
    for (i, h) in found.chunks(2).enumerate() {
        assert_eq!(u16::from_le_bytes([h[0], h[1]]), halves[i % 8 * 8 + i / 8]);
    }
}

/// Where element `i` of a lane's fragment lies: row, column.
type Place = fn(lane: usize, i: usize) -> (usize, usize);

struct Shape {
    name: &'static str,
    types: &'static [&'static str],
    a: Place,
    b: Place,
    c: Place,
}

fn c_tall(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + (i & 1))
}

fn c_small(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4, lane % 4 * 2 + (i & 1))
}

const HALVES: &[&str] = &["f16", "bf16"];
const BYTES: &[&str] = &["u8", "s8"];
const NIBBLES: &[&str] = &["u4", "s4"];

/// The formulas of the ISA, shape by shape.
const SHAPES: [Shape; 15] = [
    Shape {
        name: "m16n8k8",
        types: HALVES,
        a: |l, i| (l / 4 + if i < 2 { 0 } else { 8 }, l % 4 * 2 + (i & 1)),
        b: |l, i| (l % 4 * 2 + i, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m16n8k16",
        types: HALVES,
        a: |l, i| {
            (l / 4 + if i < 2 || (4..6).contains(&i) { 0 } else { 8 }, l % 4 * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        },
        b: |l, i| (l % 4 * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m16n8k4",
        types: &["tf32"],
        a: |l, i| (l / 4 + if i == 0 { 0 } else { 8 }, l % 4),
        b: |l, _| (l % 4, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m16n8k8",
        types: &["tf32"],
        a: |l, i| (l / 4 + if i == 0 || i == 2 { 0 } else { 8 }, l % 4 + if i < 2 { 0 } else { 4 }),
        b: |l, i| (l % 4 + if i == 0 { 0 } else { 4 }, l / 4),
        c: c_tall,
    },
    Shape { name: "m8n8k4", types: &["f64"], a: |l, _| (l / 4, l % 4), b: |l, _| (l % 4, l / 4), c: c_small },
    Shape {
        name: "m8n8k16",
        types: BYTES,
        a: |l, i| (l / 4, l % 4 * 4 + i),
        b: |l, i| (l % 4 * 4 + i, l / 4),
        c: c_small,
    },
    Shape {
        name: "m16n8k16",
        types: BYTES,
        a: |l, i| (l / 4 + if i < 4 { 0 } else { 8 }, l % 4 * 4 + (i & 3)),
        b: |l, i| (l % 4 * 4 + i, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m16n8k32",
        types: BYTES,
        a: |l, i| {
            (
                l / 4 + if i < 4 || (8..12).contains(&i) { 0 } else { 8 },
                l % 4 * 4 + (i & 3) + if i >= 8 { 16 } else { 0 },
            )
        },
        b: |l, i| (l % 4 * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m8n8k32",
        types: NIBBLES,
        a: |l, i| (l / 4, l % 4 * 8 + i),
        b: |l, i| (l % 4 * 8 + i, l / 4),
        c: c_small,
    },
    Shape {
        name: "m16n8k32",
        types: NIBBLES,
        a: |l, i| (l / 4 + if i < 8 { 0 } else { 8 }, l % 4 * 8 + (i & 7)),
        b: |l, i| (l % 4 * 8 + i, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m16n8k64",
        types: NIBBLES,
        a: |l, i| {
            (
                l / 4 + if i < 8 || (16..24).contains(&i) { 0 } else { 8 },
                l % 4 * 8 + (i & 7) + if i >= 16 { 32 } else { 0 },
            )
        },
        b: |l, i| (l % 4 * 8 + (i & 7) + if i >= 8 { 32 } else { 0 }, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m8n8k128",
        types: &["b1"],
        a: |l, i| (l / 4, l % 4 * 32 + i),
        b: |l, i| (l % 4 * 32 + i, l / 4),
        c: c_small,
    },
    Shape {
        name: "m16n8k128",
        types: &["b1"],
        a: |l, i| (l / 4 + if i < 32 { 0 } else { 8 }, l % 4 * 32 + (i & 31)),
        b: |l, i| (l % 4 * 32 + i, l / 4),
        c: c_tall,
    },
    Shape {
        name: "m16n8k256",
        types: &["b1"],
        a: |l, i| {
            (
                l / 4 + if i < 32 || (64..96).contains(&i) { 0 } else { 8 },
                l % 4 * 32 + (i & 31) + if i >= 64 { 128 } else { 0 },
            )
        },
        b: |l, i| (l % 4 * 32 + (i & 31) + if i >= 32 { 128 } else { 0 }, l / 4),
        c: c_tall,
    },
    // The first tensor cores: four products at once, by four pairs of quads.
    Shape { name: "m8n8k4", types: &["f16"], a: |_, _| (0, 0), b: |_, _| (0, 0), c: |_, _| (0, 0) },
];

fn dimensions(name: &str) -> (usize, usize, usize) {
    let (m, rest) = name[1..].split_once('n').unwrap();
    let (n, k) = rest.split_once('k').unwrap();
    (m.parse().unwrap(), n.parse().unwrap(), k.parse().unwrap())
}

fn bits(ty: &str) -> usize {
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
fn encode(v: i64, ty: &str) -> u64 {
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
fn range(ty: &str) -> (i64, i64) {
    match ty {
        "b1" => (0, 2),
        "u4" => (0, 16),
        "s4" => (-8, 8),
        "u8" => (0, 256),
        "s8" => (-128, 128),
        _ => (-6, 7),
    }
}

type Matrix = Vec<Vec<i64>>;

fn random_matrix(random: &mut Random, rows: usize, cols: usize, ty: &str) -> Matrix {
    let (low, high) = range(ty);
    (0..rows).map(|_| (0..cols).map(|_| low + random.below((high - low) as u64) as i64).collect()).collect()
}

/// The registers of a fragment, per lane, as 64-bit words each: elements packed lowest first into 32 bits (f64: 64).
fn fragment(
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
fn multiply(
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
fn product(a: &Matrix, b: &Matrix, c: &Matrix, combine: impl Fn(i64, i64) -> i64) -> Matrix {
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

fn check_mma(shape: &Shape, ty: &str, bt: &str, ct: &str, dt: &str, modifiers: [&str; 3]) {
    let [before, after, variant] = modifiers;
    let (m, n, k) = dimensions(shape.name);
    let mut random = Random(k as u64 * 31 + bits(ty) as u64);
    let a = random_matrix(&mut random, m, k, ty);
    let b = random_matrix(&mut random, k, n, bt);
    let c = random_matrix(&mut random, m, n, ct);
    let name = format!("mma.sync.aligned.{}.row.col{before}.{dt}.{ty}.{bt}.{ct}{after}", shape.name);
    let combine: fn(i64, i64) -> i64 = match variant {
        "xor" => |x, y| x ^ y,
        _ => |x, y| x * y,
    };
    let d = product(&a, &b, &c, combine);
    let fa = fragment(&a, ty, m * k / 32, shape.a);
    let fb = fragment(&b, bt, k * n / 32, shape.b);
    let fc = fragment(&c, ct, m * n / 32, shape.c);
    let found = multiply(&name, &fa, &fb, &fc, [dt, ty, bt, ct], "", &[]);
    assert_eq!(found, fragment(&d, dt, m * n / 32, shape.c), "{name}");
}

#[test]
fn mma_fragments_lane_by_lane() {
    for shape in &SHAPES[..14] {
        for ty in shape.types {
            match *ty {
                "f16" => {
                    for (ct, dt) in [("f32", "f32"), ("f16", "f16"), ("f32", "f16"), ("f16", "f32")] {
                        if ct == dt || shape.name != "m16n8k8" && shape.name != "m16n8k16" {
                            check_mma(shape, ty, ty, ct, dt, ["", "", ""]);
                        }
                    }
                }
                "bf16" | "tf32" => check_mma(shape, ty, ty, "f32", "f32", ["", "", ""]),
                "f64" => {
                    for round in ["", ".rn", ".rz", ".rm", ".rp"] {
                        check_mma(shape, ty, ty, "f64", "f64", [round, "", ""]);
                    }
                }
                "b1" => {
                    check_mma(shape, ty, ty, "s32", "s32", ["", ".xor.popc", "xor"]);
                    check_mma(shape, ty, ty, "s32", "s32", ["", ".and.popc", "and"]);
                }
                _ => {
                    for bt in shape.types {
                        check_mma(shape, ty, bt, "s32", "s32", ["", "", ""]);
                        check_mma(shape, ty, bt, "s32", "s32", [".satfinite", "", ""]);
                    }
                }
            }
        }
    }
}

#[test]
fn satfinite_clamps_and_plain_wraps() {
    let shape = &SHAPES[5];
    let ones = vec![vec![127; 16]; 8];
    let b = vec![vec![127; 8]; 16];
    let fa = fragment(&ones, "s8", 4, shape.a);
    let fb = fragment(&b, "s8", 4, shape.b);
    let c = vec![vec![u64::from(i32::MAX as u32); 2]; 32];
    let run = |mods: &str| {
        multiply(
            &format!("mma.sync.aligned.m8n8k16.row.col{mods}.s32.s8.s8.s32"),
            &fa,
            &fb,
            &c,
            ["s32", "s8", "s8", "s32"],
            "",
            &[],
        )
    };
    assert!(run(".satfinite").iter().flatten().all(|v| *v == u64::from(i32::MAX as u32)));
    let wrapped = i32::MAX.wrapping_add(16 * 127 * 127) as u32;
    assert!(run("").iter().flatten().all(|v| *v == u64::from(wrapped)));
}

/// m8n8k4 of the first tensor cores: lanes 4q..4q+4 and 16+4q..16+4q+4 make product q.
#[test]
fn mma_of_quad_pairs() {
    let mut random = Random(77);
    let sets: Vec<[Matrix; 3]> = (0..4)
        .map(|_| {
            [
                random_matrix(&mut random, 8, 4, "f16"),
                random_matrix(&mut random, 4, 8, "f16"),
                random_matrix(&mut random, 8, 8, "f32"),
            ]
        })
        .collect();
    let quad = |lane: usize| lane % 16 / 4;
    let low = |lane: usize| if lane < 16 { 0 } else { 4 };
    let c_half = |lane: usize, i: usize| (lane % 4 + low(lane), i);
    let c_single = |lane: usize, i: usize| {
        let x = (lane & 1) + (i & 2);
        (x + low(lane), (i & 4) + (lane & 2) + (i & 1))
    };
    let pack = |ty: &str, n: usize, value: &dyn Fn(usize, usize) -> i64| -> Vec<Vec<u64>> {
        let per = 32 / bits(ty);
        (0..32)
            .map(|lane| {
                let all: Vec<u64> = (0..n).map(|i| encode(value(lane, i), ty)).collect();
                all.chunks(per)
                    .map(|c| c.iter().rev().fold(0, |w, v| if per == 1 { *v } else { w << 16 | v }))
                    .collect()
            })
            .collect()
    };
    for al in ["row", "col"] {
        for bl in ["row", "col"] {
            for (dt, ct) in [("f32", "f32"), ("f16", "f16"), ("f32", "f16")] {
                let a = pack("f16", 4, &|l, i| {
                    let (row, col) = if al == "row" { (l % 4 + low(l), i) } else { (i + low(l), l % 4) };
                    sets[quad(l)][0][row][col]
                });
                let b = pack("f16", 4, &|l, i| {
                    let (row, col) = if bl == "row" { (l % 4, i + low(l)) } else { (i, l % 4 + low(l)) };
                    sets[quad(l)][1][row][col]
                });
                let place = |ty: &str, l: usize, i: usize| if ty == "f16" { c_half(l, i) } else { c_single(l, i) };
                let c = pack(ct, 8, &|l, i| {
                    let (row, col) = place(ct, l, i);
                    sets[quad(l)][2][row][col]
                });
                let products: Vec<Matrix> = sets.iter().map(|[a, b, c]| product(a, b, c, |x, y| x * y)).collect();
                let wanted = pack(dt, 8, &|l, i| {
                    let (row, col) = place(dt, l, i);
                    products[quad(l)][row][col]
                });
                let name = format!("mma.sync.aligned.m8n8k4.{al}.{bl}.{dt}.f16.f16.{ct}");
                assert_eq!(multiply(&name, &a, &b, &c, [dt, "f16", "f16", ct], "", &[]), wanted, "{name}");
            }
        }
    }
}

/// A sparse form: A's kept elements lie in the fragment of the dense shape of half the depth, B in that of all of it.
struct Sparse {
    shape: &'static str,
    types: &'static [&'static str],
    a: Place,
    b: Place,
}

/// Dense shapes of half the depth are named by their place in [`SHAPES`]; the formulas of B are the ISA's.
const SPARSE: [Sparse; 8] = [
    Sparse { shape: "m16n8k16", types: HALVES, a: SHAPES[0].a, b: SHAPES[1].b },
    Sparse { shape: "m16n8k32", types: HALVES, a: SHAPES[1].a, b: |l, i| (l % 4 * 2 + (i & 1) + i / 2 * 8, l / 4) },
    Sparse { shape: "m16n8k8", types: &["tf32"], a: SHAPES[2].a, b: SHAPES[3].b },
    Sparse { shape: "m16n8k16", types: &["tf32"], a: SHAPES[3].a, b: |l, i| (l % 4 + i * 4, l / 4) },
    Sparse { shape: "m16n8k32", types: BYTES, a: SHAPES[6].a, b: SHAPES[7].b },
    Sparse { shape: "m16n8k64", types: BYTES, a: SHAPES[7].a, b: |l, i| (l % 4 * 4 + (i & 3) + i / 4 * 16, l / 4) },
    Sparse { shape: "m16n8k64", types: NIBBLES, a: SHAPES[9].a, b: SHAPES[10].b },
    Sparse { shape: "m16n8k128", types: NIBBLES, a: SHAPES[10].a, b: |l, i| (l % 4 * 8 + (i & 7) + i / 8 * 32, l / 4) },
];

#[test]
fn sparse_mma() {
    for form in &SPARSE {
        for ty in form.types {
            match *ty {
                "f16" => ["f32", "f16"].iter().for_each(|ct| sparse(form, [ty, ty, ct], "")),
                "bf16" | "tf32" => sparse(form, [ty, ty, "f32"], ""),
                _ => form.types.iter().for_each(|bt| {
                    sparse(form, [ty, bt, "s32"], "");
                    sparse(form, [ty, bt, "s32"], ".satfinite");
                }),
            }
        }
    }
}

/// Columns of a row that are kept, ascending, and the row's metadata: of each four two, named by two bits each (tf32: of
/// two one, named by its two halves, 0b0100 or 0b1110; types below a byte: of four pairs two).
fn keep(random: &mut Random, k: usize, ty: &str) -> (Vec<usize>, u64) {
    let (mut columns, mut metadata) = (Vec::new(), 0);
    if ty == "tf32" {
        for chunk in 0..k / 2 {
            let second = random.below(2);
            columns.push(2 * chunk + second as usize);
            metadata |= (if second == 0 { 0b0100 } else { 0b1110 }) << (4 * chunk);
        }
        return (columns, metadata);
    }
    let unit = if bits(ty) < 8 { 2 } else { 1 };
    for chunk in 0..k / (4 * unit) {
        let (x, y) = (random.below(4), random.below(3));
        let y = if y >= x { y + 1 } else { y };
        for place in [x.min(y), x.max(y)] {
            metadata |= place << (2 * (columns.len() / unit));
            columns.extend((0..unit).map(|j| (4 * chunk + place as usize) * unit + j));
        }
    }
    (columns, metadata)
}

/// The metadata words of a warp, by the ISA's figures. What no thread is to look at is all ones.
fn metadata_words(metadata: &[u64], ty: &str, k: usize, selector: usize) -> Vec<u64> {
    let word = |lane: usize| {
        let (group, thread) = (lane / 4, lane % 4);
        let halves = |part: usize| {
            let half = |row: usize| metadata[row] >> (16 * part) & 0xffff;
            half(group) | half(group + 8) << 16
        };
        let whole = |part: usize, upper: usize| metadata[group + 8 * upper] >> (32 * part) & 0xffff_ffff;
        match (ty, k) {
            ("f16" | "bf16", 16) | ("tf32", 8) if thread == selector => halves(0),
            ("f16" | "bf16", 32) | ("tf32", 16) if thread / 2 == selector => halves(thread % 2),
            ("u8" | "s8", 32) | ("u4" | "s4", 64) if thread / 2 == selector => whole(0, thread % 2),
            ("u8" | "s8", 64) | ("u4" | "s4", 128) => whole(thread / 2, thread % 2),
            _ => 0xffff_ffff,
        }
    };
    (0..32).map(word).collect()
}

fn sparse(form: &Sparse, [ty, bt, ct]: [&str; 3], modifier: &str) {
    let (m, n, k) = dimensions(form.shape);
    let mut random = Random(k as u64 + 5);
    let b = random_matrix(&mut random, k, n, bt);
    let c = random_matrix(&mut random, m, n, ct);
    let kept = random_matrix(&mut random, m, k / 2, ty);
    let mut a = vec![vec![0; k]; m];
    let mut metadata = Vec::new();
    for (row, kept) in a.iter_mut().zip(&kept) {
        let (columns, bits) = keep(&mut random, k, ty);
        columns.iter().zip(kept).for_each(|(column, value)| row[*column] = *value);
        metadata.push(bits);
    }
    let selectors = match (ty, k) {
        ("f16" | "bf16", 16) | ("tf32", 8) => 4,
        ("u8" | "s8", 64) | ("u4" | "s4", 128) => 1,
        _ => 2,
    };
    let fa = fragment(&kept, ty, m * k / 64, form.a);
    let fb = fragment(&b, bt, k * n / 32, form.b);
    let fc = fragment(&c, ct, m * n / 32, c_tall);
    let wanted = fragment(&product(&a, &b, &c, |x, y| x * y), ct, m * n / 32, c_tall);
    let name = format!("mma.sp.sync.aligned.{}.row.col{modifier}.{ct}.{ty}.{bt}.{ct}", form.shape);
    for selector in 0..selectors {
        let e = metadata_words(&metadata, ty, k, selector);
        let found = multiply(&name, &fa, &fb, &fc, [ct, ty, bt, ct], &format!(", %r3, {selector}"), &e);
        assert_eq!(found, wanted, "{name} selector {selector}");
    }
}

/// Load, multiply, store: fragments of wmma are nobody's business, matrices are.
#[test]
fn wmma() {
    for space in ["", ".global", ".shared", ".shared::cta"] {
        wmma_in(space);
    }
}

fn wmma_in(space: &str) {
    let large: [(&str, (usize, usize, usize)); 3] =
        [("m16n16k16", (16, 16, 16)), ("m8n32k16", (8, 32, 16)), ("m32n8k16", (32, 8, 16))];
    for cl in ["row", "col"] {
        for (al, bl) in [("row", "row"), ("row", "col"), ("col", "row"), ("col", "col")] {
            let run = |shape: &str, extent, types: [&str; 4], modifier: &str| {
                whole(shape, extent, [al, bl, cl], types, modifier, space);
            };
            for (shape, extent) in large {
                for (dt, ct) in [("f32", "f32"), ("f16", "f16"), ("f32", "f16"), ("f16", "f32")] {
                    run(shape, extent, [dt, "f16", "f16", ct], "");
                }
                run(shape, extent, ["f32", "bf16", "bf16", "f32"], "");
                for ty in BYTES {
                    run(shape, extent, ["s32", ty, ty, "s32"], "");
                    run(shape, extent, ["s32", ty, ty, "s32"], ".satfinite");
                }
            }
            run("m16n16k8", (16, 16, 8), ["f32", "tf32", "tf32", "f32"], "");
            for round in ["", ".rn", ".rz", ".rm", ".rp"] {
                run("m8n8k4", (8, 8, 4), ["f64"; 4], round);
            }
        }
        let run = |shape: &str, extent, types: [&str; 4], modifier: &str| {
            whole(shape, extent, ["row", "col", cl], types, modifier, space);
        };
        for ty in NIBBLES {
            run("m8n8k32", (8, 8, 32), ["s32", ty, ty, "s32"], "");
            run("m8n8k32", (8, 8, 32), ["s32", ty, ty, "s32"], ".satfinite");
        }
        run("m8n8k128", (8, 8, 128), ["s32", "b1", "b1", "s32"], ".xor.popc");
        run("m8n8k128", (8, 8, 128), ["s32", "b1", "b1", "s32"], ".and.popc");
    }
}

/// Registers of a fragment by the ISA's table.
fn wmma_registers(which: char, ty: &str, shape: &str) -> usize {
    match (ty, which, shape) {
        ("f16", 'a' | 'b', _) => 8,
        ("f16", ..) => 4,
        ("f32", ..) => 8,
        ("bf16", 'a', "m8n32k16") | ("bf16", 'b', "m32n8k16") => 2,
        ("bf16", _, "m16n16k16") | ("tf32", ..) => 4,
        ("bf16", ..) => 8,
        ("u8" | "s8", 'a', "m8n32k16") | ("u8" | "s8", 'b', "m32n8k16") => 1,
        ("u8" | "s8", _, "m16n16k16") => 2,
        ("u8" | "s8", ..) => 4,
        ("s32", _, "m8n8k32" | "m8n8k128") => 2,
        ("s32", ..) => 8,
        ("f64", 'a' | 'b', _) | ("u4" | "s4" | "b1", ..) => 1,
        _ => 2,
    }
}

fn whole(
    shape: &str,
    (m, n, k): (usize, usize, usize),
    layouts: [&str; 3],
    types: [&str; 4],
    modifier: &str,
    space: &str,
) {
    let [dt, at, bt, ct] = types;
    let mut random = Random(m as u64 * 3 + k as u64);
    let a = random_matrix(&mut random, m, k, at);
    let b = random_matrix(&mut random, k, n, bt);
    let c = random_matrix(&mut random, m, n, ct);
    let combine: fn(i64, i64) -> i64 = if modifier == ".xor.popc" { |x, y| x ^ y } else { |x, y| x * y };
    let d = product(&a, &b, &c, combine);
    // A matrix in memory: bytes, and elements from one row (or column) to the next.
    let image = |x: &Matrix, ty: &str, layout: &str| -> (Vec<u8>, usize) {
        let (rows, cols) = (x.len(), x[0].len());
        let (outer, inner) = if layout == "row" { (rows, cols) } else { (cols, rows) };
        // Rows begin a multiple of 16 bytes apart, with room between them.
        let stride = if bits(ty) < 8 { inner } else { inner + 128 / bits(ty) };
        let mut bytes = vec![0u8; outer * stride * bits(ty) / 8];
        for at in 0..outer * inner {
            let (o, i) = (at / inner, at % inner);
            let v = encode(if layout == "row" { x[o][i] } else { x[i][o] }, ty);
            let bit = (o * stride + i) * bits(ty);
            if bits(ty) < 8 {
                bytes[bit / 8] |= (v as u8) << (bit % 8);
            } else {
                bytes[bit / 8..bit / 8 + bits(ty) / 8].copy_from_slice(&v.to_le_bytes()[..bits(ty) / 8]);
            }
        }
        (bytes, stride)
    };
    let images =
        [image(&a, at, layouts[0]), image(&b, bt, layouts[1]), image(&c, ct, layouts[2]), image(&d, dt, layouts[2])];
    let mut offsets = Vec::new();
    let mut buffer = Vec::new();
    for (i, (bytes, _)) in images.iter().enumerate() {
        offsets.push(buffer.len());
        buffer.extend(bytes.iter().map(|v| if i == 3 { 0 } else { *v }));
        buffer.resize(buffer.len().next_multiple_of(256), 0);
    }
    let register = |ty: &str, i: usize| match ty {
        "f64" => format!("%fd{i}"),
        "f32" => format!("%f{i}"),
        _ => format!("%r{}", 10 + i),
    };
    let mut next = 0;
    let mut list = |which: char, ty: &str| {
        let names: Vec<_> = (0..wmma_registers(which, ty, shape)).map(|i| register(ty, next + i)).collect();
        next += names.len();
        format!("{{{}}}", names.join(", "))
    };
    let (fa, fb, fc, fd) = (list('a', at), list('b', bt), list('c', ct), list('d', dt));
    let halves = at == "f16";
    let types_named = if halves { format!("{dt}.{ct}") } else { format!("{dt}.{at}.{bt}.{ct}") };
    let bit_op = if at == "b1" { modifier } else { "" };
    let modifier = if at == "b1" { "" } else { modifier };
    let [al, bl, cl] = layouts;
    // In shared memory the buffer is copied there and back, words by 32 lanes.
    let words = buffer.len() / 4;
    let copy = |from: &str, to: &str, label: &str| {
        format!(
            "mov.u32 %r90, %r1; {label}: shl.b32 %r91, %r90, 2; cvt.u64.u32 %rd20, %r91; add.u64 %rd21, %rd1, %rd20;\n\
             add.u64 %rd22, %rd23, %rd20; ld.{from}.u32 %r92, [{}]; st.{to}.u32 [{}], %r92; add.u32 %r90, %r90, 32;\n\
             setp.lt.u32 %p1, %r90, {words}; @%p1 bra {label}; bar.sync 0;\n",
            if from == "global" { "%rd21" } else { "%rd22" },
            if to == "global" { "%rd21" } else { "%rd22" },
        )
    };
    let (before, after) = if space.starts_with(".shared") {
        let declare = format!(".shared .align 256 .b8 area[{}]; mov.u64 %rd23, area;\n", buffer.len());
        (declare + &copy("global", "shared", "IN"), format!("bar.sync 0;\n{}", copy("shared", "global", "OUT")))
    } else {
        ("mov.u64 %rd23, %rd1;\n".to_owned(), String::new())
    };
    let body = format!(
        "{before}wmma.load.a.sync.aligned.{al}.{shape}{space}.{at} {fa}, [%rd23+{}], {};\n\
         wmma.load.b.sync.aligned.{bl}.{shape}{space}.{bt} {fb}, [%rd23+{}], {};\n\
         wmma.load.c.sync.aligned.{cl}.{shape}{space}.{ct} {fc}, [%rd23+{}], {};\n\
         wmma.mma{bit_op}.sync.aligned.{al}.{bl}.{shape}{modifier}.{types_named} {fd}, {fa}, {fb}, {fc};\n\
         wmma.store.d.sync.aligned.{cl}.{shape}{space}.{dt} [%rd23+{}], {fd}, {};\n{after}",
        offsets[0], images[0].1, offsets[1], images[1].1, offsets[2], images[2].1, offsets[3], images[3].1
    );
    let found = Program { body: &body, ..Program::default() }.run(&buffer);
    let wanted = &images[3].0;
    assert_eq!(&found[offsets[3]..offsets[3] + wanted.len()], wanted.as_slice(), "{body}");
}

pub fn all() {
    ldmatrix();
    movmatrix();
    mma_fragments_lane_by_lane();
    satfinite_clamps_and_plain_wraps();
    mma_of_quad_pairs();
    sparse_mma();
    wmma();
}
