//! mma on dense matrices.

use super::fragments::{Matrix, bits, dimensions, encode, fragment, multiply, product, random_matrix};
use super::shapes::{SHAPES, Shape};
use crate::values::Random;

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
pub fn mma_fragments_lane_by_lane() {
    for shape in &SHAPES {
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
pub fn satfinite_clamps_and_plain_wraps() {
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
pub fn mma_of_quad_pairs() {
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
