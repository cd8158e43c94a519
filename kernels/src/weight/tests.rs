use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::device::{Backend, Category};
use crate::simd::Isa;
use crate::spmm::Columns;

fn mask_of(keep: &[bool]) -> Vec<u64> {
    let mut words = vec![0u64; keep.len().div_ceil(64)];
    for (i, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
        words[i / 64] |= 1 << (i % 64);
    }
    words
}

fn source(device: &Device, dtype: DType, values: &[f32]) -> Buffer {
    match dtype {
        DType::F16 => {
            let v: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
            device.upload(Category::Weights, &v).unwrap()
        }
        DType::BF16 => {
            let v: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            device.upload(Category::Weights, &v).unwrap()
        }
        _ => device.upload(Category::Weights, values).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_pruned_weight_reads_back_exactly_what_the_mask_keeps(
        rows in 1usize..9, cols in 1usize..700, percent in 0u64..101, kind in 0usize..3, seed: u64,
    ) {
        let device = Device::cpu();
        let dtype = [DType::F32, DType::F16, DType::BF16][kind];
        let mut state = seed | 1;
        let mut random = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1); state >> 33 };
        // Small integers plus a half: exact in every element type, never zero.
        let values: Vec<f32> = (0..rows * cols).map(|_| (random() % 100) as f32 + 0.5).collect();
        let keep: Vec<bool> = (0..rows * cols).map(|_| random() % 100 < percent).collect();
        let kept = keep.iter().filter(|k| **k).count();
        let dense = source(&device, dtype, &values);
        let mask = device.upload(Category::Masks, &mask_of(&keep)).unwrap();
        let packed = FrozenWeight::pruned(&device, &dense, rows, cols, &mask, kept).unwrap();
        let want: Vec<f32> = values.iter().zip(&keep).map(|(x, keep)| if *keep { *x } else { 0.0 }).collect();
        prop_assert_eq!(packed.size_bytes(), SparseWeight::bytes_for(rows, cols, dtype, kept));
        let blocks = pack::pack(&device, &dense, rows, cols, &mask, kept).unwrap();
        prop_assert_eq!(blocks.size_bytes(), BlockWeight::bytes_for(rows, cols, dtype, kept));
        let blocks = FrozenWeight::Blocks(blocks);
        for packed in [&packed, &blocks] {
            prop_assert_eq!(packed.to_f32().unwrap(), want.clone());
            prop_assert_eq!(packed.to_bytes().unwrap(), source(&device, dtype, &want).bytes().to_vec());
            prop_assert_eq!(packed.zeros().unwrap(), rows * cols - kept);
            prop_assert_eq!(packed.mask().unwrap(), Some(mask_of(&keep)));
        }

        // Both operand forms, at any offset; `element` gives (row, column) of W for element (p, j) of the block.
        let w = WeightRef::Frozen(&packed);
        let (row, col) = (rows / 2, cols / 3);
        let (height, width) = ((rows - row).min(64), (cols - col).min(64));
        for isa in Isa::available() {
            let (mut block, mut spare) = (vec![f32::NAN; 64 * 64], vec![f32::NAN; 64 * 64]);
            w.straight().read(isa, row..row + height, col..col + width, &mut block, &mut spare);
            for j in 0..width {
                for p in 0..64 {
                    let x = if p < height { want[(row + p) * cols + col + j] } else { 0.0 };
                    prop_assert_eq!(block[j * 64 + p], x);
                }
            }
            w.transposed().read(isa, col..col + width, row..row + height, &mut block, &mut spare);
            for j in 0..height {
                for p in 0..64 {
                    let x = if p < width { want[(row + j) * cols + col + p] } else { 0.0 };
                    prop_assert_eq!(block[j * 64 + p], x);
                }
            }
        }

        // Meta accounts the same bytes from the count alone.
        for (backend, packed) in [(Backend::Cpu, &packed), (Backend::Cuda, &blocks)] {
            let meta = Device::meta(backend, 1);
            let absent = meta.alloc(Category::Weights, dtype, rows * cols).unwrap();
            let no_mask = meta.alloc(Category::Masks, DType::U64, mask.len()).unwrap();
            let planned = FrozenWeight::pruned(&meta, &absent, rows, cols, &no_mask, kept).unwrap();
            prop_assert_eq!(planned.size_bytes(), packed.size_bytes());
        }
    }
}

/// The layout of the module's documentation, entry by entry.
#[test]
fn blocks_lie_as_documented() {
    let (rows, cols) = (37, 70);
    let device = Device::cpu();
    let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    let keep: Vec<bool> = (0..rows * cols).map(|i| i * i % 7 < 3).collect();
    let kept = keep.iter().filter(|keep| **keep).count();
    let mask = device.upload(Category::Masks, &mask_of(&keep)).unwrap();
    let packed = pack::pack(&device, &source(&device, DType::F32, &values), rows, cols, &mask, kept).unwrap();
    let (mut bytes, mut starts, mut packed_values) = (vec![0u8; 2 * 3 * 128], vec![0u32], Vec::new());
    for tile in 0..2 * 3 {
        for block in 0..16 {
            for bit in 0..64 {
                let row = tile / 3 * 32 + block / 4 * 8 + bit / 8;
                let col = tile % 3 * 32 + block % 4 * 8 + bit % 8;
                if row < rows && col < cols && keep[row * cols + col] {
                    bytes[128 * tile + 8 * block + bit / 8] |= 1 << (bit % 8);
                    packed_values.push(values[row * cols + col]);
                }
            }
        }
        starts.push(packed_values.len() as u32);
    }
    assert_eq!(packed.bits().bytes(), bytes);
    assert_eq!(packed.starts().as_slice::<u32>(), starts);
    assert_eq!(packed.values().f32(), packed_values);
}

/// Each weight of OPT-30B's layers, and one with edges in both directions.
#[test]
fn half_of_a_16_bit_weight_takes_nine_and_a_thirtieth_bits_an_entry_in_blocks() {
    for (rows, cols) in [(7168, 7168), (28672, 7168), (7168, 28672), (4100, 11008)] {
        let bytes = BlockWeight::bytes_for(rows, cols, DType::BF16, rows * cols / 2);
        let bits = bytes as f64 * 8.0 / (rows * cols) as f64;
        assert!(bits <= 9.2, "{rows}×{cols}: {bits} bits an entry");
    }
    let bytes = BlockWeight::bytes_for(1024, 4096, DType::F16, 1024 * 4096 / 2);
    assert_eq!(bytes - 4, 1024 * 4096 / 8 * 289 / 32, "9 + 1/32 bits an entry, and the number of values");
}

#[test]
fn half_of_an_f16_weight_takes_nine_and_an_eighth_bits_an_entry() {
    let bytes = SparseWeight::bytes_for(1024, 4096, DType::F16, 1024 * 4096 / 2);
    assert_eq!(bytes as f64 * 8.0 / (1024.0 * 4096.0), 9.125);
}

#[test]
fn a_mask_of_the_wrong_length_or_count_is_refused() {
    let device = Device::cpu();
    let dense = source(&device, DType::F32, &[1.0; 128]);
    let short = device.upload(Category::Masks, &[u64::MAX]).unwrap();
    assert!(FrozenWeight::pruned(&device, &dense, 2, 64, &short, 64).unwrap_err().to_string().contains("mask"));
    let mask = device.upload(Category::Masks, &[1u64, 1]).unwrap();
    let error = FrozenWeight::pruned(&device, &dense, 2, 64, &mask, 3).unwrap_err().to_string();
    assert!(error.contains("keeps 2 entries, 3 were announced"), "{error}");
}
