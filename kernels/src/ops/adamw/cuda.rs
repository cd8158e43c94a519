//! The GPU's AdamW: one launch over all tensors, which a table describes to it.

use super::cpu::Factors;
use super::{GradNorm, Slot, Step};
use crate::device::{Buffer, Device, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::tensors::{THREADS, Table};

static KERNELS: Source = Source { name: "adamw", ptx: include_str!("../../../ptx/adamw.ptx") };

/// The kernel's view of a list of tensors.
pub(super) fn table(device: &Device, slots: &[Slot<'_>]) -> Result<Table<5>> {
    Table::alloc(device, slots.iter().map(|slot| slot.value.len()))
}

pub(super) fn step(
    gpu: &Gpu,
    slots: &mut [Slot<'_>],
    table: &mut Table<5>,
    step: &Step,
    norm: &GradNorm,
) -> Result<()> {
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
    let Factors { keep, beta1, rest1, beta2, rest2, step_size, root_scale, eps } = Factors::of(step);
    let launch = gpu.launch(&KERNELS, "adamw_step")?.grid([table.chunks(), 1, 1]).block([THREADS, 1, 1]);
    let launch =
        table.give(launch).read(norm.words()).value([keep, beta1, rest1, beta2, rest2, step_size, root_scale, eps]);
    // SAFETY: the table names buffers of this GPU, which `slots` borrows: those that are written, mutably. Every chunk lies
    // within its tensor, and `mod.rs` checks the masks' lengths. A norm has three words.
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
