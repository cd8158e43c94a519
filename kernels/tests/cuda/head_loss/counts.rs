//! What the virtual GPU counts, against what the shape asks for.

use kernels::DType;

use super::{Case, Shape, pass};
use crate::emulated::{Counts, assert_share};
use crate::linear::Kind;
use crate::linear::counts::{adapter_bytes, gradient_bytes, packed_bytes, project_bytes};
use crate::support::gpu;

const BF16: DType = DType::BF16;
const F16: DType = DType::F16;

/// Weights of h's type and none, then what is trained: PERP's head with its adapter, of f16 as OPT's files hold it, `full`'s in
/// f32, and a packed one.
const HEADS: [(DType, Kind, usize); 6] = [
    (BF16, Kind::Dense(BF16), 0),
    (BF16, Kind::Dense(BF16), 16),
    (BF16, Kind::Dense(F16), 16),
    (BF16, Kind::Trainable, 0),
    (BF16, Kind::Packed(F16, 50), 16),
    (F16, Kind::Dense(F16), 16),
];

/// Whole tiles, rows of one block of `head_gradient`, and two parts of dh.
const SHAPE: Shape = (256, 2048, 128, 0);
const PARTS: usize = 2;
const SECTOR: usize = 32;

fn case((dtype, kind, rank): (DType, Kind, usize)) -> Case {
    let (n, vocab, dim, _) = SHAPE;
    Case::new(dtype, kind, (n, vocab, dim, rank))
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_heads_once() {
    HEADS.into_iter().for_each(|head| drop(pass(&gpu(), &case(head), None)));
    gpu().synchronize().unwrap();
}

#[test]
fn logits_are_written_and_read_once_and_only_for_gradients() {
    let counts = Counts::of_packed("head_loss::counts::gpu_heads_once");
    let (n, vocab, dim, _) = SHAPE;
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
    }
    let mut counts = counts.into_iter();
    for head in HEADS {
        let (dtype, kind, rank) = head;
        let any = if (dtype, kind.dtype()) == (BF16, BF16) { "" } else { "any_" };
        let adapted = |names: &[String]| if rank > 0 { names.to_vec() } else { Vec::new() };
        let project = || format!("lora_project_32_{dtype}");
        let of_loss = || {
            let names = [format!("head_{any}logits_{dtype}"), "head_losses".into()];
            [adapted(&[project()]), names.to_vec()].concat()
        };
        let gradients =
            adapted(&[0, 0].map(|_| [format!("lora_gradient_128_{dtype}"), "lora_gradient_add".into()]).concat());
        let names = [
            of_loss(),
            of_loss(),
            vec![format!("head_gradient_{dtype}")],
            adapted(&[project()]),
            vec![format!("head_{any}hidden_gradient_{dtype}"), format!("head_hidden_gradient_add_{dtype}")],
            gradients,
            vec![format!("linear_weight_gradient_{dtype}")],
        ];
        let launches: Vec<Counts> = names.concat().iter().map(|name| next(&mut counts, name)).collect();
        let of_head: Vec<&Counts> = launches.iter().filter(|launch| !launch.kernel().starts_with("lora_")).collect();
        let [alone, losses_alone, logits, losses, gradient, parts, add, d_weight] = of_head[..] else { unreachable!() };

        let what = format!("{dtype} {kind:?}, rank {rank}");
        launches.iter().for_each(Counts::assert_whole_sectors);
        // Three parts of the adapter's rank are two panels, of the last part of dh as well.
        let adapter_k = if rank > 0 { 64 } else { 0 };
        for launch in [alone, logits] {
            assert_eq!(launch.count("/tensor_fma") as usize, n * vocab * (dim + adapter_k), "{what}");
        }
        assert_eq!(parts.count("/tensor_fma") as usize, n * dim * (vocab + adapter_k), "{what}");
        assert_eq!(d_weight.count("/tensor_fma") as usize, n * vocab * dim, "{what}");

        // Each row of tiles reads all of W, a packed one with two words for each warp and panel that say where values start; of dh
        // each part asks for the first panel's and for its own first ones as well, and the last one for none behind the end.
        let (weight, found) = match kind {
            Kind::Packed(..) => {
                let keep: Vec<bool> = case(head).w.iter().map(|w| *w != 0.0).collect();
                (packed_bytes(&keep, (vocab, dim)), 8 * 2 * SECTOR)
            }
            _ => (vocab * dim * kind.dtype().size(), 0),
        };
        let tiles = (n / 128) * (vocab / 128);
        let adapter = |along_k| if rank > 0 { adapter_bytes(128, 128, along_k) } else { 0 };
        let operands = tiles * (128 * dim * 2 + adapter(true) + dim / 32 * found) + n / 128 * weight;
        let statistics = n * (vocab / 64) * 8;
        // Besides, the warps of a tile ask for its rows' targets twice, and a row's logit of its target is written.
        let targets = tiles * 2 * 128 * 4;
        assert_share(&format!("statistics: {what}"), alone.bytes(), operands + statistics + targets, 1.02);
        assert_share(&format!("logits: {what}"), logits.bytes(), operands + statistics + targets + n * vocab * 4, 1.01);
        for launch in [losses_alone, losses] {
            assert_share("losses", launch.bytes(), statistics + n * (4 + 4 + 8 + 4), 1.05);
        }
        // Every fourth row is ignored: its logits are not read. Each of the eight warps of a row reads its softmax and its target.
        let of_rows = n * 8 * 2 * SECTOR;
        assert_eq!(gradient.bytes(), vocab * (4 * (n - n / 4) + 2 * n) + of_rows, "dx: {what}");
        let tiles = (n / 128) * (dim / 128);
        let of_parts = PARTS * n * dim * 4;
        let operands =
            tiles * (128 * vocab * 2 + adapter(false) + (vocab / 32 + 2 * PARTS - 1) * found) + n / 128 * weight;
        assert_eq!(parts.bytes(), operands + of_parts, "dh: {what}");
        assert_eq!(add.bytes(), of_parts + n * dim * 2, "{what}");
        if rank > 0 {
            let of_lora: Vec<&Counts> = launches.iter().filter(|launch| launch.kernel().starts_with("lora_")).collect();
            let [z_alone, z, u, d_a, add_a, d_b, add_b] = of_lora[..] else { unreachable!() };
            for (launch, features) in [(z_alone, dim), (z, dim), (u, vocab)] {
                assert_eq!(launch.bytes(), project_bytes(n, features, rank, 32), "{what}");
            }
            for (launch, add, features) in [(d_a, add_a, dim), (d_b, add_b, vocab)] {
                assert_eq!(launch.bytes(), gradient_bytes(n, features, rank, 128), "{what}");
                assert_eq!(add.bytes(), 3 * features * rank * 4, "{what}");
            }
        }
    }
    assert!(counts.next().is_none());
}

fn next(counts: &mut impl Iterator<Item = Counts>, kernel: &str) -> Counts {
    let launch = counts.next().expect("a launch for each");
    assert_eq!(launch.kernel(), kernel);
    launch
}
