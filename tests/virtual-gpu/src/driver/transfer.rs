//! Copies and fills, as they run, and calls of the program.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use super::gpu::Gpu;
use super::job::{Copy, End, Fill, HostCall, Side};
use super::status::Status;

/// Device memory is filled through a buffer of at most this many bytes.
const CHUNK: u64 = 1 << 16;

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
    let bytes: std::borrow::Cow<'_, [u8]> = match &copy.src.end {
        End::Device { device, address, .. } => devices[*device].read(address + src, len)?.into(),
        End::Host { address, .. } => address.offset(src as usize).read(len as usize).into(),
        End::Bytes(bytes) => {
            bytes.get(src as usize..(src + len) as usize).ok_or_else(|| "the copied bytes end early".to_owned())?.into()
        }
    };
    match &copy.dst.end {
        End::Device { device, address, .. } => devices[*device].write(address + dst, &bytes)?,
        End::Host { address, .. } => address.offset(dst as usize).write(&bytes),
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

/// A digest of the host bytes that a copy reads.
pub fn digest(copy: &Copy) -> u64 {
    let mut hasher = DefaultHasher::new();
    if let End::Host { address, .. } = &copy.src.end {
        for row in copy.rows(&copy.src) {
            hasher.write(&address.offset(row as usize).read(copy.width as usize));
        }
    }
    hasher.finish()
}

/// The bytes that a copy reads from the host, packed, in place of the host's memory.
pub fn snapshot(copy: &mut Copy) {
    let End::Host { address, .. } = copy.src.end else { return };
    let bytes: Vec<u8> = copy
        .rows(&copy.src)
        .into_iter()
        .flat_map(|row| address.offset(row as usize).read(copy.width as usize))
        .collect();
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
