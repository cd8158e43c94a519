//! What the tests of operations share: random operands, finite differences, comparisons.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::device::{Buffer, Category, Device};
use crate::strips;

/// Numbers in [−1, 1) that f32 holds exactly.
pub fn random(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| f64::from((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
}

/// An f32 buffer of f64 values.
pub fn upload(device: &Device, values: &[f64]) -> Buffer {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    device.upload(Category::Activations, &values).unwrap()
}

/// An activation of `n` tokens: row-major f64 values as an f32 buffer in strips.
pub fn upload_tokens(device: &Device, values: &[f64], n: usize) -> Buffer {
    upload(device, &strips::from_rows(values, n, values.len() / n.max(1)))
}

/// An activation of `n` tokens, row-major.
pub fn rows(strips: &[f32], n: usize) -> Vec<f32> {
    strips::to_rows(strips, n, strips.len() / n.max(1))
}

/// Σ a·b
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Central differences of `objective` in each entry of tensor `which`. With h = 1e-5 the truncation error is about
/// h²·|f‴|/6 and the rounding error about 1e-16·|f|/h.
pub fn differences<const N: usize>(
    tensors: &mut [Vec<f64>; N],
    which: usize,
    objective: impl Fn(&[Vec<f64>; N]) -> f64,
) -> Vec<f64> {
    const H: f64 = 1e-5;
    (0..tensors[which].len())
        .map(|i| {
            let x = tensors[which][i];
            tensors[which][i] = x + H;
            let high = objective(tensors);
            tensors[which][i] = x - H;
            let low = objective(tensors);
            tensors[which][i] = x;
            (high - low) / (2.0 * H)
        })
        .collect()
}

/// Every value within `tolerance` of the reference, relative for values above 1.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs() / want.abs().max(1.0);
        assert!(error <= tolerance, "{what}[{i}] = {got}, not {want} ± {tolerance}");
    }
}
