use proptest::prelude::*;

use super::*;
use crate::device::{Category, Device};

proptest! {
    #[test]
    fn sums_are_exact_to_one_rounding(values in prop::collection::vec((-1e6f32..1e6, -1e6f32..1e6), 0..200)) {
        let device = Device::cpu();
        let (a, b): (Vec<f32>, Vec<f32>) = values.into_iter().unzip();
        let mut sum = device.upload(Category::Activations, &a).unwrap();
        add_assign(&mut sum, &device.upload(Category::Activations, &b).unwrap()).unwrap();
        let want: Vec<f32> = reference::add(&a, &b).into_iter().map(|sum| sum as f32).collect();
        prop_assert_eq!(sum.f32(), &want[..]);
        for isa in Isa::available() {
            let mut got = a.clone();
            cpu::add_assign(isa, &mut got, &b);
            prop_assert_eq!(&got, &want);
        }
    }
}

#[test]
fn lengths_that_differ_are_refused() {
    let device = Device::cpu();
    let mut sum = device.zeros(Category::Activations, crate::DType::F32, 4).unwrap();
    let x = device.zeros(Category::Activations, crate::DType::F32, 3).unwrap();
    assert_eq!(add_assign(&mut sum, &x).unwrap_err().to_string(), "add: x has 3 elements, expected 4");
}

#[test]
fn a_type_that_the_device_does_not_compute_in_is_named() {
    let device = Device::cpu();
    let mut sum = device.zeros(Category::Activations, crate::DType::F32, 4).unwrap();
    let x = device.zeros(Category::Activations, crate::DType::BF16, 4).unwrap();
    assert_eq!(add_assign(&mut sum, &x).unwrap_err().to_string(), "add: x is bf16, expected f32");
}
