//! The GPU's norm: the two launches of grad_norm.cu.

use super::Gradient;
use crate::device::{Buffer, Category, DType, Device, Gpu, Source};
use crate::error::Result;
use crate::ops::cuda::tensors::{THREADS, Table};

static KERNELS: Source = Source { name: "grad_norm", ptx: include_str!("../../../ptx/grad_norm.ptx") };

/// As in grad_norm.cu: threads of the one block that adds up.
const FINISH_THREADS: usize = 1024;

/// What the kernels need beside the gradients.
pub(super) struct Work {
    table: Table<2>,
    /// A chunk's sum of squares, f64 as bits.
    sums: Buffer,
}

impl Work {
    pub fn alloc(device: &Device, gradients: &[Gradient<'_>]) -> Result<Work> {
        let table = Table::alloc(device, gradients.iter().map(|gradient| gradient.values.len()))?;
        let sums = device.alloc(Category::Workspace, DType::U64, table.chunks())?;
        Ok(Work { table, sums })
    }
}

pub(super) fn grad_norm(
    gpu: &Gpu,
    gradients: &[Gradient<'_>],
    clip: f64,
    work: &mut Work,
    norm: &mut Buffer,
) -> Result<()> {
    let Work { table, sums } = work;
    table.fill(gpu, gradients.iter().map(|g| (g.values.len(), [Some(g.values), g.mask])))?;
    let chunks = table.chunks();
    if chunks > 0 {
        let launch = gpu.launch(&KERNELS, "grad_norm_chunks")?.grid([chunks, 1, 1]).block([THREADS, 1, 1]);
        // SAFETY: the table names buffers of this GPU, which `gradients` borrows; `mod.rs` checks the masks' lengths. Every
        // chunk lies within its tensor, and `sums` has a place for each.
        unsafe { table.give(launch).write(sums).run() }?;
    }
    let launch = gpu.launch(&KERNELS, "grad_norm_finish")?.block([FINISH_THREADS, 1, 1]);
    let launch = table.give(launch).read(sums).dimension("chunks", chunks).value(clip).write(norm);
    // SAFETY: as above; `norm` has three words.
    Ok(unsafe { launch.run() }?)
}
