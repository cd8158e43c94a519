use proptest::prelude::*;

use super::*;
use crate::ops::testing::{assert_close, differences, dot, random, upload};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// Angles stay below 20 and round once to f32: an error of 20·2⁻²⁴ ≈ 1.2e-6 beside the products' own roundings.
    #[test]
    fn it_rotates_and_its_gradient_equals_finite_differences(
        batch in 1usize..3, tokens in 1usize..20, heads in 1usize..3, half in 1usize..10, extra in 0usize..5, seed: u64,
    ) {
        let device = Device::cpu();
        let head_dim = 2 * half + extra;
        let frequencies: Vec<f64> = (0..half).map(|i| 100f64.powf(-(i as f64) / half as f64)).collect();
        let len = batch * tokens * heads * head_dim;
        let (mut x, dy) = ([random(len, seed)], random(len, seed ^ 1));
        let table = RotaryTable::new(&device, tokens + 3, &frequencies, 1.25).unwrap();
        let turn = |values: &[f64], direction| {
            let mut buffer = upload(&device, values);
            rotate(&mut buffer, &table, tokens, heads, head_dim, direction).unwrap();
            buffer.f32().to_vec()
        };
        let rotated = |x: &[f64]| reference::rotate(x, tokens, heads, head_dim, &frequencies, 1.25);
        assert_close("y", &turn(&x[0], Direction::Forward), &rotated(&x[0]), 1e-5);
        let want = differences(&mut x, 0, |x| dot(&rotated(&x[0]), &dy));
        assert_close("dx", &turn(&dy, Direction::Backward), &want, 1e-5);
    }
}

#[test]
fn more_positions_than_the_table_are_refused() {
    let device = Device::cpu();
    let table = RotaryTable::new(&device, 4, &[1.0], 1.0).unwrap();
    let mut x = upload(&device, &[0.0; 10]);
    let error = rotate(&mut x, &table, 5, 1, 2, Direction::Forward).unwrap_err().to_string();
    assert_eq!(error, "rotary: sequences of 5 tokens, but positions for 4");
}

#[test]
fn every_instruction_set_agrees() {
    let (cos, sin) = ([0.6f32; 19], [0.8f32; 19]);
    let x: Vec<f32> = (0..38).map(|i| i as f32).collect();
    let shape = cpu::Shape { tokens: 1, head_dim: 38, width: 38, pairs: 19 };
    for isa in Isa::available() {
        let mut got = x.clone();
        cpu::rotate(isa, &mut got, &cos, &sin, shape, Direction::Forward);
        for i in 0..19 {
            let (a, b) = (x[i], x[i + 19]);
            assert!((got[i] - (0.6 * a - 0.8 * b)).abs() < 1e-5);
            assert!((got[i + 19] - (0.6 * b + 0.8 * a)).abs() < 1e-5);
        }
    }
}
