//! Packing: bit for bit what the host packs.

use half::{bf16, f16};
use kernels::ops::pack::pack;
use kernels::weight::BlockWeight;
use kernels::{Backend, Buffer, Category, DType, Device};

use crate::support::{gpu, random, upload};

const TYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// A bitmap of which about `percent` of the bits are set, none past `len`; and their number.
fn mask(len: usize, percent: u64) -> (Vec<u64>, usize) {
    let draw = random(DType::F32, len, percent);
    let mut words = vec![0u64; len.div_ceil(64)];
    for (i, _) in draw.iter().enumerate().filter(|(_, x)| **x < percent as f64 / 50.0 - 1.0) {
        words[i / 64] |= 1 << (i % 64);
    }
    let kept = words.iter().map(|word| word.count_ones() as usize).sum();
    (words, kept)
}

fn packed(device: &Device, dtype: DType, rows: usize, cols: usize, mask: &[u64], kept: usize) -> BlockWeight {
    let source = upload(device, dtype, &random(dtype, rows * cols, 5));
    let mask = device.upload(Category::Masks, mask).unwrap();
    pack(device, &source, rows, cols, &mask, kept).unwrap()
}

/// One matrix, half of it kept, for accounts.
pub fn pass(device: &Device, dtype: DType, rows: usize, cols: usize) -> BlockWeight {
    let (words, kept) = mask(rows * cols, 50);
    packed(device, dtype, rows, cols, &words, kept)
}

fn values(buffer: &Buffer) -> Vec<u32> {
    match buffer.dtype() {
        DType::F16 => buffer.download::<f16>().unwrap().into_iter().map(|x| x.to_bits().into()).collect(),
        DType::BF16 => buffer.download::<bf16>().unwrap().into_iter().map(|x| x.to_bits().into()).collect(),
        _ => buffer.download::<f32>().unwrap().into_iter().map(f32::to_bits).collect(),
    }
}

/// Tiles are 32×32; a block makes masks of 32 tiles beside each other, a warp packs one, a block eight. Rows begin in the
/// middle of words and vectors, or do not; the starts of 4,100 tiles take two rounds.
#[test]
#[ignore = "needs a GPU"]
fn gpu_packs_what_the_host_packs() {
    let host = Device::cpu();
    let shapes = [(1, 1), (32, 32), (37, 70), (9, 1100), (70, 2056), (33, 1024), (100, 40), (4100 * 32, 1)];
    for (at, (rows, cols)) in shapes.into_iter().enumerate() {
        for percent in [0, 3, 50, 100] {
            let (words, kept) = mask(rows * cols, percent);
            let dtype = TYPES[(at + percent as usize) % 3];
            let got = packed(&gpu(), dtype, rows, cols, &words, kept);
            let want = packed(&host, dtype, rows, cols, &words, kept);
            let what = format!("{rows}×{cols} {dtype}, {percent} % kept");
            assert!(got.bits().download::<u64>().unwrap() == want.bits().as_slice::<u64>(), "bits of {what}");
            assert!(got.starts().download::<u32>().unwrap() == want.starts().as_slice::<u32>(), "starts of {what}");
            assert!(values(got.values()) == values(want.values()), "values of {what}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_mask_that_keeps_another_number_is_refused() {
    let device = gpu();
    let (words, kept) = mask(70 * 40, 50);
    let source = upload(&device, DType::BF16, &random(DType::BF16, 70 * 40, 5));
    let mask = device.upload(Category::Masks, &words).unwrap();
    for announced in [kept - 1, kept + 1, 0] {
        let error = pack(&device, &source, 70, 40, &mask, announced).unwrap_err().to_string();
        assert!(error.contains(&format!("keeps {kept} entries, {announced} were announced")), "{error}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_packing_is_accounted_as_meta_plans_it() {
    let peak = |device: Device| {
        let weight = pass(&device, DType::BF16, 100, 72);
        drop(weight);
        device.memory().peak()
    };
    let meta = Device::meta(Backend::Cuda, 1);
    let (words, kept) = mask(100 * 72, 50);
    let source = meta.alloc(Category::Activations, DType::BF16, 100 * 72).unwrap();
    let mask = meta.alloc(Category::Masks, DType::U64, words.len()).unwrap();
    pack(&meta, &source, 100, 72, &mask, kept).unwrap();
    assert_eq!(peak(Device::cuda(0).unwrap()), meta.memory().peak());
}
