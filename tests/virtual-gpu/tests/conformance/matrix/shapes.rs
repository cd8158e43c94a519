//! Where the elements of mma's fragments lie, shape by shape: `groupID = lane >> 2`, `threadID_in_group = lane % 4`.

use super::fragments::{BYTES, HALVES, NIBBLES};

/// Where element `i` of a lane's fragment lies: row, column.
pub type Place = fn(lane: usize, i: usize) -> (usize, usize);

pub struct Shape {
    pub name: &'static str,
    pub types: &'static [&'static str],
    pub a: Place,
    pub b: Place,
    pub c: Place,
}

pub fn c_tall(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + (i & 1))
}

pub fn c_small(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4, lane % 4 * 2 + (i & 1))
}

/// The formulas of the ISA, shape by shape.
pub const SHAPES: [Shape; 14] = [
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
];
