//! One pass of each operation at a size that shows its traffic. On a GPU that does not count they prove nothing;
//! `emulated` holds what the virtual one counts against what the shapes ask for.

use kernels::DType;

use crate::support::gpu;
use crate::{adamw, attention, layer_norm, linear};

pub const ADAMW_SIZES: [usize; 4] = [40_000, 12_288, 768, 65_537];
/// Rows and features.
pub const LAYER_NORM: (usize, usize) = (16_384, 512);
/// Tokens, heads of queries and of keys, features of a head: two tiles.
pub const ATTENTION: (usize, (usize, usize), usize) = (256, (2, 1), 64);
/// Rows, input and output features: whole tiles.
pub const LINEAR: (usize, usize, usize) = (256, 512, 384);

#[test]
#[ignore = "needs a GPU"]
fn gpu_adamw_once() {
    adamw::steps(&gpu(), &ADAMW_SIZES, 1);
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_layer_norm_once() {
    layer_norm::pass(&gpu(), DType::BF16, LAYER_NORM.0, LAYER_NORM.1);
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_linear_once() {
    linear::pass(&gpu(), DType::BF16, LINEAR);
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_once() {
    let (tokens, heads, dim) = ATTENTION;
    attention::pass(&gpu(), DType::BF16, &attention::attention(1, tokens, heads, dim));
    gpu().synchronize().unwrap();
}
