//! The GPU's packing: one launch.

use crate::device::{Buffer, Gpu, Source};
use crate::error::Result;
use crate::weight::Groups;

static KERNELS: Source = Source { name: "pack_two_four", ptx: include_str!("../../../ptx/pack_two_four.ptx") };

/// As in pack_two_four.cu: threads of a block, and its tiles beside each other.
const THREADS: usize = 256;
const TILES: usize = THREADS / 32;

/// `packed` are values and places; `fault`, of zero, becomes the complement of the first entry of a group that keeps too many.
pub(super) fn pack(
    gpu: &Gpu,
    groups: Groups,
    source: &Buffer,
    mask: &Buffer,
    (values, places): (&mut Buffer, &mut Buffer),
    fault: &mut Buffer,
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let launch = gpu
        .launch(&KERNELS, "pack_two_four")?
        .grid([groups.high() * groups.wide().div_ceil(TILES), 1, 1])
        .block([THREADS, 1, 1])
        .read(source)
        .read(mask)
        .dimension("rows", groups.rows)
        .dimension("columns", groups.cols)
        .write(values)
        .write(places)
        .write(fault);
    // SAFETY: the source has rows × cols entries and the mask a bit for each, in whole words; there are values and places for
    // every tile, and one fault.
    Ok(unsafe { launch.run() }?)
}
