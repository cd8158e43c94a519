//! What the virtual GPU counts, against what the shapes ask for.

use std::ops::Range;

use kernels::DType;
use kernels::ops::activation::{self, Activation};
use kernels::ops::add::add_assign;
use kernels::weight::BlockWeight;

use super::epilogues::Layer;
use super::inside::{self, Inside};
use super::{Case, Kind, Shape, gradients, products};
use crate::emulated::Counts;
use crate::support::gpu;

/// Whole tiles. A rank of 16 is three parts of 16, two panels.
const SHAPE: Shape = (256, 512, 384, 16);
const HALF: Kind = Kind::Packed(DType::BF16, 50);
const ADAPTER_K: usize = 64;
const SECTOR: usize = 32;

#[test]
#[ignore = "needs a GPU"]
fn gpu_dense_once() {
    products::pass(&gpu(), DType::BF16, &Case::new(DType::BF16, Kind::Dense(DType::BF16), (256, 512, 384, 0)));
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_packed_once() {
    products::pass(&gpu(), DType::BF16, &Case::new(DType::BF16, HALF, (256, 512, 384, 0)));
    gpu().synchronize().unwrap();
}

/// Whole tiles of both products.
const TWO_FOUR: Shape = (256, 384, 512, 0);

#[test]
#[ignore = "needs a GPU"]
fn gpu_two_four_once() {
    let (n, cols, rows, _) = TWO_FOUR;
    for rank in [0, 16] {
        let case = Case::new(DType::BF16, Kind::TwoFour(DType::BF16), (n, cols, rows, rank));
        products::pass(&gpu(), DType::BF16, &case);
    }
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_adapted_once() {
    let case = Case::new(DType::BF16, HALF, SHAPE);
    products::pass(&gpu(), DType::BF16, &case);
    gradients::pass(&gpu(), DType::BF16, &case, |len| vec![0.0; len]);
    gpu().synchronize().unwrap();
}

/// A masked adapter in each kind of weight, and a scaled one.
#[test]
#[ignore = "needs a GPU"]
fn gpu_inside_once() {
    for (kind, scaled) in INSIDE {
        let inside = Inside::new(DType::BF16, kind, SHAPE, scaled);
        let held = inside.hold(&gpu());
        inside::products(&gpu(), &inside, &held, &inside.case.x, &inside.case.dy, None);
        inside::gradients(&gpu(), &inside, &held, |len| vec![0.0; len]);
    }
    gpu().synchronize().unwrap();
}

const INSIDE: [(Kind, bool); 4] =
    [(HALF, false), (HALF, true), (Kind::TwoFour(DType::BF16), false), (Kind::Dense(DType::BF16), false)];

/// Epilogues, none, saved ReLU with a residual, and saved GELU, and what operations of their own take for the last two.
#[test]
#[ignore = "needs a GPU"]
fn gpu_epilogues_once() {
    let device = gpu();
    for kind in EPILOGUES {
        let layer = Layer::new(&device, DType::BF16, kind, (256, 64, 512, 0));
        let z = || layer.forward(None, false, false).y;
        layer.forward(Some(Activation::Relu), true, true);
        let (mut y, _) = activation::relu(z(), true).unwrap();
        add_assign(&mut y, &z()).unwrap();
        layer.forward(Some(Activation::Gelu), true, false);
        activation::forward(Activation::Gelu, &z()).unwrap();
    }
    device.synchronize().unwrap();
}

const EPILOGUES: [Kind; 3] = [Kind::Dense(DType::BF16), HALF, Kind::TwoFour(DType::BF16)];

/// The bias: a warp asks for each 8 columns of its 64, which are one sector.
fn bias_bytes(tiles: usize, warps: usize) -> usize {
    tiles * warps * 8 * SECTOR
}

#[test]
fn dense_products_have_no_bank_conflicts_and_move_whole_sectors() {
    let counts = Counts::of("linear::counts::gpu_dense_once");
    let (n, cols, rows, _) = SHAPE;
    let [forward, backward] = &counts[..] else { panic!("two launches, not {}", counts.len()) };
    for (launch, k, features) in [(forward, cols, rows), (backward, rows, cols)] {
        let (what, tiles) = (launch.kernel(), (n / 128) * (features / 128));
        assert_eq!(launch.bank_conflicts(), 0, "{what}");
        assert_eq!(launch.count("/tensor_fma") as usize, n * cols * rows, "{what}");
        // Each tile reads its 128 rows of A and 128 columns of B once, and C is written once.
        let operands = tiles * (128 + 128) * k * 2 + n * features * 2;
        let bias = if features == rows { bias_bytes(tiles, 4) } else { 0 };
        assert_eq!(launch.bytes(), operands + bias, "{what}");
    }
}

/// Bytes that one block asks for to copy a tile's values of 16 bits, `values`: two warps take chunks of 16 bytes in turns,
/// behind the 8 chunks of masks; from the chunk where the first begins to that where the last ends.
fn value_bytes(values: Range<usize>) -> usize {
    let (start, end) = (values.start * 2 / 16, (values.end * 2).div_ceil(16));
    let chunks: Vec<usize> = (start..end).collect();
    // A warp's chunks of one turn: 24 in the first, 32 in the others.
    let (head, tail) = chunks.split_at(chunks.len().min(24));
    let sectors = |chunks: &[usize]| {
        let mut sectors: Vec<usize> = chunks.iter().map(|chunk| chunk / 2).collect();
        sectors.dedup();
        sectors.len()
    };
    SECTOR * (sectors(head) + tail.chunks(32).map(sectors).sum::<usize>())
}

#[test]
fn packed_products_have_no_bank_conflicts_and_move_what_is_packed() {
    let counts = Counts::of_packed("linear::counts::gpu_packed_once");
    let (n, cols, rows, _) = SHAPE;
    // The weight as the launch had it.
    let case = Case::new(DType::BF16, HALF, (256, 512, 384, 0));
    let mut starts = vec![0];
    for tile in 0..rows / 32 * (cols / 32) {
        let (row, col) = (tile / (cols / 32) * 32, tile % (cols / 32) * 32);
        let entries = (0..1024).map(|i| case.w[(row + i / 32) * cols + col + i % 32]);
        starts.push(starts[tile] + entries.filter(|w| *w != 0.0).count());
    }
    let weight: usize = starts.windows(2).map(|pair| 128 + value_bytes(pair[0]..pair[1])).sum();
    let [forward, backward] = &counts[..] else { panic!("two launches, not {}", counts.len()) };
    for (launch, k, features) in [(forward, cols, rows), (backward, rows, cols)] {
        let (what, tiles) = (launch.kernel(), n / 256 * (features / 128));
        assert_eq!(launch.bank_conflicts(), 0, "{what}");
        assert_eq!(launch.count("/tensor_fma") as usize, n * cols * rows, "{what}");
        // Each block reads 256 rows of A; all blocks of a row of tiles the weight once, and where its values start: two
        // words, asked for by each of eight warps.
        let operands = tiles * 256 * k * 2 + n * features * 2 + n / 256 * weight;
        let found = tiles * (k / 32) * 8 * 2 * SECTOR;
        let bias = if features == rows { bias_bytes(tiles, 8) } else { 0 };
        assert_eq!(launch.bytes(), operands + found + bias, "{what}");
    }
    // What is asked for of the weight is what is stored, but for sectors that two tiles or two warps share.
    let kept = case.w.iter().filter(|w| **w != 0.0).count();
    let stored = BlockWeight::bytes_for(rows, cols, DType::BF16, kept);
    assert!(weight as f64 <= 1.1 * stored as f64, "{weight} bytes asked for, {stored} stored");
}

#[test]
fn two_four_products_skip_zeros_without_bank_conflicts_and_move_nine_bits_an_entry() {
    let counts = Counts::of_packed("linear::counts::gpu_two_four_once");
    let (n, cols, rows, _) = TWO_FOUR;
    let [forward, backward, _, adapted_forward, _, adapted_backward] = &counts[..] else {
        panic!("six launches, not {}", counts.len())
    };
    counts.iter().for_each(|launch| assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel()));
    assert_eq!(adapted_forward.count("/tensor_fma") as usize, n * rows * (cols / 2 + ADAPTER_K));
    assert_eq!(adapted_backward.count("/tensor_fma") as usize, n * cols * (rows + ADAPTER_K));
    // Half of the frozen product forward; all of it backward, whose sums run along W's columns.
    assert_eq!(forward.count("/tensor_fma") as usize, n * rows * cols / 2);
    assert_eq!(backward.count("/tensor_fma") as usize, n * cols * rows);
    let tiles = n / 128 * (rows / 256);
    let operands = tiles * (128 * cols * 2 + 256 * cols * 9 / 8) + n * rows * 2;
    assert_eq!(forward.bytes(), operands + bias_bytes(tiles, 8), "forward");
    let tiles = n / 256 * (cols / 128);
    let operands = tiles * (256 * rows * 2 + 128 * rows * 9 / 8) + n * cols * 2;
    assert_eq!(backward.bytes(), operands, "dx");
}

#[test]
fn adapters_inside_weights_have_no_bank_conflicts_and_leave_no_matrix() {
    let counts = Counts::of_packed("linear::counts::gpu_inside_once");
    let (n, cols, rows, rank) = SHAPE;
    assert_eq!(counts.len(), 7 * INSIDE.len(), "launches");
    for (counts, (kind, scaled)) in counts.chunks_exact(7).zip(INSIDE) {
        let [split, forward, split_again, backward, parts, add_b, add_a] = counts else { unreachable!() };
        for launch in counts {
            assert_eq!(launch.bank_conflicts(), 0, "{} of {kind:?}", launch.kernel());
        }
        // Both factors, read once and written once; A's columns are read for themselves.
        let factors = (cols + rows) * rank * 4;
        assert_eq!(split.bytes(), split_again.bytes());
        assert!((2 * factors..=3 * factors).contains(&split.bytes()), "{} of {factors}", split.bytes());
        // Blocks of 256 rows, or of 128 where weights are of any type, form their entries once, in three products.
        let (tile_m, three) = (if let Kind::Dense(_) = kind { 128 } else { 256 }, 3 * rank);
        for (launch, k, features) in [(forward, cols, rows), (backward, rows, cols)] {
            let what = format!("{} of {kind:?}", launch.kernel());
            let tiles = n / tile_m * (features / 128);
            assert_eq!(
                launch.count("/tensor_fma") as usize,
                n * cols * rows + n / tile_m * cols * rows * three,
                "{what}"
            );
            // A warp asks for 32 features' parts of its columns and 16 of its rows with each panel, 64 bytes each and chunk.
            let of_factors = tiles * (k / 32) * 8 * 48 * 64 * (rank / 16);
            let operands = tiles * tile_m * k * 2 + n * features * 2;
            let weight = launch.bytes() - of_factors - operands;
            let stored = match kind {
                Kind::Dense(_) => cols * rows * 2,
                _ => BlockWeight::bytes_for(rows, cols, DType::BF16, cols * rows / 2),
            };
            // What is packed, for each block that has it, with sectors that tiles share and the words where values start.
            let found = tiles * (k / 32) * 8 * 2 * SECTOR;
            let least = n / tile_m * stored;
            assert!((least * 9 / 10..=least * 11 / 10 + found).contains(&weight), "{what}: {weight} of {least}");
        }
        // G, and three products of its parts with those of A and of B.
        assert_eq!(parts.count("/tensor_fma") as usize, rows * cols * (n + 2 * three), "{}", parts.kernel());
        let tiles = (rows / 128) * (cols / 128);
        let operands = tiles * (128 + 128) * n * 2;
        let left = tiles * 128 * rank * 4;
        // Each warp of a tile reads its rows of A and of B, and where its entries are; sums go to the workspace, those of dB a
        // word of each two at a time.
        let factors = tiles * 2 * 2 * 128 * rank * 4;
        let most_of_weight = rows * cols * if scaled || matches!(kind, Kind::Dense(_)) { 32 } else { 2 };
        let rest = parts.bytes() - operands - factors - 3 * left;
        assert!(rest <= most_of_weight, "{}: {rest} of {most_of_weight}", parts.kernel());
        for (add, sums, count) in [(add_b, rows * rank * 4, cols / 128), (add_a, cols * rank * 4, rows / 128)] {
            assert_eq!(add.bytes(), (count + 2) * sums, "{}", add.kernel());
        }
    }
}

#[test]
fn epilogues_move_only_what_is_their_own() {
    let counts = Counts::of_packed("linear::counts::gpu_epilogues_once");
    let (elements, size) = (256 * 512, 2);
    for counts in counts.chunks_exact(counts.len() / EPILOGUES.len()) {
        let [relu_add, z, relu, _, add, gelu_saved, _, gelu] = counts else { panic!("eight launches") };
        for launch in [relu_add, gelu_saved] {
            assert_eq!(launch.kernel(), z.kernel());
            assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
        }
        // The residual, and a sector of signs for the 64 elements that a warp has of a row.
        assert_eq!(relu_add.bytes() - z.bytes(), elements * size + elements / 64 * SECTOR, "{}", z.kernel());
        // z
        assert_eq!(gelu_saved.bytes() - z.bytes(), elements * size, "{}", z.kernel());
        // On their own they read and write y for each.
        assert_eq!(relu.bytes() + add.bytes(), elements * (2 + 3) * size + elements / 8);
        assert_eq!(gelu.bytes(), 2 * elements * size);
    }
}

#[test]
fn adapters_have_no_bank_conflicts_and_read_activations_once() {
    let counts = Counts::of_packed("linear::counts::gpu_adapted_once");
    let (n, cols, rows, rank) = SHAPE;
    let [up, forward, down, backward, gradients @ ..] = &counts[..] else { panic!("{} launches", counts.len()) };
    let [d_a, add_a, d_b, add_b, d_w] = gradients else { panic!("five launches, not {}", gradients.len()) };
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
    }
    assert_eq!(forward.count("/tensor_fma") as usize, n * rows * (cols + ADAPTER_K));
    assert_eq!(backward.count("/tensor_fma") as usize, n * cols * (rows + ADAPTER_K));
    // u and v: each block of 32 rows reads the factor once. A warp writes every other word of a sector, so each goes twice.
    for (launch, k) in [(up, cols), (down, rows)] {
        assert_eq!(launch.bytes(), n * k * 2 + n / 32 * (rank * k * 4) + 2 * (n * rank * 4), "{}", launch.kernel());
        assert_eq!(launch.count("/tensor_fma") as usize, n * k * 2 * rank);
    }
    // dA and dB: each block of 128 features reads the factor once; dA's sectors are written whole, turned.
    for (launch, add, features, writes) in [(d_a, add_a, cols, 1), (d_b, add_b, rows, 2)] {
        let sums = features * rank * 4;
        assert_eq!(
            launch.bytes(),
            n * features * 2 + features / 128 * (n * rank * 4) + writes * sums,
            "{}",
            launch.kernel()
        );
        assert_eq!(launch.count("/tensor_fma") as usize, n * features * 2 * rank);
        assert_eq!(add.bytes(), 3 * sums);
    }
    assert_eq!(d_w.bytes(), (rows / 128) * (cols / 128) * (128 + 128) * n * 2 + 2 * rows * cols * 4);
    assert_eq!(d_w.count("/tensor_fma") as usize, n * rows * cols);
}
