//! Filling device memory with bytes, 16-bit and 32-bit elements.

use std::ffi::{c_uchar, c_uint, c_ushort};

use crate::driver::abi::{DevicePtr, Handle};
use crate::driver::exports::{aliases, exports};
use crate::driver::resolve::FillShape;
use crate::driver::session::context;
use crate::driver::status::Result;

fn set(call: &str, stream: Handle, address: DevicePtr, value: u32, size: u64, count: usize) -> Result {
    let width = count as u64;
    let pitch = width.saturating_mul(size);
    context()?.fill(call, stream, FillShape { address, pitch, value, size, width, height: 1 })
}

fn set_2d(
    call: &str,
    stream: Handle,
    address: DevicePtr,
    pitch: usize,
    value: u32,
    size: u64,
    shape: [usize; 2],
) -> Result {
    let [width, height] = shape.map(|n| n as u64);
    context()?.fill(call, stream, FillShape { address, pitch: pitch as u64, value, size, width, height })
}

exports! {
    #[ptds]
    fn cuMemsetD8_v2(dst: DevicePtr, value: c_uchar, count: usize) {
        set("cuMemsetD8", Handle::NULL, dst, value.into(), 1, count)
    }

    #[ptds]
    fn cuMemsetD16_v2(dst: DevicePtr, value: c_ushort, count: usize) {
        set("cuMemsetD16", Handle::NULL, dst, value.into(), 2, count)
    }

    #[ptds]
    fn cuMemsetD32_v2(dst: DevicePtr, value: c_uint, count: usize) {
        set("cuMemsetD32", Handle::NULL, dst, value, 4, count)
    }

    #[ptsz]
    fn cuMemsetD8Async(dst: DevicePtr, value: c_uchar, count: usize, stream: Handle) {
        set("cuMemsetD8Async", stream, dst, value.into(), 1, count)
    }

    #[ptsz]
    fn cuMemsetD16Async(dst: DevicePtr, value: c_ushort, count: usize, stream: Handle) {
        set("cuMemsetD16Async", stream, dst, value.into(), 2, count)
    }

    #[ptsz]
    fn cuMemsetD32Async(dst: DevicePtr, value: c_uint, count: usize, stream: Handle) {
        set("cuMemsetD32Async", stream, dst, value, 4, count)
    }

    #[ptds]
    fn cuMemsetD2D8_v2(dst: DevicePtr, pitch: usize, value: c_uchar, width: usize, height: usize) {
        set_2d("cuMemsetD2D8", Handle::NULL, dst, pitch, value.into(), 1, [width, height])
    }

    #[ptds]
    fn cuMemsetD2D16_v2(dst: DevicePtr, pitch: usize, value: c_ushort, width: usize, height: usize) {
        set_2d("cuMemsetD2D16", Handle::NULL, dst, pitch, value.into(), 2, [width, height])
    }

    #[ptds]
    fn cuMemsetD2D32_v2(dst: DevicePtr, pitch: usize, value: c_uint, width: usize, height: usize) {
        set_2d("cuMemsetD2D32", Handle::NULL, dst, pitch, value, 4, [width, height])
    }

    #[ptsz]
    fn cuMemsetD2D8Async(dst: DevicePtr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: Handle) {
        set_2d("cuMemsetD2D8Async", stream, dst, pitch, value.into(), 1, [width, height])
    }

    #[ptsz]
    fn cuMemsetD2D16Async(dst: DevicePtr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: Handle) {
        set_2d("cuMemsetD2D16Async", stream, dst, pitch, value.into(), 2, [width, height])
    }

    #[ptsz]
    fn cuMemsetD2D32Async(dst: DevicePtr, pitch: usize, value: c_uint, width: usize, height: usize, stream: Handle) {
        set_2d("cuMemsetD2D32Async", stream, dst, pitch, value, 4, [width, height])
    }
}

aliases! {}
