//! The gradient of a linear layer's bias.

use kernels::ops::linear::bias_gradient;
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, download, gpu, random, upload};

/// db, added to ones.
pub fn pass(device: &Device, dtype: DType, rows: usize, cols: usize) -> Buffer {
    let dy = upload(device, dtype, &random(dtype, rows * cols, 1));
    let mut d_bias = upload(device, DType::F32, &vec![1.0; cols]);
    bias_gradient(device, &dy, rows, &mut d_bias).unwrap();
    d_bias
}

/// A sum of n numbers below 1 in parts of at most 64 has some 20 roundings of 2⁻²⁴, each of a sum that √n bounds in fact
/// and n for certain: 130·20·2⁻²⁴ is below 2e-4, and 2e-5 what numbers of either sign come to.
#[test]
#[ignore = "needs a GPU"]
fn gpu_sums_over_rows_equal_the_reference_in_every_type_and_shape() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, cols) in [(1, 1), (5, 7), (64, 8), (65, 264), (130, 520), (200, 33), (700, 40)] {
            let mut want = vec![1.0; cols];
            for dy in random(dtype, rows * cols, 1).chunks(cols) {
                want.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            }
            assert_close(&format!("{rows}×{cols} {dtype}"), &pass(&gpu(), dtype, rows, cols), &want, 2e-5);
        }
    }
    assert_eq!(download(&pass(&gpu(), DType::BF16, 0, 8)), [1.0; 8]);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_sums_have_the_same_bits_every_time() {
    let run = || download(&pass(&gpu(), DType::BF16, 300, 72));
    assert_eq!(run(), run());
}
