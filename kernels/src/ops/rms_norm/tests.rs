use proptest::prelude::*;

use super::*;
use crate::device::Device;
use crate::ops::testing::{assert_close, differences, dot, random, upload};

const EPS: f32 = 1e-5;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// As for LayerNorm: 1e-5 is some hundred roundings of 2⁻²⁴.
    #[test]
    fn forward_and_every_gradient_equal_the_reference(rows in 1usize..70, cols in 1usize..70, seed: u64) {
        let device = Device::cpu();
        let mut tensors = [random(rows * cols, seed), random(cols, seed ^ 1)];
        let dy = random(rows * cols, seed ^ 3);
        let [x, weight] = tensors.each_ref().map(|t| upload(&device, t));
        let reference = |t: &[Vec<f64>; 2]| reference::forward(&t[0], &t[1], f64::from(EPS));
        let out = forward(&x, &weight, EPS).unwrap();
        assert_close("y", out.y.f32(), &reference(&tensors), 1e-5);
        let mut d_weight = upload(&device, &vec![1.0; cols]);
        let dx = backward(upload(&device, &dy), &x, &weight, &out.rstd, Some(&mut d_weight), true).unwrap();
        let [want_x, want_w] = [0, 1].map(|which| differences(&mut tensors, which, |t| dot(&reference(t), &dy)));
        let want_w: Vec<f64> = want_w.into_iter().map(|d| d + 1.0).collect();
        // A row of one tiny feature has a steep derivative: r is up to 1/√ε ≈ 316.
        assert_close("dx", dx.unwrap().f32(), &want_x, 2e-3);
        assert_close("dw", d_weight.f32(), &want_w, 1e-4);
    }
}

#[test]
fn every_instruction_set_agrees() {
    let (rows, cols) = (5, 131);
    let (x, weight) = (random(rows * cols, 1), random(cols, 2));
    let want = reference::forward(&x, &weight, f64::from(EPS));
    let device = Device::cpu();
    let [x, weight] = [&x, &weight].map(|t| upload(&device, t));
    for isa in Isa::available() {
        let (mut y, mut rstd) = (vec![0.0; rows * cols], vec![0.0; rows]);
        cpu::forward(isa, x.f32(), weight.f32(), EPS, &mut y, &mut rstd);
        assert_close(isa.name(), &y, &want, 1e-5);
    }
}
