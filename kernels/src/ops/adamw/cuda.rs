//! The GPU's AdamW: one launch over all tensors, which a table describes to it.

use super::cpu::Factors;
use super::{Slot, Step};
use crate::device::{Buffer, Category, DType, Device, Gpu, Source};
use crate::error::Result;

static KERNELS: Source = Source { name: "adamw", ptx: include_str!("../../../ptx/adamw.ptx") };

/// As in adamw.cu.
const THREADS: usize = 256;
/// As in adamw.cu: elements of a block.
const CHUNK: usize = 4096;
/// Words of a tensor in the table: four addresses and the length.
const TENSOR_WORDS: usize = 5;

/// The kernel's view of a list of tensors.
pub(super) struct Tables {
    /// u64 `[tensors, 5]`.
    tensors: Buffer,
    /// A tensor's number in the lower half and the chunk's within it in the upper: u64 `[chunks]`.
    chunks: Buffer,
}

impl Tables {
    pub fn alloc(device: &Device, slots: &[Slot<'_>]) -> Result<Tables> {
        let chunks = slots.iter().map(|slot| slot.value.len().div_ceil(CHUNK)).sum();
        let words = |len| device.alloc(Category::Workspace, DType::U64, len);
        Ok(Tables { tensors: words(TENSOR_WORDS * slots.len())?, chunks: words(chunks)? })
    }

    fn fill(&mut self, gpu: &Gpu, slots: &[Slot<'_>]) -> Result<()> {
        let mut tensors = Vec::with_capacity(self.tensors.len());
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for (tensor, slot) in slots.iter().enumerate() {
            for buffer in [&*slot.value, slot.grad, slot.m, slot.v] {
                tensors.push(gpu.address(buffer)?);
            }
            tensors.push(slot.value.len() as u64);
            chunks.extend((0..slot.value.len().div_ceil(CHUNK) as u64).map(|chunk| tensor as u64 | chunk << 32));
        }
        self.tensors.write(bytemuck::cast_slice(&tensors))?;
        self.chunks.write(bytemuck::cast_slice(&chunks))
    }
}

pub(super) fn step(gpu: &Gpu, slots: &mut [Slot<'_>], tables: &mut Tables, step: &Step) -> Result<()> {
    if tables.chunks.is_empty() {
        return Ok(());
    }
    tables.fill(gpu, slots)?;
    let Factors { keep, beta1, rest1, beta2, rest2, grad_scale, step_size, root_scale, eps } = Factors::of(step);
    let launch = gpu
        .launch(&KERNELS, "adamw_step")?
        .grid([tables.chunks.len(), 1, 1])
        .block([THREADS, 1, 1])
        .read(&tables.tensors)
        .read(&tables.chunks)
        .value([keep, beta1, rest1, beta2, rest2, grad_scale, step_size, root_scale, eps]);
    // SAFETY: the table names buffers of this GPU, which `slots` borrows: those that are written, mutably. Every chunk lies
    // within its tensor.
    Ok(unsafe { launch.run() }?)
}

pub(super) fn apply_mask(gpu: &Gpu, values: &mut Buffer, mask: &Buffer) -> Result<()> {
    let len = values.len();
    if len == 0 {
        return Ok(());
    }
    let launch = gpu
        .launch(&KERNELS, "apply_mask")?
        .grid([len.div_ceil(4 * THREADS), 1, 1])
        .block([THREADS, 1, 1])
        .write(values)
        .read(mask)
        .value(len as u64);
    // SAFETY: the mask has a bit for each of the `len` values, as `mod.rs` checks.
    Ok(unsafe { launch.run() }?)
}
