//! What the virtual GPU counts, against what the shapes ask for.

use std::ops::Range;

use kernels::ops::activation::{self, Activation};
use kernels::ops::add::add_assign;
use kernels::ops::linear::{Lora, lora_down, lora_gradients};
use kernels::weight::BlockWeight;
use kernels::{Category, DType};

use super::epilogues::Layer;
use super::inside::{self, Inside};
use super::{Case, Kind, Shape, gradients, products};
use crate::emulated::{Counts, assert_share};
use crate::support::{gpu, random, upload};

/// Whole tiles. A rank of 16 is three parts of 16, two panels.
const SHAPE: Shape = (256, 512, 384, 16);
const BF16: DType = DType::BF16;
const F16: DType = DType::F16;
const HALF: Kind = Kind::Packed(BF16, 50);
const ADAPTER_K: usize = 64;
const SECTOR: usize = 32;

/// What is multiplied by which kernels: those of bf16, those of any type, those of packed weights, each without an adapter and
/// with one. OPT's files hold f16, and what is counted on activations in bf16 are then `any` kernels and packed ones of f16.
const PRODUCTS: [(DType, Kind, usize, &str); 12] = [
    (BF16, Kind::Dense(BF16), 0, ""),
    (BF16, Kind::Dense(BF16), 16, ""),
    (BF16, Kind::Dense(F16), 0, "any_"),
    (BF16, Kind::Dense(F16), 16, "any_"),
    (BF16, Kind::Trainable, 0, "any_"),
    (BF16, Kind::Trainable, 16, "any_"),
    (BF16, HALF, 0, "packed_"),
    (BF16, HALF, 16, "packed_"),
    (BF16, Kind::Packed(F16, 50), 0, "packed_"),
    (BF16, Kind::Packed(F16, 50), 16, "packed_"),
    (F16, Kind::Dense(F16), 16, "any_"),
    (F16, Kind::Packed(F16, 50), 16, "any_"),
];

#[test]
#[ignore = "needs a GPU"]
fn gpu_products_once() {
    let (n, cols, rows, _) = SHAPE;
    for (dtype, kind, rank, _) in PRODUCTS {
        products::pass(&gpu(), dtype, &Case::new(dtype, kind, (n, cols, rows, rank)));
    }
    gpu().synchronize().unwrap();
}

/// Whole tiles of both products.
const TWO_FOUR: Shape = (256, 384, 512, 0);

#[test]
#[ignore = "needs a GPU"]
fn gpu_two_four_once() {
    let (n, cols, rows, _) = TWO_FOUR;
    for rank in [0, 16] {
        let case = Case::new(BF16, Kind::TwoFour(BF16), (n, cols, rows, rank));
        products::pass(&gpu(), BF16, &case);
    }
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_adapted_once() {
    let case = Case::new(BF16, HALF, SHAPE);
    products::pass(&gpu(), BF16, &case);
    gradients::pass(&gpu(), BF16, &case, |len| vec![0.0; len]);
    gpu().synchronize().unwrap();
}

/// Tokens for 64 blocks of 128 rows, and features of x for as many of 256 features and 512 tokens.
const MANY: Shape = (8192, 1024, 128, 16);

#[test]
#[ignore = "needs a GPU"]
fn gpu_adapters_of_many_tokens_once() {
    let (n, cols, rows, rank) = MANY;
    let device = gpu();
    let weight = Case::new(BF16, Kind::Dense(BF16), (0, cols, rows, 0)).hold(&device);
    let [x, dy] =
        [(cols, 1), (rows, 2)].map(|(features, seed)| upload(&device, BF16, &random(BF16, n * features, seed)));
    let [a, b, u] =
        [rank * cols, rank * rows, rank * n].map(|len| upload(&device, DType::F32, &random(DType::F32, len, 3)));
    let [mut d_a, mut d_b] = [a.len(), b.len()].map(|len| device.zeros(Category::Gradients, DType::F32, len).unwrap());
    let lora = Lora { a: &a, b: &b, rank, scale: 2.0 };
    let v = lora_down(&device, &dy, n, weight.weight(), lora).unwrap();
    lora_gradients(&device, &x, &dy, n, (&u, &v), &mut d_a, &mut d_b).unwrap();
    device.synchronize().unwrap();
}

/// A masked adapter in each kind of weight, and a scaled one.
#[test]
#[ignore = "needs a GPU"]
fn gpu_inside_once() {
    for (kind, scaled) in INSIDE {
        let inside = Inside::new(BF16, kind, SHAPE, scaled);
        let held = inside.hold(&gpu());
        inside::products(&gpu(), &inside, &held, &inside.case.x, &inside.case.dy, None);
        inside::gradients(&gpu(), &inside, &held, |len| vec![0.0; len]);
    }
    gpu().synchronize().unwrap();
}

const INSIDE: [(Kind, bool); 6] = [
    (HALF, false),
    (HALF, true),
    (Kind::Packed(F16, 50), false),
    (Kind::TwoFour(BF16), false),
    (Kind::Dense(BF16), false),
    (Kind::Dense(F16), true),
];

/// Epilogues, none, saved ReLU with a residual, and saved GELU, and what operations of their own take for the last two.
#[test]
#[ignore = "needs a GPU"]
fn gpu_epilogues_once() {
    let device = gpu();
    for kind in EPILOGUES {
        let layer = Layer::new(&device, BF16, kind, (256, 64, 512, 0));
        let z = || layer.forward(None, false, false).y;
        layer.forward(Some(Activation::Relu), true, true);
        let (mut y, _) = activation::relu(z(), true).unwrap();
        add_assign(&mut y, &z()).unwrap();
        layer.forward(Some(Activation::Gelu), true, false);
        activation::forward(Activation::Gelu, &z()).unwrap();
    }
    device.synchronize().unwrap();
}

const EPILOGUES: [Kind; 4] = [Kind::Dense(BF16), Kind::Dense(F16), HALF, Kind::TwoFour(BF16)];

/// The bias: a warp asks for each 8 columns of its 64, which are one sector.
fn bias_bytes(tiles: usize, warps: usize) -> usize {
    tiles * warps * 8 * SECTOR
}

/// Bytes that one block asks for to copy a tile's values of 16 bits, `values`: two warps take 32 chunks of 16 bytes each in
/// turns, from the chunk where the first begins to that where the last ends.
fn value_bytes(values: Range<usize>) -> usize {
    let chunks: Vec<usize> = (values.start * 2 / 16..(values.end * 2).div_ceil(16)).collect();
    let sectors = |chunks: &[usize]| {
        let mut sectors: Vec<usize> = chunks.iter().map(|chunk| chunk / 2).collect();
        sectors.dedup();
        sectors.len()
    };
    SECTOR * chunks.chunks(32).map(sectors).sum::<usize>()
}

/// Bytes that a row of tiles of C asks for to copy all of a packed weight in 16 bits, of which `keep` is stored: masks and values.
pub fn packed_bytes(keep: &[bool], (rows, cols): (usize, usize)) -> usize {
    let (mut start, mut bytes) = (0, 0);
    for tile in 0..rows / 32 * (cols / 32) {
        let (row, col) = (tile / (cols / 32) * 32, tile % (cols / 32) * 32);
        let end = start + (0..1024).filter(|i| keep[(row + i / 32) * cols + col + i % 32]).count();
        bytes += 128 + value_bytes(start..end);
        start = end;
    }
    // What is stored, but for sectors that two tiles or two warps share.
    let stored = BlockWeight::bytes_for(rows, cols, BF16, start);
    assert!(bytes as f64 <= 1.1 * stored as f64, "{bytes} bytes asked for, {stored} stored");
    bytes
}

/// Bytes that a block asks for of an adapter's factors beside `m` rows and `n` columns of C, with a rank of 16. Each of three parts is
/// read for itself: along k a row of 64 bytes, once in a panel of two parts and once in that of the third; across k all rows.
pub fn adapter_bytes(m: usize, n: usize, along_k: bool) -> usize {
    let row = 2 * 64;
    m * row + n * if along_k { row } else { 3 * 64 }
}

#[test]
fn products_have_no_bank_conflicts_and_move_whole_sectors() {
    let counts = Counts::of_packed("linear::counts::gpu_products_once");
    let (n, cols, rows, _) = SHAPE;
    let mut counts = counts.iter();
    for (dtype, kind, rank, name) in PRODUCTS {
        for (direction, k, features) in [("forward", cols, rows), ("backward_input", rows, cols)] {
            let mut next = || counts.next().expect("a launch for each product");
            if rank > 0 {
                assert_eq!(next().kernel(), format!("lora_project_32_{dtype}"));
            }
            let launch = next();
            let what = format!("{} of {kind:?}, rank {rank}", launch.kernel());
            assert_eq!(launch.kernel(), format!("linear_{name}{direction}_{dtype}"));
            assert_eq!(launch.bank_conflicts(), 0, "{what}");
            launch.assert_whole_sectors();
            let adapter_k = if rank > 0 { ADAPTER_K } else { 0 };
            assert_eq!(launch.count("/tensor_fma") as usize, n * features * (k + adapter_k), "{what}");
            // Each tile reads its rows of A once, and each row of tiles all of W; C is written once.
            let (tile_m, warps) = if name == "packed_" { (256, 8) } else { (128, if name == "any_" { 8 } else { 4 }) };
            let tiles = n / tile_m * (features / 128);
            let weight = match kind {
                Kind::Packed(..) => {
                    // Where values start are two words, asked for by each of eight warps with each panel.
                    let keep: Vec<bool> = Case::new(dtype, kind, SHAPE).w.iter().map(|w| *w != 0.0).collect();
                    n / tile_m * packed_bytes(&keep, (rows, cols)) + tiles * (k / 32) * 8 * 2 * SECTOR
                }
                _ => n / tile_m * rows * cols * kind.dtype().size(),
            };
            let forward = direction == "forward";
            let bias = if forward { bias_bytes(tiles, warps) } else { 0 };
            let adapter = if rank > 0 { tiles * adapter_bytes(tile_m, 128, forward) } else { 0 };
            assert_eq!(launch.bytes(), tiles * tile_m * k * 2 + n * features * 2 + weight + bias + adapter, "{what}");
        }
    }
    assert!(counts.next().is_none());
}

#[test]
fn two_four_products_skip_zeros_without_bank_conflicts_and_move_nine_bits_an_entry() {
    let counts = Counts::of_packed("linear::counts::gpu_two_four_once");
    let (n, cols, rows, _) = TWO_FOUR;
    let [forward, backward, _, adapted_forward, _, adapted_backward] = &counts[..] else {
        panic!("six launches, not {}", counts.len())
    };
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
        launch.assert_whole_sectors();
    }
    assert_eq!(adapted_forward.count("/tensor_fma") as usize, n * rows * (cols / 2 + ADAPTER_K));
    assert_eq!(adapted_backward.count("/tensor_fma") as usize, n * cols * (rows + ADAPTER_K));
    // Half of the frozen product forward; all of it backward, whose sums run along W's columns.
    assert_eq!(forward.count("/tensor_fma") as usize, n * rows * cols / 2);
    assert_eq!(backward.count("/tensor_fma") as usize, n * cols * rows);
    let tiles = n / 128 * (rows / 256);
    let operands = tiles * (128 * cols * 2 + 256 * cols * 9 / 8) + n * rows * 2;
    assert_eq!(forward.bytes(), operands + bias_bytes(tiles, 8), "forward");
    let with_adapter = forward.bytes() + tiles * adapter_bytes(128, 256, true);
    assert_eq!(adapted_forward.bytes(), with_adapter, "forward with an adapter");
    let tiles = n / 256 * (cols / 128);
    let operands = tiles * (256 * rows * 2 + 128 * rows * 9 / 8) + n * cols * 2;
    assert_eq!(backward.bytes(), operands, "dx");
    assert_eq!(adapted_backward.bytes(), operands + tiles * adapter_bytes(256, 128, false), "dx with an adapter");
}

/// Bytes that warps ask for to learn, of tiles of 32×32, what G keeps and what it is scaled by: masks once, and a word that says
/// where values start. Of a block of 8×8 the lanes with a lower entry ask for their values at once, then those with an upper one.
fn kept_bytes(keep: &[bool], (rows, cols): (usize, usize), scaled: bool) -> usize {
    let (mut at, mut bytes) = (0, 0);
    for tile in 0..rows / 32 * (cols / 32) {
        bytes += 128 + SECTOR;
        for block in 0..16 {
            let (row, col) = (tile / (cols / 32) * 32 + block / 4 * 8, tile % (cols / 32) * 32 + block % 4 * 8);
            let mut sectors = [vec![], vec![]];
            for bit in (0..64).filter(|bit| keep[(row + bit / 8) * cols + col + bit % 8]) {
                sectors[bit % 2].push(at * 2 / SECTOR);
                at += 1;
            }
            for mut sectors in sectors {
                sectors.dedup();
                bytes += if scaled { SECTOR * sectors.len() } else { 0 };
            }
        }
    }
    bytes
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
        // Both factors, read once and written once.
        let factors = (cols + rows) * rank * 4;
        for split in [split, split_again] {
            split.assert_whole_sectors();
            assert_eq!(split.bytes(), 2 * factors);
        }
        // Blocks of 256 rows, or of 128 where weights are of any type, form their entries once, in three products.
        let keep = Inside::new(BF16, kind, SHAPE, scaled).keep;
        let (tile_m, three) = (if let Kind::Dense(_) = kind { 128 } else { 256 }, 3 * rank);
        for (launch, k, features) in [(forward, cols, rows), (backward, rows, cols)] {
            let what = format!("{} of {kind:?}", launch.kernel());
            launch.assert_whole_sectors();
            let tiles = n / tile_m * (features / 128);
            assert_eq!(
                launch.count("/tensor_fma") as usize,
                n * cols * rows + n / tile_m * cols * rows * three,
                "{what}"
            );
            // A warp asks for 32 features' parts of its columns and 16 of its rows with each panel, 64 bytes each and chunk.
            let of_factors = tiles * (k / 32) * 8 * 48 * 64 * (rank / 16);
            let weight = match kind {
                Kind::Packed(..) => packed_bytes(&keep, (rows, cols)) + features / 128 * (k / 32) * 8 * 2 * SECTOR,
                Kind::TwoFour(_) => cols * rows * 9 / 8,
                _ => cols * rows * 2,
            };
            let operands = tiles * tile_m * k * 2 + n * features * 2;
            assert_eq!(launch.bytes(), operands + of_factors + n / tile_m * weight, "{what}");
        }
        // G, and three products of its parts with those of A and of B.
        let what = format!("{} of {kind:?}", parts.kernel());
        assert_eq!(parts.count("/tensor_fma") as usize, rows * cols * (n + 2 * three), "{what}");
        let tiles = (rows / 128) * (cols / 128);
        let operands = tiles * (128 + 128) * n * 2;
        // Each warp of a tile reads its rows of A and of B, and where its entries are; sums go to the workspace.
        let factors = tiles * 2 * 2 * 128 * rank * 4;
        let left = 2 * tiles * 128 * rank * 4;
        let weight = match kind {
            Kind::Packed(..) => kept_bytes(&keep, (rows, cols), scaled),
            Kind::TwoFour(_) => rows * cols / 8,
            // A quad's 8 entries are half a sector, and so each is asked for twice; the second time L1 has it.
            _ => 2 * rows * cols * 2,
        };
        assert_eq!(parts.bytes(), operands + factors + left + weight, "{what}");
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
    let [up, _, down, _, gradients @ ..] = &counts[..] else { panic!("{} launches", counts.len()) };
    let [d_a, add_a, d_b, add_b, d_w] = gradients else { panic!("five launches, not {}", gradients.len()) };
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
        launch.assert_whole_sectors();
    }
    // u and v: each block of 32 rows reads the factor once.
    for (launch, k) in [(up, cols), (down, rows)] {
        assert_eq!(launch.bytes(), project_bytes(n, k, rank, 32), "{}", launch.kernel());
        assert_eq!(launch.count("/tensor_fma") as usize, n * k * 2 * rank);
    }
    for (launch, add, features) in [(d_a, add_a, cols), (d_b, add_b, rows)] {
        assert_eq!(launch.bytes(), gradient_bytes(n, features, rank, 128), "{}", launch.kernel());
        assert_eq!(launch.count("/tensor_fma") as usize, n * features * 2 * rank);
        assert_eq!(add.bytes(), 3 * features * rank * 4);
    }
    assert_eq!(d_w.bytes(), (rows / 128) * (cols / 128) * (128 + 128) * n * 2 + 2 * rows * cols * 4);
    assert_eq!(d_w.count("/tensor_fma") as usize, n * rows * cols);
}

/// x and what comes of it once, and for each block of `extent` rows the factor.
pub fn project_bytes(n: usize, features: usize, rank: usize, extent: usize) -> usize {
    n * features * 2 + n / extent * (features * rank * 4) + n * rank * 4
}

/// x once, for each block of `extent` features u or v, and for each 512 tokens what they leave.
pub fn gradient_bytes(n: usize, features: usize, rank: usize, extent: usize) -> usize {
    n * features * 2 + features / extent * (n * rank * 4) + n.div_ceil(512) * features * rank * 4
}

/// Where tokens leave blocks enough, these are larger. What u and v read is a quarter above the least then, as lora.cu says, and
/// what dA reads less than a tenth.
#[test]
fn adapters_of_many_tokens_read_their_factors_less_often() {
    let counts = Counts::of("linear::counts::gpu_adapters_of_many_tokens_once");
    let (n, cols, rows, rank) = MANY;
    let kernels: Vec<&str> = counts.iter().map(Counts::kernel).collect();
    let add = "lora_gradient_add";
    assert_eq!(kernels, ["lora_project_128_bf16", "lora_gradient_256_bf16", add, "lora_gradient_128_bf16", add]);
    let [down, d_a, _, d_b, _] = &counts[..] else { unreachable!() };
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
        launch.assert_whole_sectors();
    }
    assert_eq!(down.bytes(), project_bytes(n, rows, rank, 128));
    assert_share("v", down.bytes(), project_bytes(n, rows, rank, n), 1.25);
    assert_eq!(d_a.bytes(), gradient_bytes(n, cols, rank, 256));
    assert_share("dA", d_a.bytes(), gradient_bytes(n, cols, rank, cols), 1.1);
    assert_eq!(d_b.bytes(), gradient_bytes(n, rows, rank, 128));
}
