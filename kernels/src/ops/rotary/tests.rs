use proptest::prelude::*;

use super::*;
use crate::ops::testing::{self, assert_close, differences, dot, random, upload, upload_tokens};
use crate::strips::from_rows;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// Angles stay below 110 and round once to f32: an error of 110·2⁻²⁴ ≈ 6.6e-6 beside the products' own roundings.
    #[test]
    fn it_rotates_and_its_gradient_equals_finite_differences(
        batch in 1usize..3, tokens in prop_oneof![1usize..20, 60usize..110], heads in 1usize..3, half in 1usize..4, extra in 0usize..5, seed: u64,
    ) {
        let device = Device::cpu();
        let head_dim = 2 * half + extra;
        let frequencies: Vec<f64> = (0..half).map(|i| 100f64.powf(-(i as f64) / half as f64)).collect();
        let len = batch * tokens * heads * head_dim;
        let (mut x, dy) = ([random(len, seed)], random(len, seed ^ 1));
        let table = RotaryTable::new(&device, tokens + 3, &frequencies, 1.25).unwrap();
        let turn = |values: &[f64], direction| {
            let mut buffer = upload_tokens(&device, values, batch * tokens);
            rotate(&mut buffer, &table, tokens, heads, head_dim, direction).unwrap();
            testing::rows(buffer.f32(), batch * tokens)
        };
        let rotated = |x: &[f64]| reference::rotate(x, tokens, heads, head_dim, &frequencies, 1.25);
        assert_close("y", &turn(&x[0], Direction::Forward), &rotated(&x[0]), 2e-5);
        let want = differences(&mut x, 0, |x| dot(&rotated(&x[0]), &dy));
        assert_close("dx", &turn(&dy, Direction::Backward), &want, 2e-5);
    }
}

#[test]
fn more_positions_than_the_table_are_refused() {
    let device = Device::cpu();
    let table = RotaryTable::new(&device, 4, &[1.0], 1.0).unwrap();
    let mut x = upload(&device, &[0.0; 10]);
    let error = rotate(&mut x, &table, 5, 1, 2, Direction::Forward).unwrap_err().to_string();
    assert_eq!(error, "rotary: sequences of 5 tokens, but positions for 1 to 4");
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let table = RotaryTable::new(&device, 4, &[1.0, 0.5], 1.0).unwrap();
    let error = |len, tokens, heads, head_dim| {
        let mut x = upload(&device, &vec![0.0; len]);
        rotate(&mut x, &table, tokens, heads, head_dim, Direction::Forward).unwrap_err().to_string()
    };
    assert_eq!(error(8, 0, 1, 4), "rotary: sequences of 0 tokens, but positions for 1 to 4");
    assert_eq!(error(9, 1, 2, 4), "rotary: x has 9 elements, expected 8");
    assert_eq!(error(6, 1, 2, 3), "rotary: 4 features cannot rotate in heads of 3");
    assert_eq!(error(0, 1, 0, 4), "rotary: rows of x have no features, expected at least one");
    let mut x = device.zeros(Category::Activations, crate::DType::BF16, 4).unwrap();
    let error = rotate(&mut x, &table, 1, 1, 4, Direction::Forward).unwrap_err().to_string();
    assert_eq!(error, "rotary: x is bf16, expected f32");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// |a|, |b| < 1 and |m·cos|, |m·sin| ≤ 1.25: three roundings of 2⁻²⁴ beside the tables' own, of angles below 150, which
    /// err by 150·2⁻²⁴ ≈ 9e-6.
    #[test]
    fn every_instruction_set_equals_the_reference(
        rows in prop_oneof![1usize..40, 90usize..300], heads in 1usize..4, half in 1usize..40, extra in 0usize..5, seed: u64,
    ) {
        let device = Device::cpu();
        let (tokens, head_dim) = (rows.div_ceil(2), 2 * half + extra);
        let frequencies: Vec<f64> = (0..half).map(|i| 100f64.powf(-(i as f64) / half as f64)).collect();
        let table = RotaryTable::new(&device, tokens, &frequencies, 1.25).unwrap();
        let x = random(rows * heads * head_dim, seed);
        let want = reference::rotate(&x, tokens, heads, head_dim, &frequencies, 1.25);
        let shape = cpu::Shape { tokens, heads, head_dim, pairs: half };
        for isa in Isa::available() {
            let mut got: Vec<f32> = from_rows(&x, rows, heads * head_dim).iter().map(|x| *x as f32).collect();
            cpu::rotate(isa, &mut got, table.cos.f32(), table.sin.f32(), shape, Direction::Forward);
            assert_close(isa.name(), &testing::rows(&got, rows), &want, 2.5e-5);
        }
    }
}
