//! wmma: fragments of its own, known by what is loaded and stored.

use super::fragments::{BYTES, Matrix, NIBBLES, bits, encode, product, random_matrix};
use crate::harness::Program;
use crate::values::Random;

/// Load, multiply, store: fragments of wmma are nobody's business, matrices are.
#[test]
pub fn wmma() {
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
