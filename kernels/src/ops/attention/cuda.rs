//! The GPU's attention: which kernel takes which heads, and how a tile is laid over a block.

use super::Attention;
use crate::device::{Buffer, DType, Gpu, Launch, Source};
use crate::error::{Error, Result};

static BF16: Source = Source { name: "attention_bf16", ptx: include_str!("../../../ptx/attention_bf16.ptx") };
static F16: Source = Source { name: "attention_f16", ptx: include_str!("../../../ptx/attention_f16.ptx") };
static F32: Source = Source { name: "attention_f32", ptx: include_str!("../../../ptx/attention_f32.ptx") };

/// Features of the largest head.
const MAX_HEAD: usize = 128;
/// Heads are multiples of so many features, for copies of 16 bytes.
const CHUNK: usize = 8;
/// Tokens of a sequence at most: the kernels' `int` holds a token, a window and a tile together.
const MAX_TOKENS: usize = 1 << 29;
/// As in delta.cuh: threads, and tokens, of a block.
const DELTA_TOKENS: usize = 128;

/// How a kernel lays its rows over blocks.
struct Tile {
    /// Tokens of a block.
    tokens: usize,
    threads: usize,
    /// Bytes of shared memory.
    shared: usize,
}

/// The kernels for one element type and size of heads.
struct Kernels {
    source: &'static Source,
    forward: (&'static str, Tile),
    delta: &'static str,
    key_gradients: (&'static str, Tile),
    query_gradients: (&'static str, Tile),
}

/// For 16 bits, as in forward.cuh and backward.cuh: heads of up to `$head` features.
macro_rules! on_tensor_cores {
    ($source:ident, $type:literal, $head:literal) => {
        Kernels {
            source: &$source,
            forward: (concat!("attention_forward_", $type, "_", $head), forward_tile($head)),
            delta: concat!("attention_delta_", $type),
            key_gradients: (concat!("attention_key_gradients_", $type, "_", $head), key_tile($head)),
            query_gradients: (concat!("attention_query_gradients_", $type, "_", $head), query_tile($head)),
        }
    };
}

/// As in forward.cuh: queries, and two stages of keys and values.
fn forward_tile(head: usize) -> Tile {
    let keys = if head > 64 { 32 } else { 64 };
    Tile { tokens: 128, threads: 128, shared: (128 + 2 * 2 * keys) * head * 2 }
}

/// As in backward.cuh: keys and values, and two stages of queries and their outputs' gradients and statistics.
fn key_tile(head: usize) -> Tile {
    let queries = if head == 80 { 64 } else { 32 };
    let stage = 2 * queries * head * 2 + 2 * queries * 4;
    Tile { tokens: 128, threads: backward_threads(head), shared: 2 * 128 * head * 2 + 2 * stage }
}

/// As in backward.cuh: queries and their outputs' gradients, in whose place come two stages of keys and values.
fn query_tile(head: usize) -> Tile {
    let keys = if head > 64 { 64 } else { 32 };
    Tile { tokens: 128, threads: backward_threads(head), shared: 2 * (128 * head * 2).max(2 * keys * head * 2) }
}

fn backward_threads(head: usize) -> usize {
    if head > 64 { 256 } else { 128 }
}

/// As in attention_f32.cu: `rows` rows of shared memory.
fn plain_tile(rows: usize, head: usize) -> Tile {
    Tile { tokens: 16, threads: 128, shared: rows * (head + 1) * 4 }
}

impl Kernels {
    fn of(dtype: DType, head: usize) -> Kernels {
        match (dtype, head) {
            (DType::BF16, ..=64) => on_tensor_cores!(BF16, "bf16", 64),
            (DType::BF16, ..=80) => on_tensor_cores!(BF16, "bf16", 80),
            (DType::BF16, ..=96) => on_tensor_cores!(BF16, "bf16", 96),
            (DType::BF16, _) => on_tensor_cores!(BF16, "bf16", 128),
            (DType::F16, ..=64) => on_tensor_cores!(F16, "f16", 64),
            (DType::F16, ..=80) => on_tensor_cores!(F16, "f16", 80),
            (DType::F16, ..=96) => on_tensor_cores!(F16, "f16", 96),
            (DType::F16, _) => on_tensor_cores!(F16, "f16", 128),
            _ => Kernels {
                source: &F32,
                forward: ("attention_forward_f32", plain_tile(16 + 2 * 32, head)),
                delta: "attention_delta_f32",
                key_gradients: ("attention_key_gradients_f32", plain_tile(2 * 16 + 2 * 32, head)),
                query_gradients: ("attention_query_gradients_f32", plain_tile(2 * 16 + 2 * 32, head)),
            },
        }
    }
}

/// Refuses what the kernels do not take.
pub(super) fn check(op: &'static str, attention: &Attention) -> Result<()> {
    let Attention { tokens, heads, kv_heads, head_dim, scale, .. } = *attention;
    let domain = |reason| Err(Error::Domain { op, reason });
    if head_dim > MAX_HEAD || !head_dim.is_multiple_of(CHUNK) {
        return domain(format!("heads of {head_dim} features, a GPU takes multiples of {CHUNK} up to {MAX_HEAD}"));
    }
    if tokens > MAX_TOKENS {
        return domain(format!("sequences of {tokens} tokens, a GPU takes {MAX_TOKENS}"));
    }
    if heads.max(kv_heads) * head_dim > i32::MAX as usize {
        return domain(format!("{heads} heads of {head_dim} features, a GPU counts {} features", i32::MAX));
    }
    // The kernels find the largest score as the largest product, times log₂ e · scale, which must not vanish.
    if !(scale > 0.0 && (scale * std::f32::consts::LOG2_E).is_normal()) {
        return domain(format!("the scale is {scale}, a GPU takes normal numbers above 0"));
    }
    Ok(())
}

impl Attention {
    /// `Shape` of layout.cuh; `check` has seen that its numbers fit.
    fn words(&self) -> [u32; 6] {
        let window = self.window.map_or(self.tokens, |window| window.min(self.tokens));
        let [tokens, heads, kv_heads, features, window] =
            [self.tokens, self.heads, self.kv_heads, self.head_dim, window].map(|n| n as u32);
        [tokens, heads, kv_heads, features, window, self.scale.to_bits()]
    }

    /// One block for each tile of `tokens` tokens of each of `heads` heads.
    fn blocks(&self, tokens: usize, heads: usize) -> usize {
        self.tokens.div_ceil(tokens) * self.batch * heads
    }

    fn launch<'a>(
        &self,
        gpu: &'a Gpu,
        source: &'static Source,
        (name, tile): &(&'static str, Tile),
        heads: usize,
    ) -> Result<Launch<'a>> {
        let launch = gpu.launch(source, name)?.grid([self.blocks(tile.tokens, heads), 1, 1]);
        Ok(launch.block([tile.threads, 1, 1]).shared(tile.shared))
    }
}

pub(super) fn forward(
    gpu: &Gpu,
    attention: &Attention,
    [q, k, v]: [&Buffer; 3],
    out: &mut Buffer,
    lse: &mut Buffer,
) -> Result<()> {
    if q.is_empty() {
        return Ok(());
    }
    let kernels = Kernels::of(q.dtype(), attention.head_dim);
    let launch = attention
        .launch(gpu, kernels.source, &kernels.forward, attention.heads)?
        .read(q)
        .read(k)
        .read(v)
        .value(attention.words())
        .write(out)
        .write(lse);
    // SAFETY: `mod.rs` checks lengths and element types against the dimensions, `check` that the kernels count so far. A
    // block writes its own rows of `out` and `lse`.
    Ok(unsafe { launch.run() }?)
}

/// What backward reads of forward.
pub(super) struct Saved<'a> {
    pub q: &'a Buffer,
    pub k: &'a Buffer,
    pub v: &'a Buffer,
    pub out: &'a Buffer,
    pub lse: &'a Buffer,
}

/// `dq` comes as dout. `delta` is f32 `[B, H, T]`.
pub(super) fn backward(
    gpu: &Gpu,
    attention: &Attention,
    saved: &Saved<'_>,
    delta: &mut Buffer,
    dq: &mut Buffer,
    dk: &mut Buffer,
    dv: &mut Buffer,
) -> Result<()> {
    if dq.is_empty() {
        return Ok(());
    }
    let Attention { heads, kv_heads, .. } = *attention;
    let kernels = Kernels::of(dq.dtype(), attention.head_dim);
    let launch = gpu
        .launch(kernels.source, kernels.delta)?
        .grid([attention.blocks(DELTA_TOKENS, heads), 1, 1])
        .block([DELTA_TOKENS, 1, 1])
        .read(dq)
        .read(saved.out)
        .value(attention.words())
        .write(delta);
    // SAFETY: as in `forward`; delta has a number for each query.
    unsafe { launch.run() }?;
    let launch = attention
        .launch(gpu, kernels.source, &kernels.key_gradients, kv_heads)?
        .read(dq)
        .read(saved.q)
        .read(saved.k)
        .read(saved.v)
        .read(saved.lse)
        .read(delta)
        .value(attention.words())
        .write(dk)
        .write(dv);
    // SAFETY: as in `forward`.
    unsafe { launch.run() }?;
    let launch = attention
        .launch(gpu, kernels.source, &kernels.query_gradients, heads)?
        .read(dq)
        .read(saved.q)
        .read(saved.k)
        .read(saved.v)
        .read(saved.lse)
        .read(delta)
        .value(attention.words())
        .write(dq);
    // SAFETY: as in `forward`; a block reads its rows of dout before it writes them as dq, and no other reads them.
    Ok(unsafe { launch.run() }?)
}
