use proptest::prelude::*;

use super::*;
use crate::device::Category;
use crate::ops::testing::{assert_close, random, upload};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Each step adds about ten roundings of 2⁻²⁴ to numbers near 1, three steps of them.
    #[test]
    fn steps_equal_the_reference_for_lists_of_any_length(
        sizes in prop::collection::vec(0usize..40, 0..5), decay in 0.0f64..0.1, scale in 0.1f64..1.0, seed: u64,
    ) {
        let device = Device::cpu();
        let mut w: Vec<Vec<f64>> = sizes.iter().enumerate().map(|(i, n)| random(*n, seed ^ i as u64)).collect();
        let (mut m, mut v) = (w.clone(), w.clone());
        m.iter_mut().chain(&mut v).flatten().for_each(|x| *x = 0.0);
        let [mut wb, mut mb, mut vb] = [&w, &m, &v].map(|t| t.iter().map(|t| upload(&device, t)).collect::<Vec<_>>());
        for t in 1..4 {
            let g: Vec<Vec<f64>> = sizes.iter().map(|n| random(*n, seed.wrapping_add(t as u64 * 977))).collect();
            let gb: Vec<Buffer> = g.iter().map(|g| upload(&device, g)).collect();
            let numbers = Step {
                lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: decay, step: t, grad_scale: scale,
            };
            let mut slots: Vec<Slot<'_>> = wb.iter_mut().zip(&gb).zip(mb.iter_mut().zip(&mut vb))
                .map(|((value, grad), (m, v))| Slot { value, grad, m, v }).collect();
            step(&device, &mut slots, numbers).unwrap();
            for tensor in 0..sizes.len() {
                for i in 0..sizes[tensor] {
                    let (a, b, c) = reference::step(w[tensor][i], g[tensor][i], m[tensor][i], v[tensor][i], &numbers);
                    (w[tensor][i], m[tensor][i], v[tensor][i]) = (a, b, c);
                }
                assert_close("w", wb[tensor].f32(), &w[tensor], 3e-6);
                assert_close("m", mb[tensor].f32(), &m[tensor], 3e-6);
                assert_close("v", vb[tensor].f32(), &v[tensor], 3e-6);
            }
        }
    }

    #[test]
    fn a_mask_zeroes_what_it_does_not_keep(values in prop::collection::vec(-9.0f32..9.0, 1..200), word: u64) {
        let device = Device::cpu();
        let words = vec![word; values.len().div_ceil(64)];
        let mut buffer = device.upload(Category::Gradients, &values).unwrap();
        apply_mask(&mut buffer, &device.upload(Category::Masks, &words).unwrap()).unwrap();
        for (i, (got, x)) in buffer.f32().iter().zip(&values).enumerate() {
            prop_assert_eq!(*got, if word >> (i % 64) & 1 == 1 { *x } else { 0.0 });
        }
    }
}

#[test]
fn a_pruned_entry_never_moves() {
    let device = Device::cpu();
    let mask = device.upload(Category::Masks, &[0b01u64]).unwrap();
    let mut value = device.upload(Category::Weights, &[1.0f32, 0.0]).unwrap();
    let [mut m, mut v] = [0, 1].map(|_| device.upload(Category::Optimizer, &[0.0f32; 2]).unwrap());
    for t in 1..10 {
        let mut grad = device.upload(Category::Gradients, &[0.3f32, 5.0]).unwrap();
        apply_mask(&mut grad, &mask).unwrap();
        let slot = Slot { value: &mut value, grad: &grad, m: &mut m, v: &mut v };
        let numbers =
            Step { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: t, grad_scale: 1.0 };
        step(&device, &mut [slot], numbers).unwrap();
    }
    assert!(value.f32()[0] < 1.0);
    assert_eq!(value.f32()[1].to_bits(), 0);
}
