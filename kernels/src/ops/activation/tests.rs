use proptest::prelude::*;

use super::*;
use crate::device::Device;
use crate::ops::testing::{assert_close, random, upload};

const KINDS: [Activation; 4] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];

/// f64 central differences with a step of 1e-5; ReLU's kink is kept out of the inputs.
fn slope(kind: Activation, x: f64) -> f64 {
    (reference::forward(kind, x + 1e-5) - reference::forward(kind, x - 1e-5)) / 2e-5
}

fn inputs() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec((-9.0f32..9.0).prop_map(|x| f64::from(if x.abs() < 1e-3 { 0.5 } else { x })), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Φ's polynomial errs by 7.5e-8 and its roundings by a few of 2⁻²⁴, times |x| ≤ 9; exponentials by two units in the last place.
    #[test]
    fn values_and_slopes_equal_the_reference(x in inputs()) {
        let device = Device::cpu();
        for kind in KINDS {
            let want: Vec<f64> = x.iter().map(|x| reference::forward(kind, *x)).collect();
            let slopes: Vec<f64> = x.iter().map(|x| 2.0 * slope(kind, *x)).collect();
            let buffer = upload(&device, &x);
            assert_close("y", forward(kind, &buffer).unwrap().f32(), &want, 2e-6);
            let dy = upload(&device, &vec![2.0; x.len()]);
            assert_close("dx", backward(kind, dy, &buffer).unwrap().f32(), &slopes, 5e-6);
            for isa in Isa::available() {
                let mut y = vec![0.0; x.len()];
                cpu::forward(isa, kind, buffer.f32(), &mut y);
                assert_close(isa.name(), &y, &want, 2e-6);
                let mut dx = vec![2.0; x.len()];
                cpu::backward(isa, kind, &mut dx, buffer.f32());
                assert_close(isa.name(), &dx, &slopes, 5e-6);
            }
        }
    }

    #[test]
    fn relu_in_place_keeps_one_bit_an_element(x in inputs()) {
        let device = Device::cpu();
        let (y, signs) = relu(upload(&device, &x), true).unwrap();
        let want: Vec<f64> = x.iter().map(|x| x.max(0.0)).collect();
        assert_close("y", y.f32(), &want, 0.0);
        let signs = signs.unwrap();
        prop_assert_eq!(signs.len(), x.len().div_ceil(64));
        let dx = relu_backward(upload(&device, &vec![3.0; x.len()]), &signs).unwrap();
        let want: Vec<f64> = x.iter().map(|x| if *x > 0.0 { 3.0 } else { 0.0 }).collect();
        assert_close("dx", dx.f32(), &want, 0.0);
        prop_assert!(relu(upload(&device, &x), false).unwrap().1.is_none());
    }

    #[test]
    fn the_gate_and_its_gradients_equal_the_reference(gate in inputs(), factor in -3.0f32..3.0) {
        let device = Device::cpu();
        let up: Vec<f64> = gate.iter().map(|x| f64::from((x * 0.5) as f32 + factor)).collect();
        let silu = |x: f64| reference::forward(Activation::Silu, x);
        let [g, u] = [&gate, &up].map(|t| upload(&device, t));
        let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect();
        assert_close("y", silu_gate(&g, &u).unwrap().f32(), &want, 5e-6);
        let (d_gate, d_up) = silu_gate_backward(upload(&device, &vec![2.0; gate.len()]), &g, &u).unwrap();
        let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| 2.0 * u * slope(Activation::Silu, *g)).collect();
        assert_close("dgate", d_gate.f32(), &want, 1e-5);
        let want: Vec<f64> = gate.iter().map(|g| 2.0 * silu(*g)).collect();
        assert_close("dup", d_up.f32(), &want, 5e-6);
    }
}

#[test]
fn far_out_nothing_overflows() {
    let device = Device::cpu();
    let x = upload(&device, &[-1e30, -200.0, 200.0, 1e30]);
    for kind in [Activation::Gelu, Activation::Silu] {
        let y = forward(kind, &x).unwrap();
        assert!(y.f32()[..2].iter().all(|y| y.abs() < 1e-6), "{kind:?} {:?}", y.f32());
        assert_eq!(y.f32()[2..], [200.0, 1e30]);
    }
}

#[test]
fn relu_shows_nan_and_lets_its_gradient_through() {
    let device = Device::cpu();
    let (y, signs) = relu(upload(&device, &[f64::NAN, -1.0, -0.0, 2.0]), true).unwrap();
    assert!(y.f32()[0].is_nan());
    assert_eq!(y.f32()[1..], [0.0, 0.0, 2.0]);
    let dx = relu_backward(upload(&device, &[3.0; 4]), &signs.unwrap()).unwrap();
    assert_eq!(dx.f32(), [3.0, 0.0, 0.0, 3.0]);
}

#[test]
fn every_instruction_set_agrees_on_the_bitmap_and_the_gate() {
    // 8 Ki elements a task: two tasks and a part of a word.
    let x: Vec<f32> = random(16_421, 1).iter().map(|x| 9.0 * *x as f32).collect();
    let silu = |x: f32| reference::forward(Activation::Silu, f64::from(x));
    let want: Vec<f64> = x.iter().map(|x| silu(*x) * f64::from(*x)).collect();
    let d_up: Vec<f64> = x.iter().map(|x| silu(*x)).collect();
    let d_gate: Vec<f64> = x.iter().map(|x| f64::from(*x) * slope(Activation::Silu, f64::from(*x))).collect();
    for isa in Isa::available() {
        let (mut y, mut signs, mut dx) = (x.clone(), vec![0; x.len().div_ceil(64)], vec![1.0; x.len()]);
        cpu::relu(isa, &mut y, Some(&mut signs));
        cpu::relu_backward(isa, &mut dx, &signs);
        let mut plain = x.clone();
        cpu::relu(isa, &mut plain, None);
        assert_eq!(y, plain);
        for ((x, y), dx) in x.iter().zip(&y).zip(&dx) {
            assert_eq!((*y, *dx), if *x > 0.0 { (*x, 1.0) } else { (0.0, 0.0) });
        }
        cpu::silu_gate(isa, &x, &x, &mut y);
        assert_close(isa.name(), &y, &want, 5e-6);
        let (mut got_gate, mut got_up) = (vec![0.0; x.len()], vec![1.0; x.len()]);
        cpu::silu_gate_backward(isa, &x, &x, &mut got_gate, &mut got_up);
        assert_close(isa.name(), &got_gate, &d_gate, 1e-5);
        assert_close(isa.name(), &got_up, &d_up, 5e-6);
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let x = upload(&device, &[1.0; 3]);
    let half = || device.zeros(Category::Activations, DType::F16, 3).unwrap();
    assert_eq!(relu(half(), true).unwrap_err().to_string(), "relu: x is f16, expected f32");
    let error = backward(Activation::Gelu, half(), &x).unwrap_err().to_string();
    assert_eq!(error, "activation_backward: dy is f16, expected f32");
    assert_eq!(silu_gate(&x, &half()).unwrap_err().to_string(), "silu_gate: up is f16, expected f32");
    let error = relu_backward(upload(&device, &[1.0; 3]), &x).unwrap_err().to_string();
    assert_eq!(error, "relu_backward: signs has 3 elements, expected 1");
}
