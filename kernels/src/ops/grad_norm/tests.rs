use proptest::prelude::*;

use super::*;
use crate::device::Category;

proptest! {
    #[test]
    fn it_is_the_norm_of_all_tensors_together(
        tensors in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 0..40), 0..4), long in 0usize..40_000,
    ) {
        let device = Device::cpu();
        let mut tensors = tensors;
        tensors.push((0..long).map(|i| (i % 7) as f32).collect());
        let want = reference::grad_norm(&tensors);
        let buffers: Vec<Buffer> = tensors.iter().map(|t| device.upload(Category::Gradients, t).unwrap()).collect();
        let got = grad_norm(&device, &buffers.iter().collect::<Vec<_>>()).unwrap();
        // 40 000 additions in f64.
        prop_assert!((got.norm - want).abs() <= 1e-11 * want);
        prop_assert_eq!(got.first_non_finite, None);
        for isa in Isa::available() {
            let sum: f64 = tensors.iter().map(|t| cpu::sum_of_squares(isa, t)).sum();
            prop_assert!((sum.sqrt() - want).abs() <= 1e-11 * want);
        }
    }
}

#[test]
fn the_first_tensor_that_is_not_finite_is_named() {
    let device = Device::cpu();
    let good = device.upload(Category::Gradients, &[1.0f32]).unwrap();
    let bad = device.upload(Category::Gradients, &[1.0f32, f32::NAN]).unwrap();
    let worse = device.upload(Category::Gradients, &[f32::INFINITY]).unwrap();
    assert_eq!(grad_norm(&device, &[&good, &bad, &worse]).unwrap().first_non_finite, Some(1));
    assert_eq!(grad_norm(&device, &[&good, &worse]).unwrap().first_non_finite, Some(1));
    // Squares of finite f32 numbers do not overflow in f64.
    let large = device.upload(Category::Gradients, &[f32::MAX; 3]).unwrap();
    assert!(grad_norm(&device, &[&large]).unwrap().norm.is_finite());
}

#[test]
fn the_bits_do_not_depend_on_threads_or_instruction_set() {
    // Of 48 significant bits each, squares are exact in f64, and every instruction set adds them in the same order.
    let values: Vec<f32> = crate::ops::testing::random(100_003, 5).iter().map(|x| *x as f32).collect();
    let sum = |isa, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cpu::sum_of_squares(isa, &values)).to_bits()
    };
    let one = sum(Isa::Portable, 1);
    for isa in Isa::available() {
        assert_eq!([1, 3].map(|threads| sum(isa, threads)), [one, one], "{isa:?}");
    }
}

#[test]
fn gradients_are_f32() {
    let device = Device::cpu();
    let half = device.zeros(Category::Gradients, DType::BF16, 4).unwrap();
    assert_eq!(grad_norm(&device, &[&half]).unwrap_err().to_string(), "grad_norm: gradient is bf16, expected f32");
}
