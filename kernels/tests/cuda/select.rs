//! Selection: masks equal those by sorting, whatever the element type.

use half::{bf16, f16};
use kernels::ops::select::{
    Selection, Threshold, count_kept, keep_largest, keep_largest_of_rows, keep_n_of_m, reference,
};
use kernels::{Buffer, Category, DType, Device};

use crate::support::{gpu, random, round, upload};

const TYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Entries of which every sixteenth is one of a few values, zeros of both signs among them: ties everywhere.
fn entries(dtype: DType, len: usize, seed: u64) -> Vec<f64> {
    let mut entries = random(dtype, len, seed);
    for (i, entry) in entries.iter_mut().enumerate().filter(|(i, _)| i % 16 == 3) {
        *entry = [0.5, -0.5, 0.0, -0.0, 0.25, round(dtype, 1e-4)][i / 16 % 6];
    }
    entries
}

fn narrow(entries: &[f64]) -> Vec<f32> {
    entries.iter().map(|x| *x as f32).collect()
}

/// The mask's bits; those past the end are clear.
fn bits(mask: &Buffer, len: usize) -> Vec<bool> {
    let words = mask.download::<u64>().unwrap();
    assert_eq!(words.len(), len.div_ceil(64));
    let bits: Vec<bool> = (0..64 * words.len()).map(|i| words[i / 64] >> (i % 64) & 1 == 1).collect();
    assert!(bits[len..].iter().all(|bit| !bit));
    bits[..len].to_vec()
}

fn mask_of(selection: &Selection, len: usize) -> Vec<bool> {
    assert_eq!(selection.first_unusable().unwrap(), None);
    bits(&selection.mask, len)
}

/// One mask of each kind, for accounts.
pub fn pass(device: &Device, dtype: DType, rows: usize, cols: usize) -> Vec<Buffer> {
    let entries = upload(device, dtype, &entries(dtype, rows * cols, 1));
    let masks = [
        keep_largest(&entries, rows * cols / 2).unwrap(),
        keep_largest_of_rows(&entries, cols, cols / 2).unwrap(),
        keep_n_of_m(&entries, cols, 2, 4).unwrap(),
        keep_n_of_m(&entries, cols, 4, 8).unwrap(),
        keep_n_of_m(&entries, cols, 5, 16).unwrap(),
    ];
    let mut buffers: Vec<Buffer> = masks.into_iter().map(|selection| selection.mask).collect();
    buffers.push(count_kept(&buffers[0]).unwrap());
    buffers
}

/// Half of each row.
pub fn long_rows(device: &Device, dtype: DType, rows: usize, cols: usize) {
    let entries = upload(device, dtype, &entries(dtype, rows * cols, 1));
    keep_largest_of_rows(&entries, cols, cols / 2).unwrap();
}

/// Vectors are 8 or 4 entries, a warp masks 256, a chunk of the last round is 16,384.
#[test]
#[ignore = "needs a GPU"]
fn gpu_exactly_the_k_smallest_go_lower_indices_first() {
    let device = gpu();
    for dtype in TYPES {
        for len in [0, 1, 7, 64, 255, 2049, 16_384, 40_003] {
            let entries = entries(dtype, len, len as u64);
            let buffer = upload(&device, dtype, &entries);
            for k in [0, len / 3, len / 2, len] {
                let mask = mask_of(&keep_largest(&buffer, k).unwrap(), len);
                assert!(mask == reference::keep_largest(&narrow(&entries), k), "{k} of {len} {dtype}");
            }
        }
    }
}

/// The cut is in every place of a chunk, at its ends, and in each of them.
#[test]
#[ignore = "needs a GPU"]
fn gpu_ties_go_in_order_across_chunks() {
    let device = gpu();
    let len = 3 * 16_384 + 11;
    for dtype in [DType::BF16, DType::F32] {
        let buffer = upload(&device, dtype, &vec![1.0; len]);
        for k in [1, 9, 16_383, 16_384, 16_385, 2 * 16_384, 40_000, len - 1] {
            let keep = mask_of(&keep_largest(&buffer, k).unwrap(), len);
            assert!(keep[..k].iter().all(|keep| !keep) && keep[k..].iter().all(|keep| *keep), "{k} {dtype}");
        }
    }
}

/// The whole range of an element type: subnormal numbers, and the largest.
#[test]
#[ignore = "needs a GPU"]
fn gpu_every_finite_number_has_its_place() {
    let device = gpu();
    // All numbers of 16 bits but infinities and those that are none, in an order that is not theirs.
    let all = (0..=u16::MAX).map(|i| i.wrapping_mul(40_503));
    let brains: Vec<bf16> = all.clone().map(bf16::from_bits).filter(|x| x.is_finite()).collect();
    let halves: Vec<f16> = all.map(f16::from_bits).filter(|x| x.is_finite()).collect();
    let singles: Vec<f32> = brains.iter().map(|x| f32::from_bits(x.to_f32().to_bits() | 0x5a5)).collect();
    let upload = |entries: &Vec<f32>| device.upload(Category::Weights, entries).unwrap();
    for k in [1000, 30_001] {
        let check = |buffer: Buffer, entries: &[f32]| {
            let mask = mask_of(&keep_largest(&buffer, k).unwrap(), entries.len());
            assert!(mask == reference::keep_largest(entries, k), "{k} of {}", buffer.dtype());
        };
        check(
            device.upload(Category::Weights, &brains).unwrap(),
            &brains.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        );
        check(
            device.upload(Category::Weights, &halves).unwrap(),
            &halves.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        );
        check(upload(&singles), &singles);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_pieces_are_selected_as_if_they_were_one() {
    let device = gpu();
    for dtype in TYPES {
        let len = 50_000;
        let entries = entries(dtype, len, 9);
        let bounds = [0, 13, 13, 20_000, 20_001, len];
        let pieces: Vec<Buffer> =
            bounds.windows(2).map(|range| upload(&device, dtype, &entries[range[0]..range[1]])).collect();
        for k in [0, 5, 17_000, len] {
            let mut threshold = Threshold::new(&device, dtype, k).unwrap();
            for _ in 0..threshold.rounds() {
                pieces.iter().for_each(|piece| threshold.count(piece).unwrap());
                threshold.advance().unwrap();
            }
            let mask: Vec<bool> =
                pieces.iter().flat_map(|piece| bits(&threshold.mask(piece).unwrap(), piece.len())).collect();
            assert_eq!(threshold.first_unusable().unwrap(), None);
            assert!(mask == reference::keep_largest(&narrow(&entries), k), "{k} of {dtype}");
        }
    }
}

/// The first piece begins where 32 bits end: what is counted, and what is left of it, is wider than that. Zeros stand for the
/// entries before.
#[test]
#[ignore = "needs a GPU"]
fn gpu_pieces_far_into_a_matrix_are_selected_and_told_apart() {
    let device = gpu();
    let before = (1 << 32) + 3;
    for dtype in TYPES {
        // None is so small that its first digit is that of zeros.
        let entries: Vec<f64> = random(dtype, 5000, 6).iter().map(|x| round(dtype, x * x + 0.5)).collect();
        let bounds = [0, 2001, entries.len()];
        let upload = |entries: &[f64]| {
            let pieces = bounds.windows(2).map(|range| upload(&device, dtype, &entries[range[0]..range[1]]));
            pieces.collect::<Vec<Buffer>>()
        };
        let count = |pieces: &[Buffer], k: usize| {
            let mut threshold = Threshold::new(&device, dtype, k).unwrap();
            threshold.after_zeros(before).unwrap();
            for _ in 0..threshold.rounds() {
                pieces.iter().for_each(|piece| threshold.count(piece).unwrap());
                threshold.advance().unwrap();
            }
            threshold
        };
        for removed in [1, 1000, 5000] {
            let pieces = upload(&entries);
            let mut threshold = count(&pieces, before + removed);
            let mask: Vec<bool> =
                pieces.iter().flat_map(|piece| bits(&threshold.mask(piece).unwrap(), piece.len())).collect();
            assert!(mask == reference::keep_largest(&narrow(&entries), removed), "{removed} of {dtype}");
            assert_eq!(threshold.first_unusable().unwrap(), None);
        }
        let mut spoilt = entries.clone();
        (spoilt[2500], spoilt[4000]) = (f64::INFINITY, f64::NAN);
        let threshold = count(&upload(&spoilt), before + 7);
        assert_eq!(threshold.first_unusable().unwrap(), Some(before + 2500), "{dtype}");
    }
}

/// Bytes of a row that a block copies to shared memory, at most.
pub const COPIED: usize = 48 * 1024;

/// Rows that begin within a vector, within a byte and within a word of the mask; short ones and long ones, and too long ones to
/// be copied.
#[test]
#[ignore = "needs a GPU"]
fn gpu_rows_are_selected_each_for_itself() {
    let device = gpu();
    for dtype in TYPES {
        for (rows, cols) in [(3, 1), (70, 5), (9, 64), (5, 203), (2, 9001), (1, 4096), (3, COPIED / dtype.size() + 1)] {
            let entries = entries(dtype, rows * cols, cols as u64);
            let buffer = upload(&device, dtype, &entries);
            for k in [0, cols / 2, cols] {
                let mask = mask_of(&keep_largest_of_rows(&buffer, cols, k).unwrap(), rows * cols);
                let want: Vec<bool> =
                    narrow(&entries).chunks(cols).flat_map(|row| reference::keep_largest(row, k)).collect();
                assert!(mask == want, "{k} of {rows}×{cols} {dtype}");
            }
        }
    }
}

/// Groups within a vector, and any others.
#[test]
#[ignore = "needs a GPU"]
fn gpu_groups_keep_their_n_largest() {
    let device = gpu();
    for dtype in TYPES {
        for (n, m, groups) in
            [(2, 4, 777), (4, 8, 300), (0, 4, 9), (1, 1, 5), (1, 2, 33), (2, 3, 401), (16, 32, 70), (5, 7, 1)]
        {
            let entries = entries(dtype, groups * m, m as u64);
            let mask = mask_of(&keep_n_of_m(&upload(&device, dtype, &entries), m, n, m).unwrap(), groups * m);
            let want: Vec<bool> =
                narrow(&entries).chunks(m).flat_map(|group| reference::keep_largest(group, m - n)).collect();
            assert!(mask == want, "{n}:{m} of {dtype}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_first_entry_that_is_not_finite_is_found() {
    let device = gpu();
    for dtype in TYPES {
        let mut entries = entries(dtype, 20_000, 4);
        (entries[19_998], entries[17_001], entries[17_003]) = (f64::NAN, f64::NEG_INFINITY, f64::INFINITY);
        let buffer = upload(&device, dtype, &entries);
        let selections = [
            keep_largest(&buffer, 300),
            keep_largest_of_rows(&buffer, 2000, 300),
            keep_n_of_m(&buffer, 20_000, 2, 4),
            keep_n_of_m(&buffer, 20_000, 2, 5),
        ];
        for selection in selections {
            assert_eq!(selection.unwrap().first_unusable().unwrap(), Some(17_001), "{dtype}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_kept_entries_are_counted() {
    let device = gpu();
    for len in [0usize, 1, 64, 65, 200_003] {
        let mask = keep_largest(&upload(&device, DType::F32, &vec![1.0; len]), len / 3).unwrap().mask;
        assert_eq!(count_kept(&mask).unwrap().download::<u64>().unwrap(), [(len - len / 3) as u64]);
    }
}
