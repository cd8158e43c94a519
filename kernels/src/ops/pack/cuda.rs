//! The GPU's packing: three launches.

use crate::device::{Buffer, Gpu, Source};
use crate::error::Result;
use crate::weight::Tiles;

static KERNELS: Source = Source { name: "pack", ptx: include_str!("../../../ptx/pack.ptx") };

/// As in pack.cu: threads of a block, and of the one that adds up.
const THREADS: usize = 256;
const SCAN_THREADS: usize = 1024;
/// Tiles beside each other of which a block makes masks.
const STRIP: usize = 32;
/// Tiles of a block that packs values: one a warp.
const WARPS: usize = THREADS / 32;

/// The kernels' `Grid`.
fn grid(tiles: Tiles) -> [u64; 3] {
    [tiles.rows as u64, tiles.cols as u64, tiles.wide() as u64 | (tiles.count() as u64) << 32]
}

/// `packed` are bits, starts and values; `total` becomes the number of ones.
pub(super) fn pack(
    gpu: &Gpu,
    tiles: Tiles,
    source: &Buffer,
    mask: &Buffer,
    (bits, starts, values): (&mut Buffer, &mut Buffer, &mut Buffer),
    total: &mut Buffer,
) -> Result<()> {
    let count = tiles.count();
    if count > 0 {
        let strips = count / tiles.wide() * tiles.wide().div_ceil(STRIP);
        let launch = gpu
            .launch(&KERNELS, "pack_masks")?
            .grid([strips, 1, 1])
            .block([THREADS, 1, 1])
            .read(mask)
            .value(grid(tiles))
            .write(bits)
            .write(starts);
        // SAFETY: the mask has a bit for each entry and is whole words; there are bits and a start for each tile.
        unsafe { launch.run() }?;
    }
    let launch = gpu
        .launch(&KERNELS, "pack_starts")?
        .block([SCAN_THREADS, 1, 1])
        .write(starts)
        .dimension("tiles", count)
        .write(total);
    // SAFETY: there is a start for each tile and one more, and one total.
    unsafe { launch.run() }?;
    if count == 0 || values.is_empty() {
        return Ok(());
    }
    let kernel = if source.dtype().size() == 2 { "pack_values_16" } else { "pack_values_32" };
    let kept = values.len() as u32;
    let launch = gpu
        .launch(&KERNELS, kernel)?
        .grid([count.div_ceil(WARPS), 1, 1])
        .block([THREADS, 1, 1])
        .read(source)
        .value(grid(tiles))
        .read(bits)
        .read(starts)
        .value(kept)
        .write(values);
    // SAFETY: the source has rows × cols entries, of which bits name only those; values from `kept` on are not written.
    Ok(unsafe { launch.run() }?)
}
