//! The gradient of a linear layer's bias.

use kernels::ops::linear::bias_gradient;
use kernels::{Buffer, DType, Device};

use crate::support::{assert_sums, download, gpu, random, upload};

/// db, added to ones.
pub fn pass(device: &Device, dtype: DType, rows: usize, cols: usize) -> Buffer {
    let dy = upload(device, dtype, &random(dtype, rows * cols, 1));
    let mut d_bias = upload(device, DType::F32, &vec![1.0; cols]);
    bias_gradient(device, &dy, rows, &mut d_bias).unwrap();
    d_bias
}

/// A thread adds 8 rows and a block 8 warps; then 8 threads at most 2 of the 11 blocks, whose sums are added to what was
/// there: 8 + 8 + 2 + 8 + 1 roundings.
#[test]
#[ignore = "needs a GPU"]
fn gpu_sums_over_rows_equal_the_reference_in_every_type_and_shape() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, cols) in [(1, 1), (5, 7), (64, 8), (65, 264), (130, 520), (200, 33), (700, 40)] {
            let (mut want, mut magnitudes) = (vec![1.0; cols], vec![1.0; cols]);
            for dy in random(dtype, rows * cols, 1).chunks(cols) {
                want.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                magnitudes.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy.abs());
            }
            let what = format!("{rows}×{cols} {dtype}");
            assert_sums(&what, &pass(&gpu(), dtype, rows, cols), &want, &magnitudes, 27);
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
