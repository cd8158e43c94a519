//! How many blocks fit, and which block size fills the device best.

use std::ffi::{c_int, c_uint};

use crate::device::Description;
use crate::driver::abi::{BlockToShared, Handle, In, LaunchConfig, Out};
use crate::driver::exports::{exports, unsupported};
use crate::driver::session::context;
use crate::driver::state::Function;
use crate::driver::status::{Result, Status};

/// Blocks on a multiprocessor.
fn blocks(device: &Description, function: &Function, threads: u32, dynamic: u64) -> u32 {
    let kernel = &function.kernel;
    if threads > kernel.max_threads(device) {
        return 0;
    }
    device.blocks_per_sm(threads, kernel.registers(), u64::from(kernel.static_shared()) + dynamic)
}

fn active_blocks(out: Out<c_int>, handle: Handle, threads: c_int, dynamic: usize) -> Result {
    let mut cuda = context()?;
    let gpu = cuda.gpu();
    let function = cuda.function(handle)?;
    if threads <= 0 {
        return Err(Status::INVALID_VALUE);
    }
    out.set(blocks(&gpu.description, function, threads as u32, dynamic as u64) as c_int)
}

/// The largest block size with the most threads resident on a multiprocessor.
fn best_block(
    grid: Out<c_int>,
    block: Out<c_int>,
    handle: Handle,
    by_block: BlockToShared,
    dynamic: usize,
    limit: c_int,
) -> Result {
    let (gpu, function) = {
        let mut cuda = context()?;
        (cuda.gpu(), cuda.function(handle)?.clone())
    };
    let device = &gpu.description;
    let most = function.kernel.max_threads(device);
    let most = if limit > 0 { most.min(limit as u32) } else { most };
    let (mut best, mut best_resident) = ((0, 0), 0);
    for threads in (1..=most.div_ceil(32)).rev().map(|warps| (warps * 32).min(most)) {
        let shared = match by_block {
            // SAFETY: CUDA's contract: the function may be called with any block size. No lock is held.
            Some(by_block) => unsafe { by_block(threads as c_int) },
            None => dynamic,
        };
        let resident = blocks(device, &function, threads, shared as u64);
        if resident * threads > best_resident {
            (best, best_resident) = ((threads, resident), resident * threads);
        }
    }
    if best_resident == 0 {
        return Err(Status::INVALID_VALUE);
    }
    block.set(best.0 as c_int)?;
    grid.set((best.1 * device.sms) as c_int)
}

exports! {
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        out: Out<c_int>, function: Handle, threads: c_int, dynamic: usize,
    ) {
        active_blocks(out, function, threads, dynamic)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<c_int>, function: Handle, threads: c_int, dynamic: usize, flags: c_uint,
    ) {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        active_blocks(out, function, threads, dynamic)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, by_block: BlockToShared, dynamic: usize, limit: c_int,
    ) {
        best_block(grid, block, function, by_block, dynamic, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, by_block: BlockToShared, dynamic: usize, limit: c_int,
        flags: c_uint,
    ) {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        best_block(grid, block, function, by_block, dynamic, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(out: Out<usize>, handle: Handle, count: c_int, threads: c_int) {
        let mut cuda = context()?;
        let gpu = cuda.gpu();
        let function = cuda.function(handle)?;
        let device = &gpu.description;
        if count <= 0 || threads <= 0 || blocks(device, function, threads as u32, 0) < count as u32 {
            return Err(Status::INVALID_VALUE);
        }
        let share = device.shared_per_sm / count as u32 / 128 * 128;
        let room = share.saturating_sub(device.reserved_shared_per_block).min(device.shared_per_block_optin);
        out.set(room.saturating_sub(function.kernel.static_shared()) as usize)
    }

    fn cuOccupancyMaxActiveClusters(_count: Out<c_int>, _function: Handle, _config: In<LaunchConfig>) {
        Err(unsupported("cuOccupancyMaxActiveClusters", "clusters of blocks"))
    }

    fn cuOccupancyMaxPotentialClusterSize(_size: Out<c_int>, _function: Handle, _config: In<LaunchConfig>) {
        Err(unsupported("cuOccupancyMaxPotentialClusterSize", "clusters of blocks"))
    }
}
