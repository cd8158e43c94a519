//! mma.sp: of A the elements that are kept, and which those are.

use super::fragments::{BYTES, HALVES, NIBBLES, bits, dimensions, fragment, multiply, product, random_matrix};
use super::shapes::{Place, SHAPES, c_tall};
use crate::values::Random;

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
pub fn sparse_mma() {
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
