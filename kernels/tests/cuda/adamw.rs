//! AdamW over lists of tensors.

use kernels::ops::adamw::{Slot, Step, apply_mask, reference, step};
use kernels::ops::grad_norm::{self, Gradient, grad_norm};
use kernels::{Buffer, Category, DType, Device};

use crate::grad_norm::{kept, mask};
use crate::support::{assert_close, download, gpu, random, upload};

const CLIP: f64 = 3.0;

fn numbers(t: usize) -> Step {
    Step { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: t }
}

fn plain(values: &Buffer) -> Gradient<'_> {
    Gradient { values, mask: None }
}

/// A step with clipped gradients.
fn clipped_step(device: &Device, slots: &mut [Slot<'_>], numbers: Step) {
    let gradients: Vec<_> = slots.iter().map(|slot| slot.grad).collect();
    let norm = grad_norm(device, &gradients, Some(CLIP)).unwrap();
    step(device, slots, numbers, &norm).unwrap();
}

/// One list, stepped; the buffers of w, m, v. Every other tensor is masked.
pub fn steps(device: &Device, sizes: &[usize], steps: usize) -> [Vec<Buffer>; 3] {
    let list = |seed: u64| -> Vec<Buffer> {
        sizes.iter().enumerate().map(|(i, n)| upload(device, DType::F32, &tensor(*n, seed + i as u64))).collect()
    };
    let mut w = list(0);
    let zeros = || -> Vec<Buffer> {
        sizes.iter().map(|n| device.zeros(Category::Optimizer, DType::F32, *n).unwrap()).collect()
    };
    let (mut m, mut v) = (zeros(), zeros());
    let masks: Vec<_> = sizes.iter().enumerate().map(|(i, n)| (i % 2 == 1).then(|| mask(device, *n))).collect();
    for t in 1..=steps {
        let g = list(1000 * t as u64);
        let grads = g.iter().zip(&masks).map(|(values, mask)| Gradient { values, mask: mask.as_ref() });
        let pairs = w.iter_mut().zip(grads).zip(m.iter_mut().zip(&mut v));
        let mut slots: Vec<Slot<'_>> = pairs.map(|((value, grad), (m, v))| Slot { value, grad, m, v }).collect();
        clipped_step(device, &mut slots, numbers(t));
    }
    [w, m, v]
}

/// The gradients of step t that count, clipped.
fn clipped(sizes: &[usize], t: usize) -> Vec<Vec<f64>> {
    let gradient = |(i, n): (usize, &usize)| {
        let g = tensor(*n, 1000 * t as u64 + i as u64);
        if i % 2 == 1 { kept(&g, 0.0) } else { g }
    };
    let grads: Vec<Vec<f64>> = sizes.iter().enumerate().map(gradient).collect();
    let f32s: Vec<Vec<f32>> = grads.iter().map(|g| g.iter().map(|x| *x as f32).collect()).collect();
    let scale = (CLIP / (grad_norm::reference::grad_norm(&f32s) + 1e-6)).min(1.0);
    grads.into_iter().map(|g| g.into_iter().map(|x| scale * x).collect()).collect()
}

fn tensor(len: usize, seed: u64) -> Vec<f64> {
    random(DType::F32, len, seed)
}

/// Each step adds about ten roundings of 2⁻²⁴ to numbers near 1, and an update of 1/100 that is within 2 ulp: three steps
/// of them stay below 3e-6.
#[test]
#[ignore = "needs a GPU"]
fn gpu_steps_equal_the_reference_for_lists_of_any_length() {
    // A chunk is 4,096 elements, a vector 4. The longest masked tensor has three chunks.
    for sizes in [&[][..], &[0, 1, 2, 3], &[5, 4096, 0, 4097, 7], &[12_291, 63, 8192, 9003]] {
        let [w, m, v] = steps(&gpu(), sizes, 3);
        let grads = [1, 2, 3].map(|t| clipped(sizes, t));
        for (i, len) in sizes.iter().enumerate() {
            let mut state: Vec<_> = tensor(*len, i as u64).into_iter().map(|w| (w, 0.0, 0.0)).collect();
            for (t, grads) in (1..).zip(&grads) {
                for (state, g) in state.iter_mut().zip(&grads[i]) {
                    *state = reference::step(state.0, *g, state.1, state.2, &numbers(t));
                }
            }
            let of = |pick: fn(&(f64, f64, f64)) -> f64| state.iter().map(pick).collect::<Vec<_>>();
            assert_close("w", &w[i], &of(|s| s.0), 3e-6);
            assert_close("m", &m[i], &of(|s| s.1), 3e-6);
            assert_close("v", &v[i], &of(|s| s.2), 3e-6);
        }
    }
}

/// The root and the quotient are approximate, but not where v is too small for a normal f32: a gradient of 1e-20 has a
/// square of 1e-40, and moves w by η/(1 + ε/|g|) all the same.
#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_whose_squares_are_subnormal_move_the_weights() {
    let device = gpu();
    let [mut w, mut m, mut v] = [0, 0, 0].map(|_| device.zeros(Category::Optimizer, DType::F32, 4).unwrap());
    let g = upload(&device, DType::F32, &[1e-20, -1e-20, 0.0, 1.0]);
    let numbers = Step { eps: 1e-20, weight_decay: 0.0, ..numbers(1) };
    clipped_step(&device, &mut [Slot { value: &mut w, grad: plain(&g), m: &mut m, v: &mut v }], numbers);
    // (1 − β₂)·1e-40 = 1e-43 is 71 times the smallest subnormal number: v is right to 1 %, its root to half of that.
    assert_close("w", &w, &[-0.005, 0.005, 0.0, -0.01], 1e-4);
}

/// And the host hears of it only when it asks.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_gradient_that_is_not_finite_changes_nothing() {
    let device = gpu();
    for bad in [f64::NAN, f64::NEG_INFINITY] {
        let values = [tensor(4100, 1), tensor(5, 2)];
        let mut state = [0, 1, 0, 1, 0, 1].map(|i| upload(&device, DType::F32, &values[i]));
        let grads =
            [upload(&device, DType::F32, &vec![0.5; 4100]), upload(&device, DType::F32, &[0.0, 1.0, bad, 2.0, 3.0])];
        let [w0, w1, m0, m1, v0, v1] = &mut state;
        let mut slots = [
            Slot { value: w0, grad: plain(&grads[0]), m: m0, v: v0 },
            Slot { value: w1, grad: plain(&grads[1]), m: m1, v: v1 },
        ];
        let norm = grad_norm(&device, &slots.each_ref().map(|slot| slot.grad), Some(CLIP)).unwrap();
        step(&device, &mut slots, numbers(1), &norm).unwrap();
        assert_eq!(norm.read().unwrap().first_non_finite, Some(1));
        state.iter().enumerate().for_each(|(i, buffer)| assert_eq!(download(buffer), values[i % 2]));
    }
}

/// Random numbers, masked.
pub fn masked(device: &Device, len: usize) -> Buffer {
    let mut values = upload(device, DType::F32, &tensor(len, 5));
    apply_mask(&mut values, &mask(device, len)).unwrap();
    values
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_mask_zeroes_what_it_does_not_keep() {
    for len in [0, 1, 63, 64, 65, 1027] {
        assert_close("masked", &masked(&gpu(), len), &kept(&tensor(len, 5), 0.0), 0.0);
    }
}
