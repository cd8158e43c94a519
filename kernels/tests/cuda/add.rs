//! Sums of activations.

use kernels::ops::add::add_assign;
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, gpu, random, upload};

pub fn pass(device: &Device, dtype: DType, len: usize) -> Buffer {
    let [mut sum, x] = [1, 2].map(|seed| upload(device, dtype, &random(dtype, len, seed)));
    add_assign(&mut sum, &x).unwrap();
    sum
}

/// A sum of two numbers of 24 bits rounds in f32, by 2⁻²⁴ of a sum below 2, before it rounds to its type.
#[test]
#[ignore = "needs a GPU"]
fn gpu_sums_equal_the_reference_in_every_type_and_length() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for len in [0, 1, 3, 4, 7, 8, 9, 2047, 2048, 4100] {
            let [a, b] = [1, 2].map(|seed| random(dtype, len, seed));
            let want: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_close(&format!("{len} {dtype}"), &pass(&gpu(), dtype, len), &want, 1.2e-7);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_types_that_differ_are_named() {
    let device = gpu();
    let mut sum = upload(&device, DType::BF16, &[0.0; 4]);
    let error = add_assign(&mut sum, &upload(&device, DType::F16, &[0.0; 4])).unwrap_err().to_string();
    assert_eq!(error, "add: x is f16, expected bf16");
}
