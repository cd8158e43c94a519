use proptest::prelude::*;

use super::*;
use crate::device::Device;
use crate::ops::testing::{self, assert_close, differences, dot, random, upload};
use crate::strips::from_rows;

const EPS: f32 = 1e-5;

/// As for LayerNorm: 1e-5 is some hundred roundings of 2⁻²⁴.
fn forward_and_gradients_equal_the_reference(rows: usize, cols: usize, seed: u64) {
    let mut tensors = [random(rows * cols, seed), random(cols, seed ^ 1)];
    let dy = random(rows * cols, seed ^ 3);
    let reference = |t: &[Vec<f64>; 2]| reference::forward(&t[0], &t[1], f64::from(EPS));
    let want = reference(&tensors);
    let f32s = |values: &[f64]| -> Vec<f32> { values.iter().map(|x| *x as f32).collect() };
    let [x, weight] = tensors.each_ref().map(|t| f32s(t));
    let x = from_rows(&x, rows, cols);
    let [want_x, want_w] = [0, 1].map(|which| differences(&mut tensors, which, |t| dot(&reference(t), &dy)));
    let want_w: Vec<f64> = want_w.into_iter().map(|d| d + 1.0).collect();
    for isa in Isa::available() {
        let (mut y, mut rstd) = (vec![0.0; rows * cols], vec![0.0; rows]);
        cpu::forward(isa, &x, &weight, EPS, &mut y, &mut rstd);
        let saved = cpu::Saved { x: &x, weight: &weight, rstd: &rstd };
        let (mut d_weight, mut dx) = (vec![1.0; cols], from_rows(&f32s(&dy), rows, cols));
        cpu::weight_gradient(isa, &saved, &dx, &mut d_weight);
        let mut summed = dx.clone();
        cpu::input_gradient(isa, &saved, Some(&x), &mut summed);
        cpu::input_gradient(isa, &saved, None, &mut dx);
        assert_eq!(summed, dx.iter().zip(&x).map(|(dx, x)| dx + x).collect::<Vec<_>>());
        assert_close("y", &testing::rows(&y, rows), &want, 1e-5);
        // A row of one tiny feature has a steep derivative: r is up to 1/√ε ≈ 316.
        assert_close("dx", &testing::rows(&dx, rows), &want_x, 2e-3);
        assert_close("dw", &d_weight, &want_w, 1e-4);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn every_instruction_set_equals_the_reference(rows in 1usize..70, cols in 1usize..70, seed: u64) {
        forward_and_gradients_equal_the_reference(rows, cols, seed);
    }
}

#[test]
fn more_rows_and_features_than_a_task_equal_the_reference() {
    forward_and_gradients_equal_the_reference(17, 293, 7);
    forward_and_gradients_equal_the_reference(96, 5, 8);
    forward_and_gradients_equal_the_reference(211, 4, 9);
}

/// One forward and backward through the device: y, dx, dw.
fn step(rows: usize, cols: usize) -> [Vec<f32>; 3] {
    let device = Device::cpu();
    let [x, dy] = [1, 2].map(|seed| upload(&device, &random(rows * cols, seed)));
    let [weight, mut d_weight] = [3, 4].map(|seed| upload(&device, &random(cols, seed)));
    let out = forward(&x, &weight, EPS).unwrap();
    let dx = backward(dy, &x, &weight, &out.rstd, Some(&mut d_weight), InputGradient::Alone).unwrap().unwrap();
    [out.y, dx, d_weight].map(|buffer| buffer.f32().to_vec())
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let with =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| step(100, 300));
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let [x, w, empty] = [&[0.0; 6][..], &[1.0; 3], &[]].map(|t| upload(&device, t));
    let half = device.zeros(Category::Weights, DType::F16, 3).unwrap();
    let error = |x: &Buffer, w: &Buffer| forward(x, w, EPS).unwrap_err().to_string();
    assert_eq!(error(&x, &half), "rms_norm_forward: weight is f16, expected f32");
    assert_eq!(error(&w, &x), "rms_norm_forward: x has 3 elements, expected 0");
    assert_eq!(error(&x, &empty), "rms_norm_forward: rows of x have no features, expected at least one");
}

#[test]
fn an_input_gradient_is_returned_where_it_is_wanted_and_its_sum_fits() {
    let device = Device::cpu();
    let [x, w] = [random(6, 1), random(3, 2)].map(|t| upload(&device, &t));
    let out = forward(&x, &w, EPS).unwrap();
    let pass = |of: InputGradient<'_>| backward(upload(&device, &[1.0; 6]), &x, &w, &out.rstd, None, of);
    assert!(pass(InputGradient::Unwanted).unwrap().is_none());
    let short = pass(InputGradient::AddedTo(&w)).unwrap_err().to_string();
    assert_eq!(short, "rms_norm_backward: the sum has 3 elements, expected 6");
}
