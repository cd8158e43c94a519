//! Embeddings by token and by position.

use kernels::ops::embedding::{add_positions, lookup, lookup_gradient, position_gradient, reference};
use kernels::weight::{FrozenWeight, WeightRef};
use kernels::{Buffer, Category, DType, Device};

use crate::support::{assert_close, assert_sums, differences, dot, download, gpu, random, upload};

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Ids, of which some come often, some once, some never.
fn ids(n: usize, vocab: usize) -> Vec<u32> {
    random(DType::F32, n, 9).iter().map(|x| (x * x * vocab as f64) as u32).collect()
}

/// dE and dP by the formulas of the operation's contract, for tables of `rows` of `cols`.
fn gradient(dy: &[f64], rows: usize, cols: usize, row: impl Fn(usize) -> usize) -> Vec<f64> {
    let mut d_table = vec![0.0; rows * cols];
    for (n, dy) in dy.chunks(cols).enumerate() {
        d_table[row(n) * cols..][..cols].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
    d_table
}

/// Both gradients, added to zeros, of `ids` and of sequences of `tokens` from row `offset`.
pub fn gradients(
    device: &Device,
    dtype: DType,
    (vocab, cols): (usize, usize),
    ids: &[u32],
    (tokens, offset): (usize, usize),
) -> [Buffer; 2] {
    let dy = upload(device, dtype, &random(dtype, ids.len() * cols, 2));
    let zeros = |rows| device.zeros(Category::Gradients, DType::F32, rows * cols).unwrap();
    let (mut d_table, mut d_places) = (zeros(vocab), zeros(tokens + offset));
    lookup_gradient(&dy, ids, &mut d_table).unwrap();
    position_gradient(&dy, cols, tokens, offset, &mut d_places).unwrap();
    [d_table, d_places]
}

/// Rows of a bf16 table by token, and a bf16 table's by position added.
pub fn embed(device: &Device, (vocab, cols): (usize, usize), ids: &[u32], tokens: usize) -> Buffer {
    let table = |rows, seed| {
        let values = upload(device, DType::BF16, &random(DType::BF16, rows * cols, seed));
        FrozenWeight::dense(values, rows, cols).unwrap()
    };
    let mut y = lookup(device, ids, WeightRef::Frozen(&table(vocab, 3))).unwrap();
    add_positions(&mut y, WeightRef::Frozen(&table(tokens, 4)), tokens, 0).unwrap();
    y
}

/// Everything once, for the traffic, with `n` ids of `vocab`, some of them repeated.
pub fn pass(device: &Device, (vocab, cols): (usize, usize), n: usize, tokens: usize) {
    let ids = ids(n, vocab);
    embed(device, (vocab, cols), &ids, tokens);
    gradients(device, DType::BF16, (vocab, cols), &ids, (tokens, 0));
}

/// How many different ids there are in [`pass`].
pub fn different_ids(n: usize, vocab: usize) -> usize {
    ids(n, vocab).into_iter().collect::<std::collections::HashSet<_>>().len()
}

#[test]
fn the_gradients_of_these_tests_are_the_derivatives_of_the_reference() {
    let (vocab, cols, tokens, offset, n) = (4, 3, 3, 2, 6);
    let (ids, dy) = (ids(n, vocab), random(DType::F32, n * cols, 2));
    let (table, places) = (random(DType::F32, vocab * cols, 3), random(DType::F32, (tokens + offset) * cols, 4));
    // The map is linear in both tables: differences are exact but for rounding in f64.
    let objective =
        |table: &[f64], places: &[f64]| dot(&reference::embed(&ids, table, places, cols, tokens, offset), &dy);
    let all = [
        (gradient(&dy, vocab, cols, |n| ids[n] as usize), differences(&table, 0.5, |t| objective(t, &places))),
        (
            gradient(&dy, tokens + offset, cols, |n| offset + n % tokens),
            differences(&places, 0.5, |p| objective(&table, p)),
        ),
    ];
    for (formula, differences) in all {
        formula.iter().zip(differences).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
    }
}

/// (Tokens of a sequence, sequences and what is left of one, offset, vocabulary, features.)
const SHAPES: [(usize, usize, usize, usize, usize); 6] = [
    (1, 1, 0, 1, 1),
    (5, 13, 2, 7, 3),
    (9, 18, 1, 40, 8),
    (4, 30, 0, 11, 37),
    (33, 70, 2, 20, 264),
    (3, 9, 0, 5, 1100),
];

#[test]
#[ignore = "needs a GPU"]
fn gpu_rows_are_copied_and_added_in_every_type_and_shape() {
    let device = gpu();
    for (tokens, n, offset, vocab, cols) in SHAPES {
        let ids = ids(n, vocab);
        let zeros = vec![0.0; (tokens + offset) * cols];
        for of_table in TYPES {
            let table = random(of_table, vocab * cols, 3);
            let held = FrozenWeight::dense(upload(&device, of_table, &table), vocab, cols).unwrap();
            let y = lookup(&device, &ids, WeightRef::Frozen(&held)).unwrap();
            assert_eq!(y.dtype(), DType::BF16);
            assert_close("y", &y, &reference::embed(&ids, &table, &zeros, cols, tokens, offset), 0.0);
            for dtype in TYPES {
                let (x, places) = (random(dtype, n * cols, 5), random(of_table, (tokens + offset) * cols, 4));
                let held = FrozenWeight::dense(upload(&device, of_table, &places), tokens + offset, cols).unwrap();
                let mut y = upload(&device, dtype, &x);
                add_positions(&mut y, WeightRef::Frozen(&held), tokens, offset).unwrap();
                let rows: Vec<u32> = (0..n as u32).collect();
                let want = reference::embed(&rows, &x, &places, cols, tokens, offset);
                // The sum, below 2, rounds in f32 before it rounds to its type.
                assert_close(&format!("{dtype} + {of_table}"), &y, &want, 1.2e-7);
            }
        }
    }
}

/// A row of a table has at most all 70 rows' gradients, with a rounding for each.
#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_equal_the_reference_in_every_type_and_shape() {
    for (tokens, n, offset, vocab, cols) in SHAPES {
        let ids = ids(n, vocab);
        for dtype in TYPES {
            let dy = random(dtype, n * cols, 2);
            let sizes: Vec<f64> = dy.iter().map(|dy| dy.abs()).collect();
            let [d_table, d_places] = gradients(&gpu(), dtype, (vocab, cols), &ids, (tokens, offset));
            let what = format!("{n}×{cols} {dtype}");
            let of_tokens = |dy| gradient(dy, vocab, cols, |n| ids[n] as usize);
            assert_sums(&what, &d_table, &of_tokens(&dy), &of_tokens(&sizes), 70);
            let of_places = |dy| gradient(dy, tokens + offset, cols, |n| offset + n % tokens);
            assert_sums(&what, &d_places, &of_places(&dy), &of_places(&sizes), 70);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_are_added_with_the_same_bits_every_time() {
    let run = || gradients(&gpu(), DType::BF16, (6, 40), &ids(50, 6), (10, 0)).map(|buffer| download(&buffer));
    assert_eq!(run(), run());
    let device = gpu();
    let dy = upload(&device, DType::F32, &[0.5; 8]);
    let mut d_table = upload(&device, DType::F32, &[1.0; 12]);
    lookup_gradient(&dy, &[2, 2], &mut d_table).unwrap();
    position_gradient(&dy, 4, 1, 0, &mut d_table).unwrap();
    assert_eq!(download(&d_table), [2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
}

/// A trainable table; a batch of no tokens; a packed table.
#[test]
#[ignore = "needs a GPU"]
fn gpu_other_operands_are_taken_or_named() {
    let device = gpu();
    let values = random(DType::F32, 12, 1);
    let value = upload(&device, DType::F32, &values);
    let table = WeightRef::Trainable { value: &value, rows: 3, cols: 4, mask: None };
    assert_close("y", &lookup(&device, &[1], table).unwrap(), &values[4..8], 0.0);
    assert!(lookup(&device, &[], table).unwrap().is_empty());
    let mask = device.upload(Category::Masks, &[u64::MAX]).unwrap();
    let packed = FrozenWeight::pruned(&device, &value, 3, 4, &mask, 12).unwrap();
    let error = lookup(&device, &[1], WeightRef::Frozen(&packed)).unwrap_err().to_string();
    assert_eq!(error, "embedding: a packed sparse table is not available on cuda; use the CPU");
}
