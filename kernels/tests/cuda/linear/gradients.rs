//! dA, dB and dW.

use kernels::ops::linear::{lora_gradients, weight_gradient};
use kernels::{Buffer, DType, Device};

use super::{Case, Kind, Shape, size, split_tolerance, tolerance};
use crate::support::{assert_close, differences, dot, download, gpu, random, upload};

pub const KIND: Kind = Kind::Dense(DType::BF16);

/// dA, dB and dW, added to what `before` puts there.
pub fn pass(device: &Device, dtype: DType, case: &Case, before: impl Fn(usize) -> Vec<f64>) -> [Buffer; 3] {
    let n = case.shape.0;
    let [x, dy] = [&case.x, &case.dy].map(|t| upload(device, dtype, t));
    let [u, v] = [case.u(), case.v()].map(|t| upload(device, DType::F32, &t));
    let [mut d_a, mut d_b, mut d_w] = [&case.a, &case.b, &case.w].map(|t| upload(device, DType::F32, &before(t.len())));
    lora_gradients(device, &x, &dy, n, (&u, &v), &mut d_a, &mut d_b).unwrap();
    weight_gradient(device, &x, &dy, n, &mut d_w).unwrap();
    [d_a, d_b, d_w]
}

fn equal_the_reference(dtype: DType, shape: Shape) {
    let case = Case::new(dtype, KIND, shape);
    let (n, cols, rows, _) = shape;
    let before = |len| random(DType::F32, len, 9);
    let [d_a, d_b, d_w] = pass(&gpu(), dtype, &case, before);
    let check = |name: &str, got: &Buffer, want: Vec<f64>, tolerance: f64| {
        let want: Vec<f64> = want.iter().zip(before(want.len())).map(|(a, b)| a + b).collect();
        assert_close(&format!("{name} of {shape:?} {dtype}"), got, &want, tolerance);
    };
    check("dA", &d_a, case.d_a(), split_tolerance(n, size(rows)));
    check("dB", &d_b, case.d_b(), split_tolerance(n, size(cols)));
    check("dW", &d_w, case.d_w(), tolerance(n));
}

#[test]
fn the_gradients_of_these_tests_are_the_derivatives_of_the_reference() {
    let mut case = Case::new(DType::F32, KIND, (3, 5, 7, 2));
    // The objective is linear in each of A, B and W: differences are exact but for rounding in f64.
    let mut check = |want: Vec<f64>, of: fn(&mut Case) -> &mut Vec<f64>| {
        let start = of(&mut case).clone();
        let got = differences(&start, 0.5, |values| {
            *of(&mut case) = values.to_vec();
            dot(&case.y(), &case.dy)
        });
        want.iter().zip(got).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
        *of(&mut case) = start;
    };
    let fresh = Case::new(DType::F32, KIND, (3, 5, 7, 2));
    check(fresh.d_a(), |case| &mut case.a);
    check(fresh.d_b(), |case| &mut case.b);
    check(fresh.d_w(), |case| &mut case.w);
}

/// Parts are of 512 tokens, 128 features and 16 of the rank; 64 blocks of 256 features take the place of twice as many.
#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_equal_the_reference_in_any_shape() {
    for shape in [(1, 8, 8, 1), (33, 136, 72, 5), (1030, 24, 16, 17), (15_900, 264, 8, 2)] {
        for dtype in [DType::BF16, DType::F16] {
            equal_the_reference(dtype, shape);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_in_f32_or_of_odd_features_equal_the_reference() {
    for shape in [(1, 1, 1, 1), (33, 70, 9, 3), (9, 8, 71, 2)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            equal_the_reference(dtype, shape);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_have_the_same_bits_in_every_run() {
    let case = Case::new(DType::BF16, KIND, (1030, 24, 16, 3));
    let bits = || pass(&gpu(), DType::BF16, &case, |len| vec![0.0; len]).map(|buffer| download(&buffer));
    assert_eq!(bits(), bits());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_no_rank_adds_nothing() {
    let case = Case::new(DType::BF16, KIND, (4, 8, 16, 0));
    let [d_a, d_b, _] = pass(&gpu(), DType::BF16, &case, |len| vec![1.0; len]);
    assert!(d_a.is_empty() && d_b.is_empty());
}
