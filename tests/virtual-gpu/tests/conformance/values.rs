//! Operands worth trying: corners of every type, and pseudo-random bits.

use crate::harness::bits;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn mask(n: u32) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Corners of a type, as bits.
pub fn corners(ty: &str) -> Vec<u64> {
    let n = bits(ty);
    let float = |exponent: u32, fraction: u32| -> Vec<u64> {
        let (sign, top) = (1 << (exponent + fraction), (1 << exponent) - 1);
        let one = (top >> 1) << fraction;
        let magnitudes = [
            0,                                               // zero
            1,                                               // least subnormal
            (1 << fraction) - 1,                             // largest subnormal
            1 << fraction,                                   // least normal
            one,                                             // 1
            one + 1,                                         // 1 + ε
            one - 1,                                         // 1 - ε/2
            one | 1 << (fraction - 1),                       // 1.5
            (one + (2 << fraction)) | 5,                     // 4 and a bit
            one - (1 << fraction),                           // 0.5
            ((top - 1) << fraction) | ((1 << fraction) - 1), // largest
            top << fraction,                                 // infinity
            (top << fraction) | 1 << (fraction - 1),         // NaN
        ];
        magnitudes.iter().flat_map(|m| [*m, m | sign]).collect()
    };
    match ty {
        "pred" => vec![0, 1],
        "f16" => float(5, 10),
        "bf16" => float(8, 7),
        "f32" | "tf32" => float(8, 23),
        "f64" => float(11, 52),
        "f16x2" => float(5, 10).iter().enumerate().map(|(i, v)| v | float(5, 10)[(i * 7 + 3) % 26] << 16).collect(),
        "bf16x2" => float(8, 7).iter().enumerate().map(|(i, v)| v | float(8, 7)[(i * 7 + 3) % 26] << 16).collect(),
        _ => {
            let (min, max) = (1 << (n - 1), mask(n) >> 1);
            let mut all = vec![0, 1, 2, 3, 7, 31, 32, 33, max, max - 1, min, min + 1, mask(n), mask(n) - 1];
            all.extend([0x5555_5555_5555_5555 & mask(n), 0xaaaa_aaaa_aaaa_aaaa & mask(n)]);
            all.iter().map(|v| v & mask(n)).collect()
        }
    }
}

/// A value of a type: a corner, or bits of any kind, floats near 1 among them.
pub fn value(ty: &str, random: &mut Random) -> u64 {
    let all = corners(ty);
    let any = random.next() & mask(bits(ty));
    match (random.below(4), ty) {
        (0 | 1, _) => all[random.below(all.len() as u64) as usize],
        (2, "f32" | "tf32") => (any & 0x807f_ffff) | (120 + random.below(16)) << 23,
        (2, "f64") => (any & 0x800f_ffff_ffff_ffff) | (1016 + random.below(16)) << 52,
        (2, "f16") => (any & 0x83ff) | (8 + random.below(14)) << 10,
        (2, "bf16") => (any & 0x807f) | (120 + random.below(16)) << 7,
        (2, "f16x2") => (any & 0x83ff_83ff) | (8 + random.below(14)) << 10 | (8 + random.below(14)) << 26,
        (2, "bf16x2") => (any & 0x807f_807f) | (120 + random.below(16)) << 7 | (120 + random.below(16)) << 23,
        (2, _) => any & 0xff,
        _ => any,
    }
}

/// Rows of operands: all pairs of corners for one or two operands, then picks.
pub fn rows(types: &[&str], picks: usize) -> Vec<Vec<u64>> {
    let mut random = Random(types.iter().flat_map(|t| t.bytes()).fold(1, |h, b| h * 31 + u64::from(b)));
    let mut rows: Vec<Vec<u64>> = Vec::new();
    match types {
        [a] => rows.extend(corners(a).iter().map(|v| vec![*v])),
        [a, b] => {
            for x in corners(a) {
                rows.extend(corners(b).iter().map(|y| vec![x, *y]));
            }
        }
        _ => {}
    }
    rows.extend((0..picks).map(|_| types.iter().map(|ty| value(ty, &mut random)).collect()));
    rows
}
