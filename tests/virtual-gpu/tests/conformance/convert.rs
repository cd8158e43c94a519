//! Conversions and moves.

use crate::harness::{Program, bits, check, check_with, eval};
use crate::oracle::{self as o, BF16, F16, F32, Format, Round, Value};
use crate::values::{mask, rows};

const INTEGERS: [&str; 8] = ["u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"];
const FLOATS: [&str; 3] = ["f16", "f32", "f64"];

fn signed(ty: &str) -> bool {
    ty.starts_with('s')
}

fn int(v: u64, ty: &str) -> i128 {
    let n = bits(ty);
    let v = i128::from(v & mask(n));
    if signed(ty) && v >> (n - 1) == 1 { v - (1 << n) } else { v }
}

fn range(ty: &str) -> (i128, i128) {
    let n = bits(ty);
    if signed(ty) { (-(1 << (n - 1)), (1 << (n - 1)) - 1) } else { (0, (1 << n) - 1) }
}

/// A register as wide as 32 bits at least, into which results of a type are extended.
fn wide(ty: &str) -> &str {
    match ty {
        "u8" | "u16" => "u32",
        "s8" | "s16" => "s32",
        ty => ty,
    }
}

#[test]
fn integers_to_integers() {
    for from in INTEGERS {
        for to in INTEGERS {
            // The destination register is wider than the type: the result is extended into it.
            let register = wide(to);
            let extended = |v: i128| int(v as u64, to) as u64 & mask(bits(register));
            let rows = rows(&[from], 100);
            check(&format!("cvt.{to}.{from} d, a;"), register, &[from], &rows, |r| extended(int(r[0], from)));
            let ((low, high), (least, most)) = (range(to), range(from));
            // Saturation exists where something can lie outside.
            if least < low || most > high {
                let code = format!("cvt.sat.{to}.{from} d, a;");
                check(&code, register, &[from], &rows, |r| extended(int(r[0], from).clamp(low, high)));
            }
        }
    }
}

#[test]
fn sources_may_be_wider_than_their_type() {
    for from in INTEGERS {
        for register in ["b32", "b64"].into_iter().filter(|register| bits(register) > bits(from)) {
            let rows = rows(&[register], 50);
            for to in INTEGERS {
                let into = wide(to);
                let code = format!("cvt.{to}.{from} d, a;");
                check(&code, into, &[register], &rows, |r| int(int(r[0], from) as u64, to) as u64 & mask(bits(into)));
            }
            check(&format!("cvt.rn.f64.{from} d, a;"), "f64", &[register], &rows, |r| {
                // The nearest double: what Rust's conversion gives.
                (int(r[0], from) as f64).to_bits()
            });
        }
    }
}

#[test]
fn floats_to_integers() {
    for from in FLOATS {
        let f = o::format(from);
        for to in INTEGERS {
            let (low, high) = range(to);
            for round in [".rni", ".rzi", ".rmi", ".rpi"] {
                for flush in if from == "f32" { &["", ".ftz"][..] } else { &[""] } {
                    for sat in ["", ".sat"] {
                        let code = format!("cvt{round}{flush}{sat}.{to}.{from} d, a;");
                        let register = wide(to);
                        check(&code, register, &[from], &rows(&[from], 300), |r| {
                            let v = f.value(if flush.is_empty() { r[0] } else { f.flush(r[0]) });
                            let v = match v {
                                // NaN: 0 unless a double or a 64-bit integer takes part; there the top bit alone.
                                Value::Nan if from != "f64" && bits(to) != 64 => 0,
                                Value::Nan => int(1 << (bits(to) - 1), to),
                                v => o::to_integer(o::integral(v, o::round(round))).clamp(low, high),
                            };
                            v as u64 & mask(bits(register))
                        });
                    }
                }
            }
        }
    }
}

/// Equal bits, any NaN for any other.
fn same(f: Format) -> impl Fn(u64, u64) -> bool {
    move |a, b| a == b || f.is_nan(a) && f.is_nan(b)
}

fn saturate(f: Format, v: u64, sat: bool) -> u64 {
    if !sat {
        return v;
    }
    match f.value(v) {
        Value::Nan | Value::Zero(_) => 0,
        Value::Finite(true, ..) | Value::Infinite(true) => 0,
        _ => v.min(f.bits(o::integer(1), Round::Near)),
    }
}

#[test]
fn integers_to_floats() {
    for from in INTEGERS {
        for to in FLOATS {
            let f = o::format(to);
            for round in [".rn", ".rz", ".rm", ".rp"] {
                for sat in ["", ".sat"] {
                    let code = format!("cvt{round}{sat}.{to}.{from} d, a;");
                    check(&code, to, &[from], &rows(&[from], 150), |r| {
                        saturate(f, f.bits(o::integer(int(r[0], from)), o::round(round)), sat == ".sat")
                    });
                }
            }
        }
    }
}

#[test]
fn floats_to_floats() {
    for from in FLOATS {
        for to in FLOATS {
            let (f, t) = (o::format(from), o::format(to));
            let roundings: &[&str] = match bits(to).cmp(&bits(from)) {
                std::cmp::Ordering::Less => &[".rn", ".rz", ".rm", ".rp"],
                std::cmp::Ordering::Equal => &["", ".rni", ".rzi", ".rmi", ".rpi"],
                std::cmp::Ordering::Greater => &[""],
            };
            let flushes: &[&str] = if from == "f32" || to == "f32" { &["", ".ftz"] } else { &[""] };
            for round in roundings {
                for flush in flushes {
                    for sat in ["", ".sat"] {
                        let code = format!("cvt{round}{flush}{sat}.{to}.{from} d, a;");
                        let ftz = !flush.is_empty();
                        let expect = |r: &[u64]| {
                            let mut v = f.value(if ftz && from == "f32" { f.flush(r[0]) } else { r[0] });
                            if round.ends_with('i') {
                                v = o::integral(v, o::round(round));
                            }
                            let bits = t.bits(v, o::round(round));
                            saturate(t, if ftz && to == "f32" { t.flush(bits) } else { bits }, sat == ".sat")
                        };
                        check_with(&code, to, &[from], &rows(&[from], 400), expect, same(t));
                    }
                }
            }
        }
    }
}

fn relu(f: Format, v: u64, on: bool) -> u64 {
    if on && !f.is_nan(v) && v & f.sign() != 0 { 0 } else { v }
}

#[test]
fn halves_and_tf32() {
    for round in [".rn", ".rz"] {
        for end in ["", ".relu"] {
            let half = |f: Format, v: u64| relu(f, f.bits(F32.value(v), o::round(round)), end == ".relu");
            for (to, f) in [("f16", F16), ("bf16", BF16)] {
                if to == "bf16" || end == ".relu" {
                    let code = format!("cvt{round}{end}.{to}.f32 d, a;");
                    check_with(&code, to, &["f32"], &rows(&["f32"], 400), |r| half(f, r[0]), same(f));
                }
                let code = format!("cvt{round}{end}.{to}x2.f32 d, a, b;");
                let rows = rows(&["f32", "f32"], 200);
                check_with(
                    &code,
                    "b32",
                    &["f32"; 2],
                    &rows,
                    |r| half(f, r[0]) << 16 | half(f, r[1]),
                    |a, b| {
                        let same = same(f);
                        same(a & 0xffff, b & 0xffff) && same(a >> 16, b >> 16)
                    },
                );
            }
        }
    }
    // Rounded to 10 bits of fraction, ties away from zero; what the 13 bits below hold is not said.
    check_with(
        "cvt.rna.tf32.f32 d, a;",
        "b32",
        &["f32"],
        &rows(&["f32"], 400),
        |r| {
            let short = o::TF32.bits(F32.value(r[0]), Round::Away);
            short << 13
        },
        |wanted, found| F32.is_nan(wanted) && F32.is_nan(found) || wanted == found & !0x1fff,
    );
}

#[test]
fn packs() {
    for (to, n) in [("u16", 16), ("s16", 16), ("u8", 8), ("s8", 8), ("u4", 4), ("s4", 4), ("u2", 2), ("s2", 2)] {
        let (low, high) = if signed(to) { (-(1i128 << (n - 1)), (1 << (n - 1)) - 1) } else { (0, (1 << n) - 1) };
        let part = |v: u64| int(v, "s32").clamp(low, high) as u64 & mask(n);
        let types = ["s32", "s32", "b32"];
        let rows = rows(&types, 400);
        if n == 16 {
            let code = format!("cvt.pack.sat.{to}.s32 d, a, b;");
            check(&code, "b32", &types, &rows, |r| part(r[0]) << n | part(r[1]));
        } else {
            let code = format!("cvt.pack.sat.{to}.s32.b32 d, a, b, c;");
            check(&code, "b32", &types, &rows, |r| (r[2] << (2 * n) | part(r[0]) << n | part(r[1])) & mask(32));
        }
    }
}

#[test]
fn moves() {
    for ty in ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64"] {
        check(&format!("mov.{ty} d, a;"), ty, &[ty], &rows(&[ty], 30), |r| r[0]);
    }
    check("mov.pred d, a;", "pred", &["pred"], &rows(&["pred"], 0), |r| r[0]);
    let immediates = [
        ("mov.f32 d, 0f40490FDB;", "f32", u64::from(0x4049_0fdb_u32)),
        ("mov.f32 d, 0.1;", "f32", u64::from(0.1f32.to_bits())),
        ("mov.f64 d, 0d400921FB54442D18;", "f64", 0x4009_21fb_5444_2d18),
        ("mov.f64 d, 0f3F000000;", "f64", 0.5f64.to_bits()),
        ("mov.u16 d, -1;", "u16", 0xffff),
        ("mov.b32 d, 0xFFFFFFFF00000001;", "b32", 1),
        ("mov.s64 d, -2;", "s64", 0xffff_ffff_ffff_fffe),
        ("mov.u32 d, (1 << 5) + WARP_SZ * 2;", "u32", 96),
    ];
    for (code, ty, wanted) in immediates {
        check(code, ty, &["u32"], &[vec![0]], |_| wanted);
    }
}

#[test]
fn vectors_pack_lowest_first() {
    check("mov.b32 d, {a, b};", "b32", &["b16"; 2], &rows(&["b16"; 2], 50), |r| r[0] | r[1] << 16);
    check("mov.b64 d, {a, b};", "b64", &["b32"; 2], &rows(&["b32"; 2], 50), |r| r[0] | r[1] << 32);
    let quarter = rows(&["b16"; 4], 100);
    check("mov.b64 d, {a, b, c, e};", "b64", &["b16"; 4], &quarter, |r| r[0] | r[1] << 16 | r[2] << 32 | r[3] << 48);
    for row in rows(&["b64"], 40) {
        let v = row[0];
        let halves = eval(80, "mov.b64 {d, q}, a;", &["b32"; 2], &["b64"], std::slice::from_ref(&row));
        assert_eq!(halves[0], [v & mask(32), v >> 32]);
        let quarters = eval(80, "mov.b64 {d, q, r, s}, a;", &["b16"; 4], &["b64"], std::slice::from_ref(&row));
        assert_eq!(quarters[0], [0, 16, 32, 48].map(|s| v >> s & 0xffff));
        let halves = eval(80, "mov.b32 {d, q}, a;", &["b16"; 2], &["b32"], &[vec![v & mask(32)]]);
        assert_eq!(halves[0], [v & 0xffff, v >> 16 & 0xffff]);
        let upper = eval(80, "mov.b64 {_, d}, a;", &["b32"], &["b64"], std::slice::from_ref(&row));
        assert_eq!(upper[0], [v >> 32]);
    }
    // Bytes, from and to 8-bit registers.
    let bytes = "{ .reg .b8 x; .reg .b8 y; .reg .b8 z; .reg .b8 w; mov.b32 {x, y, z, w}, a; mov.b32 d, {w, z, y, x}; }";
    check(bytes, "b32", &["b32"], &rows(&["b32"], 50), |r| (r[0] as u32).swap_bytes().into());
    let bytes = "{ .reg .b8 x; .reg .b8 y; mov.b16 {x, y}, a; mov.b16 d, {y, x}; }";
    check(bytes, "b16", &["b16"], &rows(&["b16"], 50), |r| (r[0] as u16).swap_bytes().into());
}

#[test]
fn addresses_between_spaces() {
    // Each variable's generic address is in its own window, in no other, and leads back.
    for (named, declare) in [
        ("shared::cta", ".shared .align 8 .b8 var[16];"),
        ("global", ".global .align 8 .b8 var[16];"),
        ("const", ".const .align 8 .b8 var[16] = {1};"),
        ("shared", ".shared .align 8 .b8 var[16];"),
        ("local", ""),
    ] {
        let space = named.split(':').next().unwrap();
        let local = if space == "local" { ".local .align 8 .b8 var[16];" } else { "" };
        let mut body = format!(
            "{local} mov.u64 %rd2, var; cvta.{named}.u64 %rd3, %rd2; cvta.{named}.u64 %rd5, var;\n\
             cvta.to.{named}.u64 %rd4, %rd3; setp.eq.u64 %p1, %rd2, %rd4; setp.eq.and.u64 %p1, %rd3, %rd5, %p1;\n\
             selp.u32 %r3, 1, 0, %p1; st.global.u32 [%rd1], %r3;\n"
        );
        let tested = ["global", "const", "shared", "local", "param", "shared::cta"];
        for (i, other) in tested.iter().enumerate() {
            body += &format!(
                "isspacep.{other} %p2, %rd3; selp.u32 %r3, 1, 0, %p2; st.global.u32 [%rd1+{}], %r3;\n",
                4 * i + 4
            );
        }
        let program = Program { globals: declare, body: &body, block: 1, ..Program::default() };
        let found = program.words(&[9; 7]);
        assert_eq!(found[0], 1, "{space} and back");
        for (i, other) in tested.iter().enumerate() {
            assert_eq!(found[i + 1] == 1, other.starts_with(space), "isspacep.{other} of {space}");
        }
    }
    let body = "mov.b64 %rd2, p; cvta.param.u64 %rd3, %rd2; ld.u64 %rd4, [%rd3]; setp.eq.u64 %p1, %rd4, %rd1;\n\
         cvta.to.param.u64 %rd5, %rd3; ld.param.u64 %rd6, [%rd5]; setp.eq.and.u64 %p1, %rd6, %rd1, %p1;\n\
         selp.u32 %r3, 1, 0, %p1; st.global.u32 [%rd1], %r3;";
    assert_eq!(Program { body, block: 1, ..Program::default() }.words(&[9]), [1]);
}

#[test]
fn shared_memory_that_the_system_keeps() {
    // Zeros, apart from the block's own memory, of the size that the registers say.
    let body = ".shared .align 4 .b32 own; st.shared.u32 [own], %r1;\n\
         mov.u32 %r3, %reserved_smem_offset_begin; mov.u32 %r4, %reserved_smem_offset_end;\n\
         mov.u32 %r5, %reserved_smem_offset_cap; mov.u32 %r6, %reserved_smem_offset_0;\n\
         mov.u32 %r7, %reserved_smem_offset_1; sub.u32 %r4, %r4, %r3; st.global.u32 [%rd1], %r4;\n\
         st.global.u32 [%rd1+4], %r5; setp.ge.u32 %p1, %r3, 4; selp.u32 %r8, 1, 0, %p1; st.global.u32 [%rd1+8], %r8;\n\
         ld.shared.u32 %r9, [%r6]; st.global.u32 [%rd1+12], %r9; st.shared.u32 [%r7], %r5; ld.shared.u32 %r9, [%r7];\n\
         ld.shared.u32 %r10, [%r7+284]; add.u32 %r9, %r9, %r10; st.global.u32 [%rd1+16], %r9;\n\
         ld.shared.u32 %r9, [own]; st.global.u32 [%rd1+20], %r9;";
    let found = Program { body, block: 1, ..Program::default() }.words(&[9, 9, 9, 9, 9, 9]);
    assert_eq!(found, [1024, 1024, 1, 0, 1024, 0]);
}

#[test]
fn special_registers() {
    let list32 = [
        ("%tid.x", "t % 8"),
        ("%tid.y", "t / 8 % 4"),
        ("%tid.z", "t / 32"),
        ("%ntid.x", "8"),
        ("%ntid.y", "4"),
        ("%ntid.z", "2"),
        ("%ctaid.x", "b % 2"),
        ("%ctaid.y", "b / 2 % 3"),
        ("%ctaid.z", "b / 6"),
        ("%nctaid.x", "2"),
        ("%nctaid.y", "3"),
        ("%nctaid.z", "2"),
        ("%laneid", "t % 32"),
        ("%warpid", "t / 32"),
        ("%lanemask_eq", "eq"),
        ("%lanemask_le", "le"),
        ("%lanemask_lt", "lt"),
        ("%lanemask_ge", "ge"),
        ("%lanemask_gt", "gt"),
        ("%dynamic_smem_size", "64"),
        ("%total_smem_size", "96"),
        ("%envreg7", "0"),
        ("%pm3", "0"),
    ];
    let body: String = list32
        .iter()
        .enumerate()
        .map(|(i, (name, _))| format!("mov.u32 %r20, {name}; st.global.u32 [%rd2+{}], %r20;\n", 4 * i))
        .collect();
    let n = list32.len() as u32;
    let set_up = format!(
        ".shared .b8 fixed[32];\n\
         cvt.u32.u32 %r3, %tid.x; cvt.u32.u32 %r4, %tid.y; mad.lo.u32 %r3, %r4, 8, %r3;\n\
         cvt.u32.u32 %r4, %tid.z; mad.lo.u32 %r3, %r4, 32, %r3;\n\
         cvt.u32.u32 %r5, %ctaid.x; cvt.u32.u32 %r6, %ctaid.y; mad.lo.u32 %r5, %r6, 2, %r5;\n\
         cvt.u32.u32 %r6, %ctaid.z; mad.lo.u32 %r5, %r6, 6, %r5; mad.lo.u32 %r3, %r5, 64, %r3;\n\
         mad.wide.u32 %rd2, %r3, {}, %rd1;\n{body}mov.u32 %r7, fixed;",
        4 * n
    );
    let program = Program { body: &set_up, ..Program::default() };
    let found = program.words_3d([2, 3, 2], [8, 4, 2], 64, &vec![7; (12 * 64 * n) as usize]);
    for thread in 0..12 * 64u32 {
        let (b, t) = (thread / 64, thread % 64);
        let lane = t % 32;
        let eq = 1u32 << lane;
        for (i, (name, rule)) in list32.iter().enumerate() {
            let wanted = match *rule {
                "t % 8" => t % 8,
                "t / 8 % 4" => t / 8 % 4,
                "t / 32" => t / 32,
                "t % 32" => lane,
                "b % 2" => b % 2,
                "b / 2 % 3" => b / 2 % 3,
                "b / 6" => b / 6,
                "eq" => eq,
                "le" => eq | (eq - 1),
                "lt" => eq - 1,
                "ge" => !(eq - 1),
                "gt" => !(eq - 1) & !eq,
                number => number.parse().unwrap(),
            };
            assert_eq!(found[(thread * n) as usize + i], wanted, "{name} of thread {t} in block {b}");
        }
    }
    // Clocks run forward; the other numbers keep to their ranges.
    let body = "mov.u32 %r3, %clock; mov.u64 %rd2, %clock64; mov.u64 %rd3, %globaltimer; mov.u32 %r4, %nsmid;\n\
         mov.u32 %r5, %smid; setp.lt.u32 %p1, %r5, %r4; mov.u32 %r6, %nwarpid; setp.gt.and.u32 %p1, %r6, 0, %p1;\n\
         mov.u64 %rd4, %clock64; setp.ge.and.u64 %p1, %rd4, %rd2, %p1; mov.u64 %rd5, %globaltimer;\n\
         setp.ge.and.u64 %p1, %rd5, %rd3, %p1; mov.u32 %r7, %clock_hi; mov.u32 %r7, %globaltimer_lo;\n\
         mov.u32 %r7, %globaltimer_hi; mov.u64 %rd6, %gridid; mov.u64 %rd7, %pm0_64; setp.eq.and.u64 %p1, %rd7, 0, %p1;\n\
         selp.u32 %r8, 1, 0, %p1; st.global.u32 [%rd1], %r8;";
    assert_eq!(Program { body, block: 1, ..Program::default() }.words(&[0]), [1]);
}

pub fn all() {
    integers_to_integers();
    sources_may_be_wider_than_their_type();
    floats_to_integers();
    integers_to_floats();
    floats_to_floats();
    halves_and_tf32();
    packs();
    moves();
    vectors_pack_lowest_first();
    addresses_between_spaces();
    special_registers();
    shared_memory_that_the_system_keeps();
}
