//! Copies between the host and devices, in every direction and shape.

use crate::driver::abi::{DevicePtr, Handle, HostPtr, In, Memcpy2D, Memcpy3D};
use crate::driver::exports::{aliases, exports};
use crate::driver::resolve::flat;
use crate::driver::session::{Session, context};
use crate::driver::status::{Result, Status};

fn host_to_device(call: &str, dst: DevicePtr, src: HostPtr, len: usize, stream: Handle, blocking: bool) -> Result {
    let mut cuda = context()?;
    if len == 0 {
        return Ok(());
    }
    let copy = flat(cuda.host_end(src, len as u64)?, cuda.device_end(call, dst, len as u64)?, len as u64);
    cuda.transfer(stream, "copy from host to device", copy, blocking)
}

fn device_to_host(call: &str, dst: HostPtr, src: DevicePtr, len: usize, stream: Handle, blocking: bool) -> Result {
    let mut cuda = context()?;
    if len == 0 {
        return Ok(());
    }
    let copy = flat(cuda.device_end(call, src, len as u64)?, cuda.host_end(dst, len as u64)?, len as u64);
    cuda.transfer(stream, "copy from device to host", copy, blocking)
}

/// Copies between devices never make the host wait.
fn device_to_device(call: &str, dst: DevicePtr, src: DevicePtr, len: usize, stream: Handle) -> Result {
    let mut cuda = context()?;
    if len == 0 {
        return Ok(());
    }
    let copy = flat(cuda.device_end(call, src, len as u64)?, cuda.device_end(call, dst, len as u64)?, len as u64);
    cuda.transfer(stream, "copy on the device", copy, false)
}

/// A copy whose addresses say which memory they are of. Synchronous ones wait unless both are a device's.
fn any_to_any(call: &str, dst: DevicePtr, src: DevicePtr, len: usize, stream: Handle, blocking: bool) -> Result {
    let mut cuda = context()?;
    if len == 0 {
        return Ok(());
    }
    let blocking = blocking && !(cuda.locate(src).is_some() && cuda.locate(dst).is_some());
    let copy = flat(cuda.any_end(call, src, len as u64)?, cuda.any_end(call, dst, len as u64)?, len as u64);
    cuda.transfer(stream, "copy", copy, blocking)
}

fn flat_as_3d(p: &Memcpy2D) -> Memcpy3D {
    Memcpy3D {
        src_x: p.src_x,
        src_y: p.src_y,
        src_type: p.src_type,
        src_host: p.src_host.0,
        src_device: p.src_device,
        src_array: p.src_array,
        src_pitch: p.src_pitch,
        dst_x: p.dst_x,
        dst_y: p.dst_y,
        dst_type: p.dst_type,
        dst_host: p.dst_host.0,
        dst_device: p.dst_device,
        dst_array: p.dst_array,
        dst_pitch: p.dst_pitch,
        width: p.width,
        height: p.height,
        depth: 1,
        ..Memcpy3D::default()
    }
}

fn pitched(call: &str, p: &Memcpy3D, stream: Handle, blocking: bool) -> Result {
    let mut cuda = context()?;
    let copy = cuda.copy_3d(call, p)?;
    let host = crate::driver::abi::MEMORY_HOST;
    let blocking = blocking && (p.src_type == host || p.dst_type == host);
    cuda.transfer(stream, "pitched copy", copy, blocking)
}

/// The contexts of a copy between peers must be alive.
fn peers(cuda: &Session, contexts: [Handle; 2]) -> Result {
    contexts.into_iter().try_for_each(|handle| cuda.context(handle).map(|_| ()))
}

exports! {
    #[ptds]
    fn cuMemcpyHtoD_v2(dst: DevicePtr, src: HostPtr, len: usize) {
        host_to_device("cuMemcpyHtoD", dst, src, len, Handle::NULL, true)
    }

    #[ptsz]
    fn cuMemcpyHtoDAsync_v2(dst: DevicePtr, src: HostPtr, len: usize, stream: Handle) {
        host_to_device("cuMemcpyHtoDAsync", dst, src, len, stream, false)
    }

    #[ptds]
    fn cuMemcpyDtoH_v2(dst: HostPtr, src: DevicePtr, len: usize) {
        device_to_host("cuMemcpyDtoH", dst, src, len, Handle::NULL, true)
    }

    #[ptsz]
    fn cuMemcpyDtoHAsync_v2(dst: HostPtr, src: DevicePtr, len: usize, stream: Handle) {
        device_to_host("cuMemcpyDtoHAsync", dst, src, len, stream, false)
    }

    #[ptds]
    fn cuMemcpyDtoD_v2(dst: DevicePtr, src: DevicePtr, len: usize) {
        device_to_device("cuMemcpyDtoD", dst, src, len, Handle::NULL)
    }

    #[ptsz]
    fn cuMemcpyDtoDAsync_v2(dst: DevicePtr, src: DevicePtr, len: usize, stream: Handle) {
        device_to_device("cuMemcpyDtoDAsync", dst, src, len, stream)
    }

    #[ptds]
    fn cuMemcpy(dst: DevicePtr, src: DevicePtr, len: usize) {
        any_to_any("cuMemcpy", dst, src, len, Handle::NULL, true)
    }

    #[ptsz]
    fn cuMemcpyAsync(dst: DevicePtr, src: DevicePtr, len: usize, stream: Handle) {
        any_to_any("cuMemcpyAsync", dst, src, len, stream, false)
    }

    #[ptds]
    fn cuMemcpyPeer(dst: DevicePtr, dst_context: Handle, src: DevicePtr, src_context: Handle, len: usize) {
        peers(&context()?, [dst_context, src_context])?;
        device_to_device("cuMemcpyPeer", dst, src, len, Handle::NULL)
    }

    #[ptsz]
    fn cuMemcpyPeerAsync(
        dst: DevicePtr, dst_context: Handle, src: DevicePtr, src_context: Handle, len: usize, stream: Handle,
    ) {
        peers(&context()?, [dst_context, src_context])?;
        device_to_device("cuMemcpyPeerAsync", dst, src, len, stream)
    }

    #[ptds]
    fn cuMemcpy2D_v2(copy: In<Memcpy2D>) {
        pitched("cuMemcpy2D", &flat_as_3d(&copy.get()?), Handle::NULL, true)
    }

    #[ptds]
    fn cuMemcpy2DUnaligned_v2(copy: In<Memcpy2D>) {
        pitched("cuMemcpy2DUnaligned", &flat_as_3d(&copy.get()?), Handle::NULL, true)
    }

    #[ptsz]
    fn cuMemcpy2DAsync_v2(copy: In<Memcpy2D>, stream: Handle) {
        pitched("cuMemcpy2DAsync", &flat_as_3d(&copy.get()?), stream, false)
    }

    #[ptds]
    fn cuMemcpy3D_v2(copy: In<Memcpy3D>) {
        pitched("cuMemcpy3D", &copy.get()?, Handle::NULL, true)
    }

    #[ptsz]
    fn cuMemcpy3DAsync_v2(copy: In<Memcpy3D>, stream: Handle) {
        pitched("cuMemcpy3DAsync", &copy.get()?, stream, false)
    }

    #[ptds]
    fn cuMemcpy3DPeer(copy: In<Memcpy3D>) {
        let copy = copy.get()?;
        peers(&context()?, [Handle(copy.src_context), Handle(copy.dst_context)])?;
        pitched("cuMemcpy3DPeer", &copy, Handle::NULL, true)
    }

    #[ptsz]
    fn cuMemcpy3DPeerAsync(copy: In<Memcpy3D>, stream: Handle) {
        let copy = copy.get()?;
        peers(&context()?, [Handle(copy.src_context), Handle(copy.dst_context)])?;
        pitched("cuMemcpy3DPeerAsync", &copy, stream, false)
    }

    fn cuMemcpyHtoA_v2(_array: Handle, _offset: usize, _src: HostPtr, _len: usize) {
        Err(Status::NOT_SUPPORTED)
    }

    fn cuMemcpyAtoH_v2(_dst: HostPtr, _array: Handle, _offset: usize, _len: usize) {
        Err(Status::NOT_SUPPORTED)
    }
}

aliases! {}
