//! One pass of each operation at a size that shows its traffic. On a GPU that does not count they prove nothing;
//! `emulated` holds what the virtual one counts against what the shapes ask for.

use kernels::DType;

use crate::support::gpu;
use crate::{
    activation, adamw, add, attention, bias_gradient, embedding, layer_norm, pack, pack_two_four, rms_norm, rotary,
    select,
};

pub const ADAMW_SIZES: [usize; 4] = [40_000, 12_288, 768, 65_537];
/// Rows and features: a large and a small batch.
pub const NORMS: [(usize, usize); 2] = [(16_384, 512), (2048, 768)];
/// Elements.
pub const POINTWISE: usize = 1 << 17;
/// Rows and features.
pub const BIAS: (usize, usize) = (2048, 768);
pub const ROTARY: rotary::Shape = rotary::Shape { rows: 512, tokens: 128, heads: 12, head_dim: 64, pairs: 32 };
/// Vocabulary, features, tokens, tokens of a sequence.
pub const EMBEDDING: (usize, usize, usize, usize) = (3000, 256, 1024, 128);
/// Tokens, heads of queries and of keys, features of a head: two tiles, for each of the kernels.
pub const ATTENTION: (usize, (usize, usize), [usize; 4]) = (256, (2, 1), [64, 80, 96, 128]);

#[test]
#[ignore = "needs a GPU"]
fn gpu_adamw_once() {
    adamw::steps(&gpu(), &ADAMW_SIZES, 1);
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_norms_once() {
    for (rows, cols) in NORMS {
        layer_norm::pass(&gpu(), DType::BF16, rows, cols);
        rms_norm::pass(&gpu(), DType::BF16, rows, cols);
    }
    gpu().synchronize().unwrap();
}

/// Rows and features, in all types, of rows that are no whole vectors: they begin anywhere in a sector.
pub const ODD: (usize, usize) = (2048, 771);
/// Turned features are whole vectors, heads are not.
pub const ODD_ROTARY: rotary::Shape = rotary::Shape { rows: 512, tokens: 128, heads: 4, head_dim: 67, pairs: 32 };
pub const ODD_EMBEDDING: (usize, usize, usize, usize) = (3000, 259, 1024, 128);

#[test]
#[ignore = "needs a GPU"]
fn gpu_odd_rows_once() {
    let (rows, cols) = ODD;
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        layer_norm::pass(&gpu(), dtype, rows, cols);
        rms_norm::pass(&gpu(), dtype, rows, cols);
        bias_gradient::pass(&gpu(), dtype, rows, cols);
        rotary::pass(&gpu(), dtype, ODD_ROTARY, kernels::ops::rotary::Direction::Forward);
    }
    let (vocab, cols, n, tokens) = ODD_EMBEDDING;
    embedding::pass(&gpu(), (vocab, cols), n, tokens);
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_maps_once() {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        activation::pass(&gpu(), dtype, POINTWISE);
        add::pass(&gpu(), dtype, POINTWISE);
        bias_gradient::pass(&gpu(), dtype, BIAS.0, BIAS.1);
        rotary::pass(&gpu(), dtype, ROTARY, kernels::ops::rotary::Direction::Forward);
    }
    let (vocab, cols, n, tokens) = EMBEDDING;
    embedding::pass(&gpu(), (vocab, cols), n, tokens);
    adamw::masked(&gpu(), POINTWISE);
    gpu().synchronize().unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_once() {
    let (tokens, heads, dims) = ATTENTION;
    for dim in dims {
        attention::pass(&gpu(), DType::BF16, &attention::attention(1, tokens, heads, dim));
    }
    attention::pass(&gpu(), DType::F32, &attention::attention(1, tokens, heads, dims[0]));
    gpu().synchronize().unwrap();
}

/// Rows and features of a matrix whose mask is chosen.
pub const SELECT: (usize, usize) = (512, 1024);
/// Rows that no block copies.
pub const LONG_ROWS: usize = 4;

#[test]
#[ignore = "needs a GPU"]
fn gpu_select_once() {
    for dtype in [DType::BF16, DType::F32] {
        select::pass(&gpu(), dtype, SELECT.0, SELECT.1);
    }
    for dtype in [DType::BF16, DType::F32] {
        select::long_rows(&gpu(), dtype, LONG_ROWS, 2 * select::COPIED / dtype.size());
    }
    gpu().synchronize().unwrap();
}

/// Rows and features of a matrix that is packed.
pub const PACK: (usize, usize) = (256, 1024);

#[test]
#[ignore = "needs a GPU"]
fn gpu_pack_once() {
    for dtype in [DType::BF16, DType::F32] {
        pack::pass(&gpu(), dtype, PACK.0, PACK.1);
    }
    pack_two_four::pass(&gpu(), PACK.0, PACK.1);
    gpu().synchronize().unwrap();
}
