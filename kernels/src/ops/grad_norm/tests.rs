use proptest::prelude::*;

use super::*;
use crate::device::Category;

fn plain(values: &Buffer) -> Gradient<'_> {
    Gradient { values, mask: None }
}

fn read(device: &Device, gradients: &[Gradient<'_>]) -> Reading {
    grad_norm(device, gradients, None).unwrap().read().unwrap()
}

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
        let gradients: Vec<_> = buffers.iter().map(plain).collect();
        let got = read(&device, &gradients);
        // 40 000 additions in f64.
        prop_assert!((got.norm - want).abs() <= 1e-11 * want);
        prop_assert_eq!(got.first_non_finite, None);
        for isa in Isa::available() {
            let sum: f64 = tensors.iter().map(|t| cpu::sum_of_squares(isa, t, None)).sum();
            prop_assert!((sum.sqrt() - want).abs() <= 1e-11 * want);
        }
        let clip = want / 2.0 + 0.1;
        let scale = grad_norm(&device, &gradients, Some(clip)).unwrap().host_scale().unwrap();
        prop_assert!((scale - (clip / (want + 1e-6)).min(1.0)).abs() <= 1e-11);
    }

    #[test]
    fn a_mask_leaves_the_rest_out(values in prop::collection::vec(-1e3f32..1e3, 0..300), word: u64) {
        let device = Device::cpu();
        let kept: Vec<f32> =
            values.iter().enumerate().map(|(i, x)| if word >> (i % 64) & 1 == 1 { *x } else { 0.0 }).collect();
        // What is not kept may be anything.
        let dirty = |(x, kept): (&f32, &f32)| if x == kept { *x } else { f32::NAN };
        let values: Vec<f32> = values.iter().zip(&kept).map(dirty).collect();
        let buffer = device.upload(Category::Gradients, &values).unwrap();
        let mask = device.upload(Category::Masks, &vec![word; values.len().div_ceil(64)]).unwrap();
        let got = read(&device, &[Gradient { values: &buffer, mask: Some(&mask) }]);
        let want = reference::grad_norm(&[kept]);
        prop_assert!((got.norm - want).abs() <= 1e-11 * want);
        prop_assert_eq!(got.first_non_finite, None);
    }
}

#[test]
fn the_first_tensor_that_is_not_finite_is_named() {
    let device = Device::cpu();
    let good = device.upload(Category::Gradients, &[1.0f32]).unwrap();
    let bad = device.upload(Category::Gradients, &[1.0f32, f32::NAN]).unwrap();
    let worse = device.upload(Category::Gradients, &[f32::INFINITY]).unwrap();
    let [good, bad, worse] = [&good, &bad, &worse].map(plain);
    assert_eq!(read(&device, &[good, bad, worse]).first_non_finite, Some(1));
    assert_eq!(read(&device, &[good, worse]).first_non_finite, Some(1));
    assert_eq!(grad_norm(&device, &[good, worse], Some(1.0)).unwrap().host_scale(), None);
    // Squares of finite f32 numbers do not overflow in f64.
    let large = device.upload(Category::Gradients, &[f32::MAX; 3]).unwrap();
    assert!(read(&device, &[plain(&large)]).norm.is_finite());
}

#[test]
fn the_bits_do_not_depend_on_threads_or_instruction_set() {
    // Of 48 significant bits each, squares are exact in f64, and every instruction set adds them in the same order.
    let values: Vec<f32> = crate::ops::testing::random(100_003, 5).iter().map(|x| *x as f32).collect();
    let sum = |isa, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cpu::sum_of_squares(isa, &values, None)).to_bits()
    };
    let one = sum(Isa::Portable, 1);
    for isa in Isa::available() {
        assert_eq!([1, 3].map(|threads| sum(isa, threads)), [one, one], "{isa:?}");
    }
}

#[test]
fn gradients_and_masks_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let half = device.zeros(Category::Gradients, DType::BF16, 4).unwrap();
    let error = |gradient| grad_norm(&device, &[gradient], None).unwrap_err().to_string();
    assert_eq!(error(plain(&half)), "grad_norm: gradient is bf16, expected f32");
    let values = device.zeros(Category::Gradients, DType::F32, 65).unwrap();
    let mask = device.zeros(Category::Masks, DType::U64, 1).unwrap();
    let masked = Gradient { values: &values, mask: Some(&mask) };
    assert_eq!(error(masked), "grad_norm: mask has 1 elements, expected 2");
}
