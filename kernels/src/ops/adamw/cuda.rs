//! The GPU's AdamW: one launch over all tensors, which a table describes to it.

use super::{GradNorm, Slot, Step};
use crate::device::{Buffer, Category, DType, Device, Feed, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::tensors::{THREADS, Table};

static KERNELS: Source = Source { name: "adamw", ptx: include_str!("../../../ptx/adamw.ptx") };

/// What the kernel needs beside the tensors.
pub(super) struct Work {
    table: Table<5>,
    /// f32 `[8]`
    factors: Buffer,
}

impl Work {
    pub fn alloc(device: &Device, slots: &[Slot<'_>]) -> Result<Work> {
        let table = Table::alloc(device, slots.iter().map(|slot| slot.value.len()))?;
        let factors = device.alloc(Category::Workspace, DType::F32, super::FACTORS)?;
        Ok(Work { table, factors })
    }
}

pub(super) fn step(gpu: &Gpu, slots: &mut [Slot<'_>], work: &mut Work, step: &Step, norm: &GradNorm) -> Result<()> {
    let Work { table, factors } = work;
    if table.chunks() == 0 {
        return Ok(());
    }
    table.fill(
        gpu,
        slots.iter().map(|slot| {
            let buffers = [Some(&*slot.value), Some(slot.grad.values), slot.grad.mask, Some(&*slot.m), Some(&*slot.v)];
            (slot.value.len(), buffers)
        }),
    )?;
    factors.write_feed(Feed::Factors, bytemuck::cast_slice(&super::factors(step)))?;
    let launch = gpu.launch(&KERNELS, "adamw_step")?.grid([table.chunks(), 1, 1]).block([THREADS, 1, 1]);
    let launch = table.give(launch).read(norm.words()).read(factors);
    // SAFETY: the table names buffers of this GPU, which `slots` borrows: those that are written, mutably. Every chunk lies
    // within its tensor, and `mod.rs` checks the masks' lengths. A norm has three words, and there are eight factors.
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
