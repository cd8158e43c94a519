//! What the virtual GPU counts, against what the shape asks for.

use kernels::DType;

use super::{Case, Shape, pass};
use crate::emulated::{Counts, assert_share};
use crate::linear::Kind;
use crate::support::gpu;

/// Whole tiles, and rows of one block of `head_gradient`.
const SHAPE: Shape = (256, 4096, 128, 0);
/// Of dh.
const PARTS: usize = 4;

#[test]
#[ignore = "needs a GPU"]
fn gpu_head_once() {
    pass(&gpu(), &Case::new(DType::BF16, Kind::Dense(DType::BF16), SHAPE), None);
    gpu().synchronize().unwrap();
}

#[test]
fn logits_are_written_and_read_once_and_only_for_gradients() {
    let counts = Counts::of("head_loss::counts::gpu_head_once");
    let (n, vocab, dim, _) = SHAPE;
    let [alone, losses_alone, logits, losses, gradient, parts, add, d_weight] = &counts[..] else {
        panic!("eight launches, not {}", counts.len())
    };
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
    }
    for launch in [alone, logits, parts, d_weight] {
        assert_eq!(launch.count("/tensor_fma") as usize, n * vocab * dim, "{}", launch.kernel());
    }
    let tiles = (n / 128) * (vocab / 128);
    let operands = tiles * (128 + 128) * dim * 2;
    let statistics = n * (vocab / 64) * 8;
    // Besides, each warp asks for its rows' targets, and a row's logit of its target is written.
    let targets = tiles * 4 * 64 * 4;
    assert_share("statistics", alone.bytes(), operands + statistics + targets, 1.02);
    assert_share("logits", logits.bytes(), operands + statistics + targets + n * vocab * 4, 1.01);
    for launch in [losses_alone, losses] {
        assert_share("losses", launch.bytes(), statistics + n * (4 + 4 + 8 + 4), 1.05);
    }
    // Every fourth row is ignored: its logits are not read.
    assert_share("dx", gradient.bytes(), vocab * (4 * (n - n / 4) + 2 * n), 1.03);
    let of_parts = PARTS * n * dim * 4;
    assert_eq!(parts.bytes(), (n / 128) * (128 + 128) * vocab * 2 + of_parts);
    assert_eq!(add.bytes(), of_parts + n * dim * 2);
}
