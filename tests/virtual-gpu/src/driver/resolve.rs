//! From the addresses and shapes that callers give to copies and fills that can be queued.

use std::ffi::c_uint;

use super::abi::{DevicePtr, Handle, HostPtr, MEMORY_DEVICE, MEMORY_HOST, MEMORY_UNIFIED, Memcpy3D};
use super::exports::{invalid, unsupported};
use super::job::{Action, Copy, End, Fill, Side};
use super::session::Session;
use super::status::{Result, Status};
use super::transfer;
use crate::memory::Allocation;

/// One side of a pitched copy as callers describe it.
struct Shape {
    kind: c_uint,
    host: usize,
    device: DevicePtr,
    array: usize,
    at: [usize; 3],
    pitch: usize,
    height: usize,
}

impl Session {
    /// The device and the allocation that hold an address; the current context's device is asked first.
    pub fn locate(&self, address: DevicePtr) -> Option<(usize, Allocation)> {
        let first = self.contexts.get(&self.context).map(|context| context.device);
        first
            .into_iter()
            .chain((0..self.devices.len()).filter(|number| Some(*number) != first))
            .find_map(|number| self.devices[number].find(address).map(|allocation| (number, allocation)))
    }

    /// `len` bytes of device memory (or of page-locked host memory, which has its host address on the device too).
    ///
    /// # Errors
    /// `INVALID_VALUE` where they are not all in one allocation; says so on stderr.
    pub fn device_end(&self, call: &str, address: DevicePtr, len: u64) -> Result<End> {
        if let Ok(host) = usize::try_from(address)
            && self.pinned(HostPtr(host), len).is_some()
        {
            return self.host_end(HostPtr(host), len);
        }
        match self.locate(address) {
            Some((device, found)) if len <= found.size - (address - found.base) => {
                Ok(End::Device { device, allocation: found.id, address })
            }
            _ => Err(invalid(call, &self.gpu_or_first().explain(address, len))),
        }
    }

    fn gpu_or_first(&self) -> &super::gpu::Gpu {
        let number = self.contexts.get(&self.context).map_or(0, |context| context.device);
        &self.devices[number]
    }

    /// `len` bytes of host memory.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub fn host_end(&self, address: HostPtr, len: u64) -> Result<End> {
        if address.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let block = self.pinned(address, len).map(|(_, block)| block);
        let through = block.map_or(address, |block| block.through(address));
        Ok(End::Host { address, through, pinned: block.is_some() })
    }

    /// Bytes at an address that may be of the host or of a device.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer, or where they pass the end of an allocation.
    pub fn any_end(&self, call: &str, address: DevicePtr, len: u64) -> Result<End> {
        match self.locate(address) {
            Some(_) => self.device_end(call, address, len),
            None => self.host_end(HostPtr(usize::try_from(address).map_err(|_| Status::INVALID_VALUE)?), len),
        }
    }

    /// Queues a copy; waits for it where CUDA does: asked to, or where memory that is not page-locked is written.
    ///
    /// # Errors
    /// What is wrong with the stream or its context, also where that comes out while the copy is waited for.
    pub fn transfer(&mut self, stream: Handle, what: &str, mut copy: Copy, blocking: bool) -> Result {
        if copy.bytes() == 0 {
            return Ok(());
        }
        let (id, context) = self.stream(stream)?;
        let capturing = self.capture_of(id).is_some();
        if blocking {
            self.refuse_wait(id)?;
        }
        let to_pageable = matches!(copy.dst.end, End::Host { pinned: false, .. });
        let between_hosts = matches!((&copy.src.end, &copy.dst.end), (End::Host { .. }, End::Host { .. }));
        let waits = blocking || ((to_pageable || between_hosts) && !capturing);
        if !capturing && !waits {
            match copy.src.end {
                End::Host { pinned: false, .. } => transfer::snapshot(&mut copy),
                End::Host { pinned: true, .. } => copy.digest = Some((transfer::digest(&copy), self.host_writes)),
                _ => {}
            }
        }
        let action = Action::Copy(copy.merged());
        let touched = if waits { action.touches() } else { Vec::new() };
        if let Some(clock) = self.submit(stream, what, action)?
            && waits
        {
            self.wait_for(&clock);
            self.settle(&touched, id, &clock);
            self.context(context)?;
        }
        Ok(())
    }

    /// Queues a fill of `height` rows of `width` elements.
    ///
    /// # Errors
    /// `INVALID_VALUE` for bytes outside an allocation or an address that is no multiple of the element's size.
    pub fn fill(&mut self, call: &str, stream: Handle, shape: FillShape) -> Result {
        if let Some(copy) = self.fill_of_host(call, &shape)? {
            return self.submit(stream, "memset", Action::Copy(copy)).map(|_| ());
        }
        let fill = self.fill_of(call, shape)?;
        match fill {
            Some(fill) => self.submit(stream, "memset", Action::Fill(fill)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// A fill of page-locked host memory, which is a copy of one row again and again; none where it is of a device.
    fn fill_of_host(&self, call: &str, shape: &FillShape) -> Result<Option<Copy>> {
        let FillShape { address, pitch, value, size, width, height } = *shape;
        if width == 0 || height == 0 || !self.is_pinned(address) {
            return Ok(None);
        }
        let len = shape.bytes(call)?;
        let end = self.device_end(call, address, len)?;
        let row = value.to_le_bytes()[..size as usize].repeat(width as usize);
        let (width, src) = (row.len() as u64, Side { end: End::Bytes(row.into()), pitch: 0, slice: 0 });
        let dst = Side { end, pitch, slice: pitch * height };
        Ok(Some(Copy { src, dst, width, height, depth: 1, digest: None }))
    }

    /// The fill that a shape asks for; none for no bytes.
    ///
    /// # Errors
    /// As [`Session::fill`].
    pub fn fill_of(&self, call: &str, shape: FillShape) -> Result<Option<Fill>> {
        let FillShape { address, pitch, value, size, width, height } = shape;
        if width == 0 || height == 0 {
            return Ok(None);
        }
        match self.device_end(call, address, shape.bytes(call)?)? {
            End::Device { device, allocation, .. } => {
                let row = width * size;
                let (width, height) = if pitch == row { (width * height, 1) } else { (width, height) };
                Ok(Some(Fill { device, allocation, address, pitch, value: value.to_le_bytes(), size, width, height }))
            }
            _ => Err(unsupported(call, "setting page-locked host memory by a graph")),
        }
    }

    /// The copy that a `CUDA_MEMCPY3D` describes.
    ///
    /// # Errors
    /// `INVALID_VALUE` for shapes that don't fit or bytes outside an allocation; `NOT_SUPPORTED` for arrays.
    pub fn copy_3d(&self, call: &str, p: &Memcpy3D) -> Result<Copy> {
        let (width, height, depth) = (p.width as u64, p.height as u64, p.depth as u64);
        let src = Shape {
            kind: p.src_type,
            host: p.src_host,
            device: p.src_device,
            array: p.src_array,
            at: [p.src_x, p.src_y, p.src_z],
            pitch: p.src_pitch,
            height: p.src_height,
        };
        let dst = Shape {
            kind: p.dst_type,
            host: p.dst_host,
            device: p.dst_device,
            array: p.dst_array,
            at: [p.dst_x, p.dst_y, p.dst_z],
            pitch: p.dst_pitch,
            height: p.dst_height,
        };
        let src = self.side(call, &src, [width, height, depth])?;
        let dst = self.side(call, &dst, [width, height, depth])?;
        Ok(Copy { src, dst, width, height, depth, digest: None })
    }

    fn side(&self, call: &str, shape: &Shape, [width, height, depth]: [u64; 3]) -> Result<Side> {
        let nothing = width == 0 || height == 0 || depth == 0;
        if shape.array != 0 {
            return Err(unsupported(call, "an array (textures and surfaces)"));
        }
        let [x, y, z] = shape.at.map(|at| at as u64);
        let overflow = || invalid(call, "the region is larger than the address space");
        // A pitch or height of 0 stands for rows or slices without gaps.
        let pitch = if shape.pitch == 0 { x + width } else { shape.pitch as u64 };
        let rows = if shape.height == 0 { y + height } else { shape.height as u64 };
        if pitch < x.checked_add(width).ok_or_else(overflow)? && height * depth > 1 {
            return Err(invalid(call, &format!("rows of {width} bytes from byte {x} do not fit a pitch of {pitch}")));
        }
        if rows < y.checked_add(height).ok_or_else(overflow)? && depth > 1 {
            return Err(invalid(call, &format!("slices of {height} rows from row {y} do not fit a height of {rows}")));
        }
        let slice = pitch.checked_mul(rows).ok_or_else(overflow)?;
        let at = |x: u64, y: u64, z: u64| z.checked_mul(slice)?.checked_add(y.checked_mul(pitch)?)?.checked_add(x);
        let start = at(x, y, z).ok_or_else(overflow)?;
        if nothing {
            return Ok(Side { end: End::Bytes([].into()), pitch, slice });
        }
        let len = at(x + width, y + height - 1, z + depth - 1).ok_or_else(overflow)? - start;
        let end = match shape.kind {
            MEMORY_HOST if shape.host == 0 => return Err(Status::INVALID_VALUE),
            MEMORY_HOST => self.host_end(HostPtr(shape.host).offset(start as usize), len)?,
            MEMORY_DEVICE => self.device_end(call, shape.device.wrapping_add(start), len)?,
            MEMORY_UNIFIED => self.any_end(call, shape.device.wrapping_add(start), len)?,
            other => return Err(invalid(call, &format!("memory type {other} is not known"))),
        };
        Ok(Side { end, pitch, slice })
    }
}

/// What a memset call asks for: `height` rows of `width` elements of `size` bytes.
#[derive(Clone, Copy, Debug)]
pub struct FillShape {
    /// The first byte.
    pub address: DevicePtr,
    /// Bytes from a row to the next.
    pub pitch: u64,
    /// The element.
    pub value: u32,
    /// Its bytes: 1, 2 or 4.
    pub size: u64,
    /// Elements of a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
}

impl FillShape {
    /// Bytes from the first to the last, of at least one row of at least one element.
    ///
    /// # Errors
    /// `INVALID_VALUE` where the address or the pitch do not fit the elements, or there are too many.
    fn bytes(&self, call: &str) -> Result<u64> {
        let FillShape { address, pitch, size, width, height, .. } = *self;
        let overflow = || invalid(call, "the region is larger than the address space");
        let row = width.checked_mul(size).ok_or_else(overflow)?;
        if address % size != 0 {
            return Err(invalid(call, &format!("address {address:#x} is no multiple of the element's {size} bytes")));
        }
        if height > 1 && pitch < row {
            return Err(invalid(call, &format!("rows of {row} bytes do not fit a pitch of {pitch}")));
        }
        pitch.checked_mul(height - 1).and_then(|rows| rows.checked_add(row)).ok_or_else(overflow)
    }
}

/// A copy of `len` bytes in one piece.
pub fn flat(src: End, dst: End, len: u64) -> Copy {
    let side = |end| Side { end, pitch: len, slice: len };
    Copy { src: side(src), dst: side(dst), width: len, height: 1, depth: 1, digest: None }
}
