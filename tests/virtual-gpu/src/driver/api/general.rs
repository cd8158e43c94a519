//! Initialisation, versions, errors, entry points, and the profiler's switches.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::driver::abi::{In, Out, Text};
use crate::driver::exports::{aliases, exports};
use crate::driver::session;
use crate::driver::status::Status;

/// CUDA 12.2.
pub const VERSION: c_int = 12020;

/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const SYMBOL_NOT_FOUND: c_int = 1;
/// `CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT`.
const VERSION_NOT_SUFFICIENT: c_int = 2;
/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD_DEFAULT_STREAM: u64 = 2;

/// Functions whose later versions have another signature: base name, version, first CUDA version that means it.
const VERSIONED: &[(&str, &str, c_int)] = &[
    ("cuCtxCreate", "cuCtxCreate_v3", 11040),
    ("cuGraphAddKernelNode", "cuGraphAddKernelNode_v2", 12000),
    ("cuGraphKernelNodeGetParams", "cuGraphKernelNodeGetParams_v2", 12000),
    ("cuGraphKernelNodeSetParams", "cuGraphKernelNodeSetParams_v2", 12000),
    ("cuGraphExecKernelNodeSetParams", "cuGraphExecKernelNodeSetParams_v2", 12000),
    ("cuGraphExecUpdate", "cuGraphExecUpdate_v2", 12000),
    ("cuGetProcAddress", "cuGetProcAddress_v2", 12000),
    ("cuDeviceGetUuid", "cuDeviceGetUuid_v2", 11040),
    ("cuStreamGetCaptureInfo", "cuStreamGetCaptureInfo_v2", 11030),
];

/// The address of an entry point as a program of CUDA version `version` means it.
fn find(name: &str, version: c_int) -> Option<*const ()> {
    let exact = |name: &str| {
        super::ALL.iter().flat_map(|list| list.iter()).find(|(known, _)| *known == name).map(|(_, address)| *address)
    };
    if let Some((_, versioned, _)) = VERSIONED.iter().find(|(base, _, from)| *base == name && version >= *from) {
        return exact(versioned);
    }
    // Since CUDA 3.2 and 4.0 a bare name means the `_v2` of it, where there is one.
    exact(&format!("{name}_v2")).filter(|_| !VERSIONED.iter().any(|row| row.0 == name)).or_else(|| exact(name))
}

exports! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        session::initialise()
    }

    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(VERSION)
    }

    fn cuGetErrorName(error: Status, text: Out<*const c_char>) {
        match error.name() {
            Some(name) => text.set(name.as_ptr()),
            None => {
                text.set(std::ptr::null())?;
                Err(Status::INVALID_VALUE)
            }
        }
    }

    fn cuGetErrorString(error: Status, text: Out<*const c_char>) {
        match error.sentence() {
            Some(sentence) => text.set(sentence.as_ptr()),
            None => {
                text.set(std::ptr::null())?;
                Err(Status::INVALID_VALUE)
            }
        }
    }

    fn cuGetProcAddress(symbol: Text, address: Out<*const ()>, version: c_int, flags: u64) {
        let name = symbol.get()?;
        if address.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let found = find(&name, version).filter(|_| flags & PER_THREAD_DEFAULT_STREAM == 0);
        address.set(found.unwrap_or(std::ptr::null()))?;
        found.map(|_| ()).ok_or(Status::NOT_FOUND)
    }

    fn cuGetProcAddress_v2(symbol: Text, address: Out<*const ()>, version: c_int, flags: u64, result: Out<c_int>) {
        let name = symbol.get()?;
        if address.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let found = find(&name, version).filter(|_| flags & PER_THREAD_DEFAULT_STREAM == 0);
        address.set(found.unwrap_or(std::ptr::null()))?;
        match found {
            Some(_) => {
                result.set_if_wanted(0);
                Ok(())
            }
            // With a place for the reason, CUDA reports what is missing there and succeeds.
            None if !result.is_null() => {
                let known = find(&name, c_int::MAX).is_some() && flags & PER_THREAD_DEFAULT_STREAM == 0;
                result.set(if known { VERSION_NOT_SUFFICIENT } else { SYMBOL_NOT_FOUND })
            }
            None => Err(Status::NOT_FOUND),
        }
    }

    fn cuGetExportTable(table: Out<*const c_void>, id: In<[u8; 16]>) {
        // The private tables that NVIDIA's runtime asks for are not documented.
        id.get()?;
        table.set(std::ptr::null())?;
        Err(Status::NOT_FOUND)
    }

    fn cuProfilerInitialize(config: Text, output: Text, _mode: c_int) {
        config.bytes()?;
        output.bytes()?;
        session::context().map(|_| ())
    }

    fn cuProfilerStart() {
        session::context().map(|_| ())
    }

    fn cuProfilerStop() {
        session::context().map(|_| ())
    }
}

aliases! {}
