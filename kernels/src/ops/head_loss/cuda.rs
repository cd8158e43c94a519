//! The GPU's head and loss: for each chunk of rows its logits' statistics, the losses, and the gradients in order.
//!
//! The products are ours, and end in the statistics. With [`Gemm::Cublas`] those of a step without an adapter are cuBLASLt's:
//! logits then go through memory once more, 4 bytes each.

use super::{Gradients, Head, chunk_rows};
use crate::device::{Buffer, Category, CudaResult, DType, Device, Feed, Gemm, Gpu, Launch, Source, Span};
use crate::error::Result;
use crate::ops::cuda::kernel_name;
use crate::ops::linear::Lora;
use crate::ops::linear::cuda::library::{self, Library};
use crate::ops::linear::cuda::plain::{self, Side, Target};
use crate::ops::linear::cuda::products::{ANY_BF16, ANY_F16, DENSE_BF16, Kernel, TILE_N, project};
use crate::ops::linear::cuda::{Shape, Weight, is_plain, lora_gradients, parts_len, weight_gradient};

static KERNELS: Source = Source { name: "head_loss", ptx: include_str!("../../../ptx/head_loss.ptx") };

const DENSE: Kernel =
    Kernel { source: &KERNELS, forward: "head_logits_bf16", backward_input: "head_hidden_gradient_bf16", ..DENSE_BF16 };
const BF16: Kernel = Kernel {
    source: &KERNELS,
    forward: "head_any_logits_bf16",
    backward_input: "head_any_hidden_gradient_bf16",
    ..ANY_BF16
};
const F16: Kernel = Kernel {
    source: &KERNELS,
    forward: "head_any_logits_f16",
    backward_input: "head_any_hidden_gradient_f16",
    ..ANY_F16
};

/// As in head_loss.cu.
const COLUMNS: usize = 64;
const THREADS: usize = 256;
const TURNS: usize = 4;
const SCALE: f32 = 256.0;
/// Rows of the blocks of `head_losses`, and threads that share one.
const LOSS_ROWS: usize = 32;

/// Rows of a tile, the unit of chunks.
const ROWS: usize = DENSE.tile_m;
/// What a chunk's logits, their gradient and their statistics may take. Each chunk reads all of W twice, which its rows'
/// products must outweigh: 256 MiB are 768 rows of OPT's 50 272 logits, and 256 of Llama 3's 128 256.
pub(super) const CHUNK_BYTES: usize = 256 << 20;
/// Blocks that fill a GPU of today, twice for each SM: what the parts of dh are for.
const BLOCKS: usize = 256;
/// Entries of the vocabulary that are worth a part: a tile reads four times the bytes for them that its sums take.
const LEAST_PART: usize = 1024;

/// Everything that lives within the operation.
pub(super) struct Work {
    chunk: usize,
    /// u32 `[N]`
    targets: Buffer,
    /// f32 `[chunk, V]`, or nothing where no one reads them.
    logits: Buffer,
    /// dx `[chunk, V]` in h's element type, or nothing where they take the logits' place.
    d_logits: Buffer,
    /// f32 `[⌈V / 64⌉, chunk, 2]`
    statistics: Buffer,
    /// f32 `[chunk]`
    of_targets: Buffer,
    /// f32 `[chunk, 2]`
    softmax: Buffer,
    /// f32 `[chunk, r]` each.
    z: Buffer,
    u: Buffer,
    /// f32 `[parts, chunk, D]`
    parts: Buffer,
    count: usize,
    /// What the adapter's gradients need.
    of_lora: Buffer,
    /// Where the products are cuBLASLt's.
    library: Option<Library>,
}

impl Work {
    /// `gradients`: whether any are wanted; dh, and those of the adapter.
    pub fn alloc(
        hidden: &Buffer,
        head: &Head<'_>,
        targets: &[u32],
        gradients: Option<(bool, bool)>,
        chunk_bytes: usize,
    ) -> Result<Work> {
        let device = hidden.device();
        let (vocab, dim, rank) = (head.vocab(), head.dim(), head.rank());
        let plain = is_plain(hidden.dtype(), &[dim, vocab]);
        let by_library = gradients.is_some() && is_by_library(device, hidden.dtype(), head, targets.len());
        // Tensor cores' logits are kept for their gradient only, which has a place of its own.
        let kept = if plain || gradients.is_some() { vocab } else { 0 };
        let beside = if !plain && gradients.is_some() { vocab } else { 0 };
        let statistics = 2 * vocab.div_ceil(COLUMNS);
        let row_bytes = 4 * (kept + statistics) + hidden.dtype().size() * beside;
        let chunk = chunk_rows(targets.len(), row_bytes, chunk_bytes, ROWS);
        let (of_hidden, of_lora) = gradients.unwrap_or_default();
        let count = parts(chunk, dim, vocab);
        let part = if of_hidden && !plain && !by_library { chunk * dim } else { 0 };
        let shape = Shape { n: chunk, cols: dim, rows: vocab };
        let of_lora = if of_lora { parts_len(hidden.dtype(), shape, rank) } else { 0 };
        let f32s = |len| device.alloc(Category::Workspace, DType::F32, len);
        Ok(Work {
            chunk,
            targets: device.upload_feed(Feed::Targets, Category::Workspace, targets)?,
            logits: f32s(chunk * kept)?,
            d_logits: device.alloc(Category::Workspace, hidden.dtype(), chunk * beside)?,
            statistics: f32s(chunk * statistics)?,
            of_targets: f32s(chunk)?,
            softmax: f32s(2 * chunk)?,
            z: f32s(chunk * rank)?,
            u: f32s(chunk * rank)?,
            parts: f32s(count * part)?,
            count,
            of_lora: f32s(of_lora)?,
            library: by_library.then(|| Library::alloc(device, hidden.dtype(), head.weight, None)).transpose()?,
        })
    }
}

fn is_by_library(device: &Device, dtype: DType, head: &Head<'_>, n: usize) -> bool {
    device.gemm() == Gemm::Cublas && head.lora.is_none() && library::takes(device, dtype, head.weight, n)
}

/// How many parts of the vocabulary dh is summed from.
fn parts(rows: usize, dim: usize, vocab: usize) -> usize {
    let tiles = rows.div_ceil(ROWS) * dim.div_ceil(TILE_N);
    (BLOCKS / tiles.max(1)).min(vocab / LEAST_PART).max(1)
}

/// As in head_loss.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Logits {
    logits: u64,
    statistics: u64,
    of_targets: u64,
    targets: u64,
    rows: i32,
    vocab: i32,
}

/// Fills `losses`, and the gradients where they are asked for.
pub(super) fn run(
    gpu: &Gpu,
    hidden: &Buffer,
    head: Head<'_>,
    losses: &mut Buffer,
    mut gradients: Option<Gradients<'_>>,
    work: &mut Work,
) -> Result<()> {
    let n = losses.len();
    let weight = Weight::of(head.weight)?;
    let kernel = match (hidden.dtype(), weight, weight.dtype()) {
        (DType::BF16, Weight::Dense(_), DType::BF16) => &DENSE,
        (DType::BF16, ..) => &BF16,
        _ => &F16,
    };
    let plain = is_plain(hidden.dtype(), &[head.dim(), head.vocab()]);
    if let Some(library) = &mut work.library {
        library.load(gpu, head.weight)?;
    }
    for first in (0..n).step_by(work.chunk) {
        let rows = work.chunk.min(n - first);
        let hidden = Span { buffer: hidden, first: first * head.dim() };
        let chunk = Chunk { gpu, head, weight, kernel: (!plain).then_some(kernel), first, rows, hidden };
        chunk.logits(work)?;
        chunk.losses(losses, work)?;
        if let Some(gradients) = &mut gradients {
            chunk.gradients(gradients, work)?;
        }
    }
    Ok(())
}

/// A few rows of h.
struct Chunk<'a> {
    gpu: &'a Gpu,
    head: Head<'a>,
    weight: Weight<'a>,
    /// For tensor cores; none for plain multiply-adds.
    kernel: Option<&'static Kernel>,
    first: usize,
    rows: usize,
    /// From its first row on.
    hidden: Span<'a>,
}

impl Chunk<'_> {
    /// The statistics of logits = h·Wᵀ + z·Bᵀ with z = s·h·Aᵀ; themselves where they have a place.
    fn logits(&self, work: &mut Work) -> Result<()> {
        let Chunk { gpu, head, rows, hidden, .. } = *self;
        let (vocab, dim, rank) = (head.vocab(), head.dim(), head.rank());
        if let Some(lora) = head.lora {
            project(gpu, (rows, dim), hidden, (lora.a, false), lora, &mut work.z)?;
        }
        let to = Logits {
            logits: gpu.address(&work.logits)?,
            statistics: gpu.address(&work.statistics)?,
            of_targets: gpu.address(&work.of_targets)?,
            targets: gpu.address_of(self.targets(work))?,
            rows: rows as i32,
            vocab: vocab as i32,
        };
        let shape = self.shape();
        let launch = match (self.kernel, &mut work.library) {
            (_, Some(library)) => {
                library.forward(gpu, shape, hidden, head.weight, None, &mut work.logits)?;
                self.statistics()?
            }
            (Some(kernel), None) => kernel
                .launch(gpu, kernel.forward, (rows, vocab), hidden, self.weight)?
                .read_or_null(head.lora.map(|_| &work.z))
                .read_or_null(head.lora.map(|lora| lora.b))
                .dimension("of the rank", rank)
                .dimension("features", dim),
            (None, None) => {
                let x = Side::rows(gpu, hidden, dim)?;
                let adapter = head.lora.map(|lora| [Side::rows(gpu, &work.z, rank), Side::rows(gpu, lora.b, rank)]);
                let target = Target::set(gpu, &mut work.logits, vocab)?;
                let weight = (self.weight, dim, false);
                plain::product(gpu, (rows, vocab, dim), x, weight, plain::both(adapter)?, (rank, 1.0), None, target)?;
                self.statistics()?
            }
        };
        // SAFETY: `mod.rs` checks every operand against the head's shape; `Work` has room for a chunk.
        Ok(unsafe { launch.value(to).run() }?)
    }

    /// A launch that reads the statistics from logits that are there.
    fn statistics(&self) -> CudaResult<Launch<'_>> {
        let warps = self.rows * self.head.vocab().div_ceil(COLUMNS);
        let launch = self.gpu.launch(&KERNELS, "head_statistics")?;
        Ok(launch.grid([warps.div_ceil(THREADS / 32), 1, 1]).block([THREADS, 1, 1]))
    }

    fn shape(&self) -> Shape {
        Shape { n: self.rows, cols: self.head.dim(), rows: self.head.vocab() }
    }

    fn losses(&self, losses: &mut Buffer, work: &mut Work) -> Result<()> {
        let launch = self
            .gpu
            .launch(&KERNELS, "head_losses")?
            .grid([self.rows.div_ceil(LOSS_ROWS), 1, 1])
            .block([LOSS_ROWS, LOSS_ROWS, 1])
            .read(&work.statistics)
            .dimension("statistics", self.head.vocab().div_ceil(COLUMNS))
            .dimension("rows", self.rows)
            .read_from(self.targets(work))
            .read(&work.of_targets)
            .write(&mut work.softmax)
            .write_from(losses, self.first);
        // SAFETY: as above; there is a loss for each row.
        Ok(unsafe { launch.run() }?)
    }

    fn gradients(&self, wanted: &mut Gradients<'_>, work: &mut Work) -> Result<()> {
        let Chunk { gpu, head, rows, hidden, .. } = *self;
        self.d_logits(work)?;
        let scale = wanted.scale / SCALE;
        let d_logits = if self.kernel.is_some() { &work.d_logits } else { &work.logits };
        let lora = head.lora.filter(|_| wanted.hidden.is_some() || wanted.lora.is_some());
        if let Some(lora) = lora {
            project(gpu, (rows, head.vocab()), d_logits.into(), (lora.b, true), lora, &mut work.u)?;
        }
        if let Some(d_hidden) = &mut wanted.hidden {
            match &mut work.library {
                Some(library) => {
                    let to = (&mut **d_hidden, self.first * head.dim());
                    library.backward_input(gpu, self.shape(), scale, d_logits.into(), head.weight, to)?;
                }
                None => self.d_hidden(lora, scale, d_logits, &work.u, (&mut work.parts, work.count), d_hidden)?,
            }
        }
        let shape = self.shape();
        if let Some((d_a, d_b)) = &mut wanted.lora {
            let (operands, factors) = ((hidden, d_logits.into()), (&work.z, &work.u));
            lora_gradients(gpu, shape, (head.rank(), scale), operands, factors, (d_a, d_b), &mut work.of_lora)?;
        }
        if let Some(d_weight) = &mut wanted.weight {
            match &mut work.library {
                Some(library) => library.weight_gradient(gpu, shape, scale, hidden, d_logits.into(), d_weight)?,
                None => weight_gradient(gpu, shape, scale, hidden, d_logits.into(), d_weight)?,
            }
        }
        Ok(())
    }

    /// dx, times SCALE and without g.
    fn d_logits(&self, work: &mut Work) -> Result<()> {
        let vocab = self.head.vocab();
        let targets = self.targets(work);
        let (name, entries) = match self.kernel {
            Some(_) => (kernel_name!("head_gradient", work.d_logits.dtype()), 4),
            None => ("head_gradient_f32", 1),
        };
        let launch = self
            .gpu
            .launch(&KERNELS, name)?
            .grid([self.rows * vocab.div_ceil(THREADS * TURNS * entries), 1, 1])
            .block([THREADS, 1, 1])
            .read(&work.logits)
            .dimension("logits", vocab)
            .read(&work.softmax)
            .read_from(targets)
            .write(if self.kernel.is_some() { &mut work.d_logits } else { &mut work.logits });
        // SAFETY: as above. In place, each thread reads what it writes.
        Ok(unsafe { launch.run() }?)
    }

    /// dh = scale·(dx·W + u·A)
    fn d_hidden(
        &self,
        lora: Option<Lora<'_>>,
        scale: f32,
        d_logits: &Buffer,
        u: &Buffer,
        (parts, count): (&mut Buffer, usize),
        d_hidden: &mut Buffer,
    ) -> Result<()> {
        let Chunk { gpu, head, first, rows, .. } = *self;
        let (vocab, dim, rank) = (head.vocab(), head.dim(), head.rank());
        let len = rows * dim;
        if len == 0 {
            return Ok(());
        }
        let Some(kernel) = self.kernel else {
            let dx = Side::rows(gpu, d_logits, vocab)?;
            let adapter = lora.map(|lora| [Side::rows(gpu, u, rank), Side::columns(gpu, lora.a, dim)]);
            let target = Target::set_from(gpu, d_hidden, first * dim, dim)?;
            let weight = (self.weight, dim, true);
            return plain::product(
                gpu,
                (rows, dim, vocab),
                dx,
                weight,
                plain::both(adapter)?,
                (rank, scale),
                None,
                target,
            );
        };
        let tiles = rows.div_ceil(kernel.tile_m) * dim.div_ceil(TILE_N);
        let launch = kernel
            .launch(gpu, kernel.backward_input, (rows, dim), d_logits.into(), self.weight)?
            .grid([tiles, 1, count])
            .read_or_null(lora.map(|_| u))
            .read_or_null(lora.map(|lora| lora.a))
            .dimension("of the rank", rank)
            .dimension("rows", rows)
            .dimension("features", dim)
            .dimension("logits", vocab)
            .write(parts);
        // SAFETY: as above; `Work` has room for the parts of a chunk.
        unsafe { launch.run() }?;
        let launch = gpu
            .launch(&KERNELS, kernel_name!("head_hidden_gradient_add", d_hidden.dtype()))?
            .grid([len.div_ceil(4 * THREADS), 1, 1])
            .block([THREADS, 1, 1])
            .read(parts)
            .dimension("parts", count)
            .value(len as u64)
            .value(scale)
            .write_from(d_hidden, first * dim);
        // SAFETY: as above; dim is a multiple of 8.
        Ok(unsafe { launch.run() }?)
    }

    fn targets<'a>(&self, work: &'a Work) -> Span<'a> {
        Span { buffer: &work.targets, first: self.first }
    }
}
