use proptest::prelude::*;

use super::*;
use crate::device::Category;
use crate::ops::grad_norm::{self, grad_norm};
use crate::ops::testing::{assert_close, random, upload};

fn plain(values: &Buffer) -> Gradient<'_> {
    Gradient { values, mask: None }
}

/// A norm of the slots' gradients.
fn norm_of(device: &Device, slots: &[Slot<'_>], clip: Option<f64>) -> GradNorm {
    grad_norm(device, &slots.iter().map(|slot| slot.grad).collect::<Vec<_>>(), clip).unwrap()
}

/// min(1, clip/(n + 1e-6)) of f64 gradients.
fn clip_factor(grads: &[Vec<f64>], clip: f64) -> f64 {
    let grads: Vec<Vec<f32>> = grads.iter().map(|g| g.iter().map(|x| *x as f32).collect()).collect();
    (clip / (grad_norm::reference::grad_norm(&grads) + 1e-6)).min(1.0)
}

/// What a mask of `word`s makes of gradients.
fn masked(grads: &[Vec<f64>], word: u64) -> Vec<Vec<f64>> {
    let keep = |(i, x): (usize, &f64)| if word >> (i % 64) & 1 == 1 { *x } else { 0.0 };
    grads.iter().map(|g| g.iter().enumerate().map(keep).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Each step adds about ten roundings of 2⁻²⁴ to numbers near 1, three steps of them.
    #[test]
    fn steps_equal_the_reference_for_lists_of_any_length(
        sizes in prop::collection::vec(0usize..150, 0..5), decay in 0.0f64..0.1, clip in 0.1f64..9.0, word: u64, seed: u64,
    ) {
        let device = Device::cpu();
        let mut w: Vec<Vec<f64>> = sizes.iter().enumerate().map(|(i, n)| random(*n, seed ^ i as u64)).collect();
        let (mut m, mut v) = (w.clone(), w.clone());
        m.iter_mut().chain(&mut v).flatten().for_each(|x| *x = 0.0);
        let [mut wb, mut mb, mut vb] = [&w, &m, &v].map(|t| t.iter().map(|t| upload(&device, t)).collect::<Vec<_>>());
        for t in 1..4 {
            let g: Vec<Vec<f64>> = sizes.iter().map(|n| random(*n, seed.wrapping_add(t as u64 * 977))).collect();
            let gb: Vec<Buffer> = g.iter().map(|g| upload(&device, g)).collect();
            let masks: Vec<Buffer> = sizes.iter()
                .map(|n| device.upload(Category::Masks, &vec![word; n.div_ceil(64)]).unwrap()).collect();
            // Every other step is masked.
            let (g, masks) = if t % 2 == 0 { (masked(&g, word), Some(masks)) } else { (g, None) };
            let numbers = Step { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: decay, step: t };
            let grads = gb.iter().enumerate()
                .map(|(i, values)| Gradient { values, mask: masks.as_ref().map(|masks| &masks[i]) });
            let mut slots: Vec<Slot<'_>> = wb.iter_mut().zip(grads).zip(mb.iter_mut().zip(&mut vb))
                .map(|((value, grad), (m, v))| Slot { value, grad, m, v }).collect();
            let norm = norm_of(&device, &slots, Some(clip));
            step(&device, &mut slots, numbers, &norm).unwrap();
            let scale = clip_factor(&g, clip);
            for tensor in 0..sizes.len() {
                for i in 0..sizes[tensor] {
                    let (w, m, v) = (&mut w[tensor], &mut m[tensor], &mut v[tensor]);
                    let (a, b, c) = reference::step(w[i], scale * g[tensor][i], m[i], v[i], &numbers);
                    (w[i], m[i], v[i]) = (a, b, c);
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

/// A step of numbers near 1 on each instruction set, with a chunk's edge inside a tensor: m and v sum two products and w
/// three terms, each with a few roundings of 2⁻²⁴.
#[test]
fn every_instruction_set_takes_the_same_step_whatever_the_number_of_threads() {
    let numbers = Step { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3 };
    let sizes = [1, 17, 40_003, 40_003];
    let word = 0x9e37_79b9_7f4a_7c15;
    let masks = [None, None, None, Some(vec![word; 40_003usize.div_ceil(64)])];
    let tensors = |seed: u64| sizes.map(|n| random(n, seed).iter().map(|x| *x as f32).collect::<Vec<_>>());
    let grads = tensors(1);
    let initial = [tensors(2), tensors(3), tensors(4).map(|v| v.iter().map(|v| v * v + 1e-3).collect())];
    for isa in Isa::available() {
        let run = |threads| {
            let [mut w, mut m, mut v] = initial.clone();
            let state = m.iter_mut().zip(&mut v);
            let pairs = w.iter_mut().zip(&grads).zip(&masks).zip(state);
            let tensors: Vec<_> = pairs
                .map(|(((value, grad), mask), (m, v))| cpu::Tensor { value, grad, mask: mask.as_deref(), m, v })
                .collect();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| cpu::step(isa, tensors.into_iter(), cpu::Factors::of(&numbers), 0.5));
            [w, m, v]
        };
        let got = run(1);
        assert!(got == run(3), "{isa:?}");
        for tensor in 0..sizes.len() {
            let at = |i: usize| {
                let [w, m, v] = [0, 1, 2].map(|t| f64::from(initial[t][tensor][i]));
                let kept = tensor < 3 || word >> (i % 64) & 1 == 1;
                reference::step(w, if kept { 0.5 * f64::from(grads[tensor][i]) } else { 0.0 }, m, v, &numbers)
            };
            let want: Vec<_> = (0..sizes[tensor]).map(at).collect();
            assert_close("w", &got[0][tensor], &want.iter().map(|x| x.0).collect::<Vec<_>>(), 1e-6);
            assert_close("m", &got[1][tensor], &want.iter().map(|x| x.1).collect::<Vec<_>>(), 1e-6);
            assert_close("v", &got[2][tensor], &want.iter().map(|x| x.2).collect::<Vec<_>>(), 1e-6);
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let zeros = |dtype, len| device.zeros(Category::Optimizer, dtype, len).unwrap();
    let numbers = Step { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    let message = |dtype, grad_len, step_number| {
        let (mut value, grad) = (zeros(dtype, 3), zeros(DType::F32, grad_len));
        let (mut m, mut v) = (zeros(DType::F32, 3), zeros(DType::F32, 3));
        let norm = grad_norm(&device, &[plain(&grad)], None).unwrap();
        let slot = Slot { value: &mut value, grad: plain(&grad), m: &mut m, v: &mut v };
        step(&device, &mut [slot], Step { step: step_number, ..numbers }, &norm).unwrap_err().to_string()
    };
    assert_eq!(message(DType::F16, 3, 1), "adamw: value is f16, expected f32");
    assert_eq!(message(DType::F32, 2, 1), "adamw: gradient has 2 elements, expected 3");
    assert_eq!(message(DType::F32, 3, 0), "adamw: step 0: steps count from 1");
    let mask = |dtype, len| apply_mask(&mut zeros(DType::F32, 65), &zeros(dtype, len)).unwrap_err().to_string();
    assert_eq!(mask(DType::U32, 2), "apply_mask: mask is u32, expected u64");
    assert_eq!(mask(DType::U64, 1), "apply_mask: mask has 1 elements, expected 2");
}

#[test]
fn a_pruned_entry_never_moves() {
    let device = Device::cpu();
    let mask = device.upload(Category::Masks, &[0b01u64]).unwrap();
    let mut value = device.upload(Category::Weights, &[1.0f32, 0.0]).unwrap();
    let [mut m, mut v] = [0, 1].map(|_| device.upload(Category::Optimizer, &[0.0f32; 2]).unwrap());
    for t in 1..10 {
        let values = device.upload(Category::Gradients, &[0.3f32, 5.0]).unwrap();
        let grad = Gradient { values: &values, mask: Some(&mask) };
        let slot = Slot { value: &mut value, grad, m: &mut m, v: &mut v };
        let numbers = Step { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: t };
        let norm = norm_of(&device, std::slice::from_ref(&slot), None);
        step(&device, &mut [slot], numbers, &norm).unwrap();
    }
    assert!(value.f32()[0] < 1.0);
    assert_eq!(value.f32()[1].to_bits(), 0);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let device = Device::cpu();
    let grads = [&[0.3f32, 0.1], &[f32::NEG_INFINITY, 0.0]].map(|g| device.upload(Category::Gradients, g).unwrap());
    let mut state = [0; 6].map(|_| device.upload(Category::Optimizer, &[1.0f32, 0.5]).unwrap());
    let [w0, m0, v0, w1, m1, v1] = &mut state;
    let mut slots = [
        Slot { value: w0, grad: plain(&grads[0]), m: m0, v: v0 },
        Slot { value: w1, grad: plain(&grads[1]), m: m1, v: v1 },
    ];
    let numbers = Step { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };
    let norm = norm_of(&device, &slots, Some(1.0));
    step(&device, &mut slots, numbers, &norm).unwrap();
    assert!(state.iter().all(|buffer| buffer.f32() == [1.0, 0.5]));
}
