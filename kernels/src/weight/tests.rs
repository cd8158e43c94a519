use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::device::{Backend, Category, Device};
use crate::ops::pack;
use crate::ops::pack_two_four::pack_two_four;
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

/// Integers that `dtype` holds, and a mask of at most two of every four.
fn two_four(rows: usize, cols: usize, seed: u64) -> (Vec<f32>, Vec<bool>) {
    let mut state = seed | 1;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as usize
    };
    let values = (0..rows * cols).map(|_| (random() % 100) as f32 + 1.0).collect();
    let mut keep = vec![false; rows * cols];
    for group in keep.chunks_mut(4) {
        group[random() % 4] = true;
        group[random() % 4] = true;
    }
    (values, keep)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_2_4_weight_reads_back_exactly_what_the_mask_keeps(
        rows in 1usize..70, groups in 1usize..30, half: bool, seed: u64,
    ) {
        let (dtype, cols) = (if half { DType::F16 } else { DType::BF16 }, groups * 4);
        let (values, keep) = two_four(rows, cols, seed);
        let device = Device::cpu();
        let (dense, mask) = (source(&device, dtype, &values), device.upload(Category::Masks, &mask_of(&keep)).unwrap());
        let packed = FrozenWeight::TwoFour(pack_two_four(&device, &dense, rows, cols, &mask).unwrap());
        let want: Vec<f32> = values.iter().zip(&keep).map(|(x, keep)| if *keep { *x } else { 0.0 }).collect();
        prop_assert_eq!(packed.to_f32().unwrap(), want.clone());
        prop_assert_eq!(packed.to_bytes().unwrap(), source(&device, dtype, &want).bytes().to_vec());
        prop_assert_eq!(packed.stored(), rows * cols / 2);
        // Two of each group count as kept, those of the mask among them.
        let stored = packed.mask().unwrap().unwrap();
        for (group, keep) in keep.chunks(4).enumerate() {
            let of_group = stored[group / 16] >> (group % 16 * 4) & 15;
            prop_assert_eq!(of_group.count_ones(), 2);
            prop_assert_eq!(of_group & mask_of(keep)[0], mask_of(keep)[0]);
        }

        // Meta accounts the same bytes without a mask; on a GPU's behalf only, and only for two of four.
        let meta = |backend, n| {
            let meta = Device::meta(backend, 1);
            let absent = meta.alloc(Category::Weights, dtype, rows * cols).unwrap();
            let no_mask = meta.alloc(Category::Masks, DType::U64, mask.len()).unwrap();
            FrozenWeight::pruned_n_of_m(&meta, &absent, rows, cols, &no_mask, n, 4).unwrap()
        };
        let planned = meta(Backend::Cuda, 2);
        prop_assert_eq!(planned.size_bytes(), packed.size_bytes());
        prop_assert_eq!(planned.size_bytes(), TwoFourWeight::bytes_for(rows, cols));
        prop_assert!(matches!(meta(Backend::Cuda, 1), FrozenWeight::Blocks(_)));
        prop_assert!(matches!(meta(Backend::Cpu, 2), FrozenWeight::Sparse(_)));
    }
}

/// The layout of the module's documentation, value by value, and what `mma.sp` makes of it: PTX ISA, "Matrix fragments for
/// sparse mma.m16n8k32".
#[test]
fn a_2_4_weight_lies_as_documented() {
    let (rows, cols) = (50, 44);
    let (values, keep) = two_four(rows, cols, 5);
    let device = Device::cpu();
    let mask = device.upload(Category::Masks, &mask_of(&keep)).unwrap();
    let packed = pack_two_four(&device, &source(&device, DType::F16, &values), rows, cols, &mask).unwrap();
    let (stored, places) = (packed.values().as_slice::<f16>(), packed.places().as_slice::<u32>());
    let mut read = vec![0.0; 64 * 64];
    for tile in 0..4 {
        for (fragment, lane, register) in (0..256).map(|i| (i / 128, i / 4 % 32, i % 4)) {
            let row = tile / 2 * 32 + fragment * 16 + lane / 4 + register % 2 * 8;
            let group = tile % 2 * 32 + lane % 4 * 4 + register / 2 * 16;
            // Selector 0 takes the first two lanes of each four, selector 1 the others, the first for columns 0 to 15.
            let word = places[tile * 32 + lane / 4 * 4 + fragment * 2 + register / 2] >> (register % 2 * 16);
            let of_group = (word >> (lane % 4 * 4) & 15) as usize;
            assert!(of_group % 4 < of_group / 4, "places ascend");
            for (half, place) in [of_group % 4, of_group / 4].into_iter().enumerate() {
                let value = stored[tile * 512 + ((fragment * 32 + lane) * 4 + register) * 2 + half];
                read[row * 64 + group + place] = value.to_f32();
            }
        }
    }
    for (i, x) in read.into_iter().enumerate() {
        let (row, col) = (i / 64, i % 64);
        let kept = row < rows && col < cols && keep[row * cols + col];
        assert_eq!(x, if kept { values[row * cols + col] } else { 0.0 });
    }
}

/// Each weight of OPT-30B's layers, and one with edges in both directions.
#[test]
fn a_2_4_weight_takes_nine_bits_an_entry() {
    for (rows, cols) in [(7168, 7168), (28672, 7168), (7168, 28672)] {
        assert_eq!(TwoFourWeight::bytes_for(rows, cols) * 8, rows * cols * 9);
    }
    let bits = TwoFourWeight::bytes_for(4100, 11012) as f64 * 8.0 / (4100.0 * 11012.0);
    assert!(bits <= 9.2, "{bits} bits an entry");
}

#[test]
fn a_mask_that_keeps_three_of_four_is_refused_by_place() {
    let device = Device::cpu();
    let dense = source(&device, DType::BF16, &[1.0; 24]);
    let mask = device.upload(Category::Masks, &[0x7_3133u64 << 4 | 3]).unwrap();
    let error = pack_two_four(&device, &dense, 2, 12, &mask).unwrap_err().to_string();
    assert_eq!(error, "pack_two_four: the mask keeps more than two of row 1, columns 8 to 11");
    let error = FrozenWeight::pruned_n_of_m(&device, &dense, 4, 6, &mask, 2, 4).unwrap_err().to_string();
    assert_eq!(error, "pack: rows of 6 entries are not whole groups of 4");
}
