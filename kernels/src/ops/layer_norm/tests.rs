use proptest::prelude::*;

use super::*;
use crate::device::Device;
use crate::ops::testing::{assert_close, differences, dot, random, upload};

const EPS: f32 = 1e-5;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// Values below 4 in magnitude after normalisation, summed over at most 70 rows or features: 1e-5 is some hundred
    /// roundings of 2⁻²⁴. (Finite differences in f64 add about 1e-7.)
    #[test]
    fn forward_and_every_gradient_equal_the_reference(rows in 1usize..70, cols in 2usize..70, seed: u64) {
        let device = Device::cpu();
        let mut tensors = [random(rows * cols, seed), random(cols, seed ^ 1), random(cols, seed ^ 2)];
        let dy = random(rows * cols, seed ^ 3);
        let [x, weight, bias] = tensors.each_ref().map(|t| upload(&device, t));
        let reference = |t: &[Vec<f64>; 3]| reference::forward(&t[0], &t[1], &t[2], f64::from(EPS));
        let out = forward(&x, &weight, &bias, EPS).unwrap();
        assert_close("y", out.y.f32(), &reference(&tensors), 1e-5);
        let mut d_weight = upload(&device, &vec![1.0; cols]);
        let mut d_bias = upload(&device, &vec![1.0; cols]);
        let gradients = ParamGradients { weight: Some(&mut d_weight), bias: Some(&mut d_bias) };
        let dx = backward(upload(&device, &dy), &x, &weight, (&out.mean, &out.rstd), gradients, true).unwrap();
        let [want_x, want_w, want_b] =
            [0, 1, 2].map(|which| differences(&mut tensors, which, |t| dot(&reference(t), &dy)));
        let plus_one = |d: Vec<f64>| -> Vec<f64> { d.into_iter().map(|d| d + 1.0).collect() };
        // Rows of two nearly equal features have steep derivatives: r is up to 1/√ε ≈ 316.
        assert_close("dx", dx.unwrap().f32(), &want_x, 2e-3);
        assert_close("dw", d_weight.f32(), &plus_one(want_w), 1e-4);
        assert_close("db", d_bias.f32(), &plus_one(want_b), 1e-4);
    }
}

#[test]
fn every_instruction_set_agrees() {
    let device = Device::cpu();
    let (rows, cols) = (5, 131);
    let (x, weight, bias) = (random(rows * cols, 1), random(cols, 2), random(cols, 3));
    let want = reference::forward(&x, &weight, &bias, f64::from(EPS));
    let [x, weight, bias] = [&x, &weight, &bias].map(|t| upload(&device, t));
    for isa in Isa::available() {
        let (mut y, mut mean, mut rstd) = (vec![0.0; rows * cols], vec![0.0; rows], vec![0.0; rows]);
        let out = cpu::Output { y: &mut y, mean: &mut mean, rstd: &mut rstd };
        cpu::forward(isa, x.f32(), weight.f32(), bias.f32(), EPS, out);
        assert_close(isa.name(), &y, &want, 1e-5);
    }
}

#[test]
fn without_an_input_gradient_none_is_returned() {
    let device = Device::cpu();
    let [x, w] = [random(6, 1), random(3, 2)].map(|t| upload(&device, &t));
    let out = forward(&x, &w, &w, EPS).unwrap();
    let dx = backward(upload(&device, &[1.0; 6]), &x, &w, (&out.mean, &out.rstd), ParamGradients::default(), false);
    assert!(dx.unwrap().is_none());
}
