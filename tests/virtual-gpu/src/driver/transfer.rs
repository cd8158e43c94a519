//! Copies and fills, as they run, and calls of the program.

use std::borrow::Cow;
use std::sync::Arc;

use super::gpu::Gpu;
use super::job::{Copy, End, Fill, HostCall, Side};
use super::status::Status;

/// Device memory is filled through a buffer of at most this many bytes.
const CHUNK: u64 = 1 << 16;
/// Copies between host and device pass through a buffer of at most this many bytes.
const PIECE: u64 = 4 << 20;

/// Runs a copy; true where it wrote page-locked memory of the host.
///
/// # Errors
/// What is wrong with it, in words: bytes that are not there any more, or that nothing has written.
pub fn copy(devices: &[Arc<Gpu>], copy: &Copy) -> Result<bool, String> {
    let src_rows = copy.rows(&copy.src);
    let dst_rows = copy.rows(&copy.dst);
    for (src, dst) in src_rows.into_iter().zip(dst_rows) {
        copy_row(devices, copy, src, dst)?;
    }
    Ok(matches!(copy.dst.end, End::Host { pinned: true, .. }))
}

fn copy_row(devices: &[Arc<Gpu>], copy: &Copy, src: u64, dst: u64) -> Result<(), String> {
    let len = copy.width;
    if let (
        End::Device { device: from, address: src_address, .. },
        End::Device { device: to, address: dst_address, .. },
    ) = (&copy.src.end, &copy.dst.end)
    {
        return Gpu::copy(&devices[*from], src_address + src, &devices[*to], dst_address + dst, len);
    }
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(PIECE);
        copy_piece(devices, copy, src + done, dst + done, piece)?;
        done += piece;
    }
    Ok(())
}

fn copy_piece(devices: &[Arc<Gpu>], copy: &Copy, src: u64, dst: u64, len: u64) -> Result<(), String> {
    let bytes: Cow<'_, [u8]> = match &copy.src.end {
        End::Device { device, address, .. } => devices[*device].read(address + src, len)?.into(),
        End::Host { through, .. } => through.offset(src as usize).read(len as usize).into(),
        End::Bytes(bytes) => {
            let piece = bytes.get(src as usize..(src + len) as usize);
            piece.ok_or_else(|| "the copied bytes end early".to_owned())?.into()
        }
    };
    match &copy.dst.end {
        End::Device { device, address, .. } => devices[*device].write(address + dst, &bytes)?,
        End::Host { through, .. } => through.offset(dst as usize).write(&bytes),
        End::Bytes(_) => return Err("a copy needs a place to go".to_owned()),
    }
    Ok(())
}

/// Runs a fill.
///
/// # Errors
/// As [`copy`].
pub fn fill(gpu: &Gpu, fill: &Fill) -> Result<(), String> {
    let size = fill.size as usize;
    let row = fill.width * fill.size;
    let pattern: Vec<u8> = fill.value[..size].iter().copied().cycle().take(row.min(CHUNK) as usize).collect();
    for y in 0..fill.height {
        let start = fill.address + y * fill.pitch;
        let mut done = 0;
        while done < row {
            let len = (row - done).min(CHUNK);
            gpu.write(start + done, &pattern[..len as usize])?;
            done += len;
        }
    }
    Ok(())
}

/// A digest of the host bytes that a copy reads: to notice a change, not to resist an attack.
pub fn digest(copy: &Copy) -> u64 {
    let mut digest = copy.width;
    if let End::Host { through, .. } = &copy.src.end {
        for row in copy.rows(&copy.src) {
            for start in (0..copy.width).step_by(PIECE as usize) {
                let len = (copy.width - start).min(PIECE);
                let bytes = through.offset((row + start) as usize).read(len as usize);
                digest = mix(digest, &bytes);
            }
        }
    }
    digest
}

fn mix(digest: u64, bytes: &[u8]) -> u64 {
    /// The golden ratio's fraction: an odd number whose multiples are spread evenly.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |digest: u64, word: u64| (digest.rotate_left(5) ^ word).wrapping_mul(SPREAD);
    let words = bytes.chunks_exact(8);
    let rest = words.remainder().iter().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
    let words = words.map(|word| u64::from_le_bytes(word.try_into().expect("chunks of 8 bytes")));
    words.chain([rest]).fold(digest, step)
}

/// The bytes that a copy reads from the host, packed, in place of the host's memory.
pub fn snapshot(copy: &mut Copy) {
    let End::Host { through, .. } = copy.src.end else { return };
    let mut bytes = Vec::new();
    for row in copy.rows(&copy.src) {
        let row = through.offset(row as usize).read(copy.width as usize);
        if bytes.is_empty() {
            bytes = row;
        } else {
            bytes.extend_from_slice(&row);
        }
    }
    copy.src = Side { end: End::Bytes(bytes.into()), pitch: copy.width, slice: copy.width * copy.height };
}

impl HostCall {
    /// Calls the program.
    pub fn call(self) {
        super::exports::as_host_function(|| match self {
            HostCall::Function { function: Some(function), data } => {
                // SAFETY: the program gave the function and its argument to be called once the stream gets here.
                unsafe { function(data) }
            }
            HostCall::Callback { callback: Some(callback), stream, data } => {
                // SAFETY: as above.
                unsafe { callback(stream, Status::SUCCESS, data) }
            }
            _ => {}
        });
    }
}
