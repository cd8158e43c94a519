//! Activation functions and the gate.

use kernels::ops::activation::{
    Activation, backward, forward, reference, relu, relu_backward, silu_gate, silu_gate_backward,
};
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, download, gpu, random, round, upload};

pub const KINDS: [Activation; 4] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
/// Around vectors, words of a bitmap, and a block's 2,048 elements of 16 bits.
const LENGTHS: [usize; 9] = [0, 1, 7, 8, 60, 64, 65, 131, 4100];

/// Numbers in [−9, 9) that are not at ReLU's kink.
fn inputs(dtype: DType, len: usize, seed: u64) -> Vec<f64> {
    let far = |x: f64| if x.abs() < 1e-3 { 0.5 } else { round(dtype, 9.0 * x) };
    random(dtype, len, seed).into_iter().map(far).collect()
}

/// f64 central differences with a step of 1e-5: the derivative to some 1e-9.
pub fn slope(kind: Activation, x: f64) -> f64 {
    (reference::forward(kind, x + 1e-5) - reference::forward(kind, x - 1e-5)) / 2e-5
}

fn map(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

/// ReLU both ways, GELU both ways, the gate both ways.
pub fn pass(device: &Device, dtype: DType, len: usize) -> Vec<Buffer> {
    let [x, up, dy] = [1, 2, 3].map(|seed| upload(device, dtype, &inputs(dtype, len, seed)));
    let copy = |buffer: &Buffer| buffer.duplicate(buffer.category()).unwrap();
    let (rectified, signs) = relu(copy(&x), true).unwrap();
    let signs = signs.unwrap();
    let relu_dx = relu_backward(copy(&dy), &signs).unwrap();
    let y = forward(Activation::Gelu, &x).unwrap();
    let dx = backward(Activation::Gelu, copy(&dy), &x).unwrap();
    let gated = silu_gate(&x, &up).unwrap();
    let (d_gate, d_up) = silu_gate_backward(dy, &x, &up).unwrap();
    vec![rectified, signs, relu_dx, y, dx, gated, d_gate, d_up]
}

/// Exponential and quotient are within 2 ulp, 2.4e-7; the exponential's argument, up to 9·log₂e, rounds by 4e-7. Where they
/// count, σ·(1 − σ)·|x| is below 1/4, and Φ's polynomial errs by 7.5e-8 times |x| ≤ 9: below 1e-6, and 9 times that with
/// |dy| ≤ 9.
#[test]
#[ignore = "needs a GPU"]
fn gpu_values_and_slopes_equal_the_reference() {
    let device = gpu();
    for dtype in TYPES {
        for len in LENGTHS {
            let (x, dy) = (inputs(dtype, len, 1), inputs(dtype, len, 3));
            for kind in KINDS {
                let what = format!("{kind:?} of {len} {dtype}");
                let buffer = upload(&device, dtype, &x);
                let want: Vec<f64> = x.iter().map(|x| reference::forward(kind, *x)).collect();
                assert_close(&what, &forward(kind, &buffer).unwrap(), &want, 1e-6);
                let dx = backward(kind, upload(&device, dtype, &dy), &buffer).unwrap();
                assert_close(&what, &dx, &map(&x, &dy, |x, dy| dy * slope(kind, x)), 1e-5);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_relu_in_place_keeps_one_bit_an_element() {
    let device = gpu();
    for dtype in TYPES {
        for len in LENGTHS {
            let (x, dy) = (inputs(dtype, len, 1), inputs(dtype, len, 3));
            let (y, signs) = relu(upload(&device, dtype, &x), true).unwrap();
            assert_close("y", &y, &map(&x, &x, |x, _| x.max(0.0)), 0.0);
            let signs = signs.unwrap();
            let mut words = vec![0u64; len.div_ceil(64)];
            x.iter().enumerate().for_each(|(i, x)| words[i / 64] |= u64::from(*x > 0.0) << (i % 64));
            assert_eq!(signs.download::<u64>().unwrap(), words, "{len} {dtype}");
            let dx = relu_backward(upload(&device, dtype, &dy), &signs).unwrap();
            assert_close("dx", &dx, &map(&x, &dy, |x, dy| if x > 0.0 { dy } else { 0.0 }), 0.0);
            assert!(relu(upload(&device, dtype, &x), false).unwrap().1.is_none());
        }
    }
}

/// As for the functions, times |up| ≤ 9 and |dy| ≤ 9.
#[test]
#[ignore = "needs a GPU"]
fn gpu_the_gate_and_its_gradients_equal_the_reference() {
    let device = gpu();
    let silu = |x: f64| reference::forward(Activation::Silu, x);
    for dtype in TYPES {
        for len in LENGTHS {
            let [gate, up, dy] = [1, 2, 3].map(|seed| inputs(dtype, len, seed));
            let [g, u, d] = [&gate, &up, &dy].map(|t| upload(&device, dtype, t));
            let want = map(&gate, &up, |g, u| silu(g) * u);
            assert_close("y", &silu_gate(&g, &u).unwrap(), &want, 1e-5);
            let (d_gate, d_up) = silu_gate_backward(d, &g, &u).unwrap();
            let upstream = map(&dy, &up, |dy, u| dy * u);
            assert_close("dgate", &d_gate, &map(&gate, &upstream, |g, d| d * slope(Activation::Silu, g)), 1e-4);
            assert_close("dup", &d_up, &map(&gate, &dy, |g, dy| dy * silu(g)), 1e-5);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_nan_shows_and_far_out_nothing_overflows() {
    let device = gpu();
    let (y, signs) = relu(upload(&device, DType::F32, &[f64::NAN, -1.0, -0.0, 2.0]), true).unwrap();
    let y = download(&y);
    assert!(y[0].is_nan());
    assert_eq!(y[1..], [0.0, 0.0, 2.0]);
    let dx = relu_backward(upload(&device, DType::F32, &[3.0; 4]), &signs.unwrap()).unwrap();
    assert_eq!(download(&dx), [3.0, 0.0, 0.0, 3.0]);
    let x = upload(&device, DType::F32, &[-1e30, -200.0, 200.0, 1e30]);
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        let y = download(&forward(kind, &x).unwrap());
        assert!(y[..2].iter().all(|y| y.abs() < 1e-6), "{kind:?} {y:?}");
        assert_eq!(y[2..], [200.0, f64::from(1e30f32)], "{kind:?}");
    }
}
