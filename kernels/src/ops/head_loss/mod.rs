//! The language-model head and the cross-entropy of its predictions, fused: the N×V logits never exist, only a few rows of
//! them at a time (the idea of Liger's fused linear cross-entropy).
//!
//! * logits x = h·Wᵀ + s·(h·Aᵀ)·Bᵀ `[N, V]`, where A `[r, D]` and B `[V, r]` are the head's adapter, if it has one
//! * loss_n = ln Σ_v exp(x_nv) − x_n,target(n), in nats; 0 for a row whose target is [`IGNORED`]
//!
//! and with g the gradient scale, dx_nv = g·(exp(x_nv)/Σ − [v = target(n)]), or 0 in an ignored row:
//!
//! * z = s·h·Aᵀ, u = s·dx·B, both `[N, r]`
//! * dh = dx·W + u·A, dA += uᵀ·h, dB += dxᵀ·z, dW += dxᵀ·h
//!
//! The gradient of a chunk of rows follows at once from the logits that its loss was read from, so the head is multiplied
//! twice for a step, and no third time to compute the logits again. On a GPU h may be bf16, f16 or f32, and without gradients
//! no logit ever leaves the registers that it was summed in.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use super::linear::Lora;
use crate::device::{Backend, Buffer, Category, Cost, DType, Device, Graph, Kept};
use crate::error::{Error, Result, expect_activations, expect_buffer, expect_len};
use crate::simd::Isa;
use crate::strips::STRIP;
use crate::weight::WeightRef;

/// The target of a row that has none: a pad, or the last token of a sequence.
pub const IGNORED: u32 = u32::MAX;

/// Bytes that one chunk's logits may take on the CPU.
///
/// Liger cuts N rows into about V/D chunks, so that the logits of one take as much memory as the hidden states. Here each
/// chunk also unpacks all V·D weights twice, which costs about as much as multiplying them with 20 rows by vectors, and more
/// of the faster products by matrix tiles: hundreds of rows are needed to make that small. 256 MiB is 1248 rows of OPT's 50 272 logits
/// and 480 of Llama 3's 128 256; a chunk is at least a strip, however large the vocabulary.
const CHUNK_BYTES: usize = 256 << 20;

/// The head: what turns hidden states into logits.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// W `[V, D]`.
    pub weight: WeightRef<'a>,
    /// Its adapter.
    pub lora: Option<Lora<'a>>,
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.weight.rows()
    }

    fn dim(&self) -> usize {
        self.weight.cols()
    }

    fn rank(&self) -> usize {
        self.lora.map_or(0, |lora| lora.rank)
    }

    fn size_bytes(&self) -> usize {
        self.weight.size_bytes() + self.lora.map_or(0, |lora| lora.a.size_bytes() + lora.b.size_bytes())
    }
}

/// Which gradients [`loss_and_gradients`] computes.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// g: what the sum of the losses is multiplied by; 1/(counted tokens · accumulated micro-batches) for a mean.
    pub scale: f32,
    /// Whether anything below the head needs dh.
    pub hidden: bool,
    /// dA `[r, D]` and dB `[V, r]`, f32, to be added to.
    pub lora: Option<(&'a mut Buffer, &'a mut Buffer)>,
    /// dW `[V, D]`, f32, to be added to.
    pub weight: Option<&'a mut Buffer>,
}

/// Each row's loss in nats, unscaled; on the device until it is read.
#[derive(Debug)]
pub struct RowLosses(Buffer);

impl RowLosses {
    fn new(device: &Device, n: usize) -> Result<RowLosses> {
        Ok(RowLosses(device.alloc(Category::Workspace, DType::F32, n)?))
    }

    /// Waits for them. On Meta all are 0.
    ///
    /// # Errors
    /// The GPU's.
    pub fn read(&self) -> Result<Vec<f32>> {
        if self.0.device().is_meta() { Ok(vec![0.0; self.0.len()]) } else { self.0.download() }
    }

    /// Waits for them, and adds them up.
    ///
    /// # Errors
    /// The GPU's.
    pub fn sum(&self) -> Result<f64> {
        Ok(sum(self.read()?))
    }

    /// Has the graph that is captured leave them for the host.
    ///
    /// # Errors
    /// The GPU's, and where nothing is captured.
    pub fn keep(&self) -> Result<Kept> {
        self.0.keep()
    }

    /// Waits for those that a graph left, and adds them up.
    ///
    /// # Errors
    /// The GPU's.
    pub fn sum_of(graph: &mut Graph, kept: Kept) -> Result<f64> {
        Ok(sum(graph.result(kept)?))
    }
}

fn sum(losses: Vec<f32>) -> f64 {
    losses.into_iter().map(f64::from).sum()
}

/// What [`loss_and_gradients`] returns.
#[derive(Debug)]
pub struct Losses {
    /// Each row's loss.
    pub rows: RowLosses,
    /// dh `[N, D]` where it was wanted, in h's element type.
    pub d_hidden: Option<Buffer>,
}

/// Each row's loss. `hidden` is h `[N, D]`, and `targets` has N ids below V, or [`IGNORED`].
///
/// # Errors
/// [`Error::Length`], [`Error::DType`] or [`Error::Domain`] for operands or targets that do not fit the head;
/// [`Error::OutOfMemory`].
pub fn loss(hidden: &Buffer, head: Head<'_>, targets: &[u32]) -> Result<RowLosses> {
    const OP: &str = "head_loss";
    check(OP, hidden, &head, targets)?;
    let n = targets.len();
    let losses = RowLosses::new(hidden.device(), n)?;
    let cost = Cost::new(OP, forward_flops(n, &head), least_read(hidden, &head, targets), 4 * n);
    run(cost, None, hidden, head, targets, losses, None)
}

/// Each row's loss, and the gradients that are wanted of `wanted.scale` · their sum. Operands are those of [`loss`].
///
/// # Errors
/// As [`loss`]; also [`Error::Domain`] where the adapter's gradients are wanted of a head without one.
pub fn loss_and_gradients(hidden: &Buffer, head: Head<'_>, targets: &[u32], wanted: Wanted<'_>) -> Result<Losses> {
    loss_and_gradients_within(None, hidden, head, targets, wanted)
}

/// [`loss_and_gradients`] in chunks that take at most so many bytes: for tests, to which several of the usual ones are too much.
#[doc(hidden)]
pub fn loss_and_gradients_within(
    chunk_bytes: Option<usize>,
    hidden: &Buffer,
    head: Head<'_>,
    targets: &[u32],
    mut wanted: Wanted<'_>,
) -> Result<Losses> {
    const OP: &str = "head_loss_and_gradients";
    check(OP, hidden, &head, targets)?;
    check_wanted(OP, &head, &wanted)?;
    let device = hidden.device();
    let mut d_hidden = match wanted.hidden {
        true => Some(device.alloc(Category::Activations, hidden.dtype(), hidden.len())?),
        false => None,
    };
    let rows = RowLosses::new(device, targets.len())?;
    let cost = gradient_cost(OP, hidden, &head, targets, &wanted);
    let gradients = Gradients {
        scale: wanted.scale,
        hidden: d_hidden.as_mut(),
        lora: wanted.lora.as_mut().map(|(d_a, d_b)| (&mut **d_a, &mut **d_b)),
        weight: wanted.weight.as_deref_mut(),
    };
    let rows = run(cost, chunk_bytes, hidden, head, targets, rows, Some(gradients))?;
    Ok(Losses { rows, d_hidden })
}

/// Where gradients go; see [`Wanted`].
struct Gradients<'a> {
    scale: f32,
    hidden: Option<&'a mut Buffer>,
    lora: Option<(&'a mut Buffer, &'a mut Buffer)>,
    weight: Option<&'a mut Buffer>,
}

/// Both operations, of checked operands.
fn run(
    cost: Cost,
    chunk_bytes: Option<usize>,
    hidden: &Buffer,
    head: Head<'_>,
    targets: &[u32],
    mut losses: RowLosses,
    gradients: Option<Gradients<'_>>,
) -> Result<RowLosses> {
    let device = hidden.device();
    if device.backend() == Backend::Cuda {
        let wanted = gradients.as_ref().map(|wanted| (wanted.hidden.is_some(), wanted.lora.is_some()));
        let mut work = cuda::Work::alloc(hidden, &head, targets, wanted, chunk_bytes.unwrap_or(cuda::CHUNK_BYTES))?;
        if device.gpu().is_some() {
            device.launch(cost, |gpu| cuda::run(gpu, hidden, head, &mut losses.0, gradients, &mut work))?;
        } else {
            device.run(cost, || ());
        }
        return Ok(losses);
    }
    let chunk = chunk_rows(targets.len(), 4 * head.vocab(), chunk_bytes.unwrap_or(CHUNK_BYTES), STRIP);
    let isa = Isa::best();
    let mut scratch = Scratch::new(device, isa, &head, (targets.len(), chunk), gradients.is_some())?;
    device.run(cost, || {
        let gradients = gradients.map(|wanted| cpu::Gradients {
            scale: wanted.scale,
            hidden: wanted.hidden.map(Buffer::f32_mut),
            lora: wanted.lora.map(|(d_a, d_b)| (d_a.f32_mut(), d_b.f32_mut())),
            weight: wanted.weight.map(Buffer::f32_mut),
        });
        cpu::run(isa, hidden.f32(), head, targets, losses.0.f32_mut(), gradients, scratch.parts());
    });
    Ok(losses)
}

/// Rows of a chunk: what `bytes` allow in whole units, evened out so that the last chunk is no rest.
fn chunk_rows(n: usize, row_bytes: usize, bytes: usize, unit: usize) -> usize {
    let most = (bytes / row_bytes.max(1) / unit).max(1);
    let units = n.div_ceil(unit).max(1);
    (units.div_ceil(units.div_ceil(most)) * unit).min(n.max(1))
}

/// Everything that lives within the operation on the CPU.
struct Scratch {
    chunk: usize,
    /// x, then dx, f32 `[chunk, V]`.
    logits: Buffer,
    /// z, then u, f32 `[chunk, r]` each.
    low_rank: Buffer,
    /// What the CPU's products need.
    work: Buffer,
}

impl Scratch {
    fn new(device: &Device, isa: Isa, head: &Head<'_>, (n, chunk): (usize, usize), gradients: bool) -> Result<Scratch> {
        Ok(Scratch {
            chunk,
            logits: device.alloc(Category::Workspace, DType::F32, chunk * head.vocab())?,
            low_rank: device.alloc(Category::Workspace, DType::F32, 2 * chunk * head.rank())?,
            work: device.cpu_workspace(cpu::work_len(isa, n, chunk, head, gradients))?,
        })
    }

    fn parts(&mut self) -> cpu::Scratch<'_> {
        let half = self.low_rank.len() / 2;
        let (z, u) = self.low_rank.f32_mut().split_at_mut(half);
        cpu::Scratch { chunk: self.chunk, logits: self.logits.f32_mut(), z, u, work: self.work.f32_mut() }
    }
}

/// Bytes of the operands, each read once.
fn least_read(hidden: &Buffer, head: &Head<'_>, targets: &[u32]) -> usize {
    hidden.size_bytes() + head.size_bytes() + size_of_val(targets)
}

fn forward_flops(n: usize, head: &Head<'_>) -> usize {
    head.weight.product_flops(n) + 2 * n * head.rank() * (head.dim() + head.vocab())
}

fn gradient_cost(op: &'static str, hidden: &Buffer, head: &Head<'_>, targets: &[u32], wanted: &Wanted<'_>) -> Cost {
    let n = targets.len();
    let (down, up) = (2 * n * head.rank() * head.dim(), 2 * n * head.rank() * head.vocab());
    let mut flops = forward_flops(n, head);
    let mut updated = 0;
    if wanted.hidden {
        flops += head.weight.product_flops(n) + down;
    }
    if wanted.hidden || wanted.lora.is_some() {
        flops += up;
    }
    if let Some((d_a, d_b)) = &wanted.lora {
        flops += down + up;
        updated += d_a.size_bytes() + d_b.size_bytes();
    }
    if let Some(d_w) = &wanted.weight {
        flops += head.weight.product_flops(n);
        updated += d_w.size_bytes();
    }
    let written = 4 * n + if wanted.hidden { hidden.size_bytes() } else { 0 };
    Cost::new(op, flops, least_read(hidden, head, targets) + updated, written + updated)
}

fn check(op: &'static str, hidden: &Buffer, head: &Head<'_>, targets: &[u32]) -> Result<()> {
    let (vocab, dim) = (head.vocab(), head.dim());
    expect_activations(op, "h", hidden)?;
    expect_len(op, "h", hidden.len(), targets.len() * dim)?;
    if let Some(lora) = &head.lora {
        expect_buffer(op, "A", lora.a, DType::F32, lora.rank * dim)?;
        expect_buffer(op, "B", lora.b, DType::F32, vocab * lora.rank)?;
    }
    if let WeightRef::Trainable { value, .. } = head.weight {
        expect_buffer(op, "W", value, DType::F32, vocab * dim)?;
    }
    if let WeightRef::Adapted(adapted) = head.weight {
        adapted.check_on_cpu(op)?;
    }
    match targets.iter().position(|target| *target != IGNORED && *target as usize >= vocab) {
        None => Ok(()),
        Some(row) => {
            let reason = format!("the target of row {row} is {}, expected an id below {vocab}", targets[row]);
            Err(Error::Domain { op, reason })
        }
    }
}

fn check_wanted(op: &'static str, head: &Head<'_>, wanted: &Wanted<'_>) -> Result<()> {
    if let Some((d_a, d_b)) = &wanted.lora {
        let Some(lora) = &head.lora else {
            let reason = "dA and dB are wanted of a head without an adapter".to_owned();
            return Err(Error::Domain { op, reason });
        };
        expect_buffer(op, "dA", d_a, DType::F32, lora.rank * head.dim())?;
        expect_buffer(op, "dB", d_b, DType::F32, head.vocab() * lora.rank)?;
    }
    wanted.weight.as_ref().map_or(Ok(()), |d_w| expect_buffer(op, "dW", d_w, DType::F32, head.vocab() * head.dim()))
}
