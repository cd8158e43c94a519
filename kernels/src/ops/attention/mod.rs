//! Causal self-attention with grouped key/value heads (Dao et al., "FlashAttention-2", 2023: tiles of scores that live in
//! cache, a running softmax, and a backward that computes them again).
//!
//! For query i of head h, with keys and values of head g = ⌊h / (H/Hkv)⌋ of the same sequence:
//!
//! * s_ij = scale · q_i·k_j for the visible keys i − window < j ≤ i (without a window: j ≤ i)
//! * lse_i = ln Σ_j exp(s_ij), p_ij = exp(s_ij − lse_i), out_i = Σ_j p_ij v_j
//!
//! Backward, with δ_i = dout_i·out_i and ds_ij = p_ij (dout_i·v_j − δ_i):
//!
//! * dv_j = Σ_i p_ij dout_i, dk_j = scale · Σ_i ds_ij q_i (both over all query heads of the group),
//!   dq_i = scale · Σ_j ds_ij k_j
//!
//! No T×T matrix exists anywhere: forward leaves `out` and one number a query, `lse`.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Error, Result, expect_buffer};
use crate::simd::Isa;

/// What an attention is: its dimensions, its scale and what it can see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sequences, B.
    pub batch: usize,
    /// Tokens of a sequence, T.
    pub tokens: usize,
    /// Query heads, H; a multiple of `kv_heads`, at least one.
    pub heads: usize,
    /// Key and value heads, Hkv; query heads h·H/Hkv to (h+1)·H/Hkv share head h.
    pub kv_heads: usize,
    /// Features of a head, hd.
    pub head_dim: usize,
    /// Multiplies q·k; 1/√hd in the common models.
    pub scale: f32,
    /// Sees only the last so many keys, its own included (`sliding_window` of Mistral and Qwen2 configs).
    pub window: Option<usize>,
    /// What the CPU's products must keep. GPUs multiply in the operands' type.
    pub precision: Precision,
}

/// How exact products of f32 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As those of f32 are.
    F32,
    /// 16 bits of each factor or more, 2⁻¹⁵ of a product at most: for numbers that are themselves products with weights of
    /// 16 bits, which keep no more where the machine multiplies by [tiles](crate::simd).
    Bits16,
}

impl Precision {
    /// That of what is computed from products with weights of these types.
    pub fn of(weights: &[DType]) -> Precision {
        let bits16 = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
        if weights.iter().all(bits16) { Precision::Bits16 } else { Precision::F32 }
    }
}

/// The gradients that [`backward`] returns, of the shapes of q, k and v.
#[derive(Debug)]
pub struct Gradients {
    /// `[B·T, H·hd]`
    pub dq: Buffer,
    /// `[B·T, Hkv·hd]`
    pub dk: Buffer,
    /// `[B·T, Hkv·hd]`
    pub dv: Buffer,
}

impl Attention {
    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    fn query_len(&self) -> usize {
        self.rows() * self.heads * self.head_dim
    }

    fn key_len(&self) -> usize {
        self.rows() * self.kv_heads * self.head_dim
    }

    fn lse_len(&self) -> usize {
        self.rows() * self.heads
    }

    /// Scores that are computed: Σ_i min(i + 1, window) for each sequence and head.
    fn visible_pairs(&self) -> usize {
        let window = self.window.unwrap_or(self.tokens).min(self.tokens);
        let growing = window * (window + 1) / 2;
        (growing + (self.tokens - window) * window) * self.batch * self.heads
    }

    /// Floating-point operations of [`forward`]: two products of hd multiply-adds for each visible pair.
    pub fn forward_flops(&self) -> usize {
        4 * self.visible_pairs() * self.head_dim
    }

    /// Floating-point operations of [`backward`]: five products, of which one computes the scores again.
    pub fn backward_flops(&self) -> usize {
        10 * self.visible_pairs() * self.head_dim
    }

    fn check(&self, op: &'static str, q: &Buffer, k: &Buffer, v: &Buffer) -> Result<()> {
        let domain = |reason| Err(Error::Domain { op, reason });
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return domain(format!("{} query heads cannot share {} key/value heads evenly", self.heads, self.kv_heads));
        }
        if self.head_dim == 0 {
            return domain("the head dimension is 0, expected at least 1".to_owned());
        }
        if self.window == Some(0) {
            return domain("a sliding window of 0 keys sees nothing, expected at least 1 or none".to_owned());
        }
        if !self.scale.is_finite() {
            return domain(format!("the scale is {}, expected a finite number", self.scale));
        }
        let dtype = match (q.device().backend(), q.dtype()) {
            (Backend::Cuda, DType::F32 | DType::F16 | DType::BF16) => q.dtype(),
            (backend, _) => backend.compute_dtype(),
        };
        if q.device().backend() == Backend::Cuda {
            cuda::check(op, self)?;
        }
        expect_buffer(op, "q", q, dtype, self.query_len())?;
        expect_buffer(op, "k", k, dtype, self.key_len())?;
        expect_buffer(op, "v", v, dtype, self.key_len())
    }
}

/// One slot of workspace for each thread, and one more part that all share.
fn workspace(device: &Device, shared: usize, slot: usize) -> Result<Buffer> {
    device.cpu_workspace(shared + device.threads() * slot)
}

/// Attention's output `[B·T, H·hd]`, and for backward the log-sum-exp of each query's scores, f32 `[B, H, T]`.
///
/// `q` is `[B·T, H·hd]`, `k` and `v` are `[B·T, Hkv·hd]`, all of one type: f32 on the CPU, bf16, f16 or f32 on a GPU, where
/// probabilities and the gradients of scores are rounded to it before they are multiplied. Head h is columns h·hd to
/// (h+1)·hd.
///
/// # Errors
/// [`Error::Domain`] for heads that do not group, an empty head or window or a scale that is not finite; on a GPU also for
/// heads that are not a multiple of 8 features up to 128, sequences of more than 2²⁹ tokens and a scale that is not above 0;
/// [`Error::Length`] and [`Error::DType`] for an operand that does not fit; [`Error::OutOfMemory`].
pub fn forward(attention: &Attention, q: &Buffer, k: &Buffer, v: &Buffer) -> Result<(Buffer, Buffer)> {
    const OP: &str = "attention_forward";
    attention.check(OP, q, k, v)?;
    let device = q.device();
    let mut out = device.alloc(Category::Activations, q.dtype(), q.len())?;
    let mut lse = device.alloc(Category::Activations, DType::F32, attention.lse_len())?;
    let shared = cpu::forward::shared_len(Isa::best(), attention);
    let mut work = workspace(device, shared, cpu::forward::slot_len(Isa::best(), attention))?;
    let cost = Cost::new(
        OP,
        attention.forward_flops(),
        q.size_bytes() + k.size_bytes() + v.size_bytes(),
        out.size_bytes() + lse.size_bytes(),
    );
    if device.gpu().is_some() {
        device.launch(cost, |gpu| cuda::forward(gpu, attention, [q, k, v], &mut out, &mut lse))?;
        return Ok((out, lse));
    }
    device.run(cost, || {
        let (shared, slots) = work.f32_mut().split_at_mut(shared);
        let output = cpu::forward::Output { out: out.f32_mut(), lse: lse.f32_mut() };
        cpu::forward::forward(Isa::best(), attention, q.f32(), k.f32(), v.f32(), output, shared, slots);
    });
    Ok((out, lse))
}

/// The gradients of q, k and v from that of the output.
///
/// `out` and `lse` are what [`forward`] gave for the same `q`, `k` and `v`. `d_out` `[B·T, H·hd]` is taken by value: a
/// query's gradient replaces its output's gradient in place, so backward holds one activation less.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    attention: &Attention,
    d_out: Buffer,
    q: &Buffer,
    k: &Buffer,
    v: &Buffer,
    out: &Buffer,
    lse: &Buffer,
) -> Result<Gradients> {
    const OP: &str = "attention_backward";
    attention.check(OP, q, k, v)?;
    expect_buffer(OP, "d_out", &d_out, q.dtype(), q.len())?;
    expect_buffer(OP, "out", out, q.dtype(), q.len())?;
    expect_buffer(OP, "lse", lse, DType::F32, attention.lse_len())?;
    let device = q.device();
    let mut dq = d_out;
    let mut dk = device.alloc(Category::Activations, k.dtype(), k.len())?;
    let mut dv = device.alloc(Category::Activations, v.dtype(), v.len())?;
    let mut work = workspace(device, 0, cpu::backward::slot_len(Isa::best(), attention))?;
    let deltas = if device.backend() == Backend::Cuda { attention.lse_len() } else { 0 };
    let mut delta = device.alloc(Category::Workspace, DType::F32, deltas)?;
    let cost = Cost::new(
        OP,
        attention.backward_flops(),
        dq.size_bytes() + q.size_bytes() + k.size_bytes() + v.size_bytes() + out.size_bytes() + lse.size_bytes(),
        dq.size_bytes() + dk.size_bytes() + dv.size_bytes(),
    );
    if device.gpu().is_some() {
        let saved = cuda::Saved { q, k, v, out, lse };
        device.launch(cost, |gpu| cuda::backward(gpu, attention, &saved, &mut delta, &mut dq, &mut dk, &mut dv))?;
        return Ok(Gradients { dq, dk, dv });
    }
    device.run(cost, || {
        let saved = cpu::backward::Saved { q: q.f32(), k: k.f32(), v: v.f32(), out: out.f32(), lse: lse.f32() };
        let gradients = cpu::backward::Out { dq: dq.f32_mut(), dk: dk.f32_mut(), dv: dv.f32_mut() };
        cpu::backward::backward(Isa::best(), attention, saved, gradients, work.f32_mut());
    });
    Ok(Gradients { dq, dk, dv })
}
