//! Packing 2:4: bit for bit what the host packs.

use half::{bf16, f16};
use kernels::ops::pack_two_four::pack_two_four;
use kernels::weight::TwoFourWeight;
use kernels::{Buffer, Category, DType, Device};

use crate::support::{gpu, random, upload};

/// A bitmap of two of every four bits, now and then of one or none.
fn mask(len: usize) -> Vec<u64> {
    let mut words = vec![0u64; len.div_ceil(64)];
    for (group, draw) in random(DType::F32, len, 7).chunks(4).enumerate() {
        let place = |x: f64| (x * 1024.0).rem_euclid(4.0) as usize;
        if draw[2] < 0.95 {
            for x in [draw[0], draw[1]] {
                words[group / 16] |= 1 << (group % 16 * 4 + place(x));
            }
        }
    }
    words
}

fn packed(device: &Device, dtype: DType, rows: usize, cols: usize) -> TwoFourWeight {
    let source = upload(device, dtype, &random(dtype, rows * cols, 5));
    let mask = device.upload(Category::Masks, &mask(rows * cols)).unwrap();
    pack_two_four(device, &source, rows, cols, &mask).unwrap()
}

/// For accounts and counts.
pub fn pass(device: &Device, rows: usize, cols: usize) -> TwoFourWeight {
    packed(device, DType::BF16, rows, cols)
}

fn values(buffer: &Buffer) -> Vec<u16> {
    match buffer.dtype() {
        DType::F16 => buffer.download::<f16>().unwrap().into_iter().map(f16::to_bits).collect(),
        _ => buffer.download::<bf16>().unwrap().into_iter().map(bf16::to_bits).collect(),
    }
}

/// Tiles are 32×32, a block has eight beside each other. Rows begin at any group of a word.
#[test]
#[ignore = "needs a GPU"]
fn gpu_packs_two_of_four_as_the_host_does() {
    let host = Device::cpu();
    for (rows, cols) in [(1, 4), (32, 32), (37, 72), (9, 1100), (70, 2056), (33, 1024), (100, 44), (0, 8), (8, 0)] {
        for dtype in [DType::BF16, DType::F16] {
            let (got, want) = (packed(&gpu(), dtype, rows, cols), packed(&host, dtype, rows, cols));
            let what = format!("{rows}×{cols} {dtype}");
            assert!(got.places().download::<u32>().unwrap() == want.places().as_slice::<u32>(), "places of {what}");
            assert!(values(got.values()) == values(want.values()), "values of {what}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_first_group_that_keeps_three_is_named() {
    let device = gpu();
    let (rows, cols) = (70, 1100);
    let source = upload(&device, DType::BF16, &random(DType::BF16, rows * cols, 5));
    let mut words = mask(rows * cols);
    for entry in [69 * cols + 1096, 40 * cols + 500, 41 * cols] {
        words[entry / 64] |= 7 << (entry % 64);
    }
    let mask = device.upload(Category::Masks, &words).unwrap();
    let error = pack_two_four(&device, &source, rows, cols, &mask).unwrap_err().to_string();
    assert_eq!(error, "pack_two_four: the mask keeps more than two of row 40, columns 500 to 503");
}
