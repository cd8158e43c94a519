//! The norm of lists of gradients.

use kernels::ops::grad_norm::{Gradient, Reading, grad_norm, reference};
use kernels::{Buffer, Category, DType, Device};

use crate::support::{gpu, random, upload};

/// Word i of a mask; no two are the same, for the factor is odd.
fn word(i: usize) -> u64 {
    0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1)
}

pub fn mask(device: &Device, len: usize) -> Buffer {
    device.upload(Category::Masks, &(0..len.div_ceil(64)).map(word).collect::<Vec<_>>()).unwrap()
}

/// What [`mask`] keeps of `values`; the rest is `else_`.
pub fn kept(values: &[f64], else_: f64) -> Vec<f64> {
    let keep = |(i, x): (usize, &f64)| if word(i / 64) >> (i % 64) & 1 == 1 { *x } else { else_ };
    values.iter().enumerate().map(keep).collect()
}

fn plain(values: &Buffer) -> Gradient<'_> {
    Gradient { values, mask: None }
}

fn read(device: &Device, gradients: &[Gradient<'_>]) -> Reading {
    grad_norm(device, gradients, Some(1.0)).unwrap().read().unwrap()
}

/// Squares are exact in f64, and some 25,000 additions of them round by 2⁻⁵³ each: 3e-12 of the sum.
#[test]
#[ignore = "needs a GPU"]
fn gpu_it_is_the_norm_of_all_tensors_together() {
    let device = gpu();
    // A chunk is 4,096 elements, a vector 4; the longest masked tensor has three chunks. Every other tensor is masked, over what is not finite.
    for sizes in [&[][..], &[0, 1, 2, 3], &[5, 4096, 0, 4097, 7], &[12_291, 63, 4100, 9003]] {
        let values: Vec<_> = sizes.iter().enumerate().map(|(i, n)| random(DType::F32, *n, i as u64)).collect();
        let dirty = |(i, v): (usize, &Vec<f64>)| {
            upload(&device, DType::F32, &if i % 2 == 1 { kept(v, f64::NAN) } else { v.clone() })
        };
        let buffers: Vec<Buffer> = values.iter().enumerate().map(dirty).collect();
        let masks: Vec<_> = sizes.iter().enumerate().map(|(i, n)| (i % 2 == 1).then(|| mask(&device, *n))).collect();
        let gradients: Vec<_> =
            buffers.iter().zip(&masks).map(|(values, mask)| Gradient { values, mask: mask.as_ref() }).collect();
        let clean = |(i, v): (usize, &Vec<f64>)| if i % 2 == 1 { kept(v, 0.0) } else { v.clone() };
        let clean: Vec<Vec<f32>> =
            values.iter().enumerate().map(|v| clean(v).iter().map(|x| *x as f32).collect()).collect();
        let want = reference::grad_norm(&clean);
        let got = read(&device, &gradients);
        assert!((got.norm - want).abs() <= 1e-11 * want, "{} {want}", got.norm);
        assert_eq!(got.first_non_finite, None);
    }
}

/// More chunks than the block that adds them up has threads.
#[test]
#[ignore = "needs a GPU"]
fn gpu_many_small_tensors_are_all_seen() {
    let device = gpu();
    let buffers: Vec<Buffer> =
        (0..1100).map(|i| upload(&device, DType::F32, &[if i < 1090 { 3.0 } else { 4.0 }])).collect();
    let mut gradients: Vec<_> = buffers.iter().map(plain).collect();
    let want = (1090.0 * 9.0 + 10.0 * 16.0f64).sqrt();
    assert!((read(&device, &gradients).norm - want).abs() <= 1e-12 * want);
    let bad = upload(&device, DType::F32, &[f64::NAN]);
    gradients[1095] = plain(&bad);
    assert_eq!(read(&device, &gradients).first_non_finite, Some(1095));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_first_tensor_that_is_not_finite_is_named() {
    let device = gpu();
    let good = upload(&device, DType::F32, &vec![1.0; 5000]);
    let mut values = vec![1.0; 9000];
    values[8999] = f64::NAN;
    let bad = upload(&device, DType::F32, &values);
    let worse = upload(&device, DType::F32, &[f64::INFINITY]);
    let [good, bad, worse] = [&good, &bad, &worse].map(plain);
    assert_eq!(read(&device, &[good, bad, worse]).first_non_finite, Some(1));
    assert_eq!(read(&device, &[good, good, worse, bad]).first_non_finite, Some(2));
    // Squares of finite f32 numbers do not overflow in f64, and those of tiny ones do not vanish.
    for x in [f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE)] {
        let got = read(&device, &[plain(&upload(&device, DType::F32, &[x; 4]))]);
        assert_eq!(got, Reading { norm: 2.0 * x, first_non_finite: None });
    }
}
