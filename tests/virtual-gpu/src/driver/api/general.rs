//! Initialisation, versions, errors, entry points, and the profiler's switches.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::driver::abi::{In, Out, Text};
use crate::driver::exports::{aliases, exports};
use crate::driver::session;
use crate::driver::status::Status;

/// CUDA 12.2.
pub const VERSION: c_int = 12020;
/// The environment variable that makes the driver say another version: what programs do with one that is too old.
const VERSION_VARIABLE: &str = "VIRTUAL_GPU_DRIVER";

/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const SYMBOL_NOT_FOUND: c_int = 1;
/// `CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT`.
const VERSION_NOT_SUFFICIENT: c_int = 2;
/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD_DEFAULT_STREAM: u64 = 2;

/// Names that mean another function since some version: base name, that version, the function since, and before.
const VERSIONED: &[(&str, c_int, &str, &str)] = &[
    ("cuCtxCreate", 11040, "cuCtxCreate_v3", "cuCtxCreate_v2"),
    ("cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2", "cuDeviceGetUuid"),
    ("cuGetProcAddress", 12000, "cuGetProcAddress_v2", "cuGetProcAddress"),
    ("cuGraphAddKernelNode", 12000, "cuGraphAddKernelNode_v2", "cuGraphAddKernelNode"),
    ("cuGraphExecKernelNodeSetParams", 12000, "cuGraphExecKernelNodeSetParams_v2", "cuGraphExecKernelNodeSetParams"),
    ("cuGraphExecUpdate", 12000, "cuGraphExecUpdate_v2", "cuGraphExecUpdate"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags", "cuGraphInstantiate_v2"),
    ("cuGraphKernelNodeGetParams", 12000, "cuGraphKernelNodeGetParams_v2", "cuGraphKernelNodeGetParams"),
    ("cuGraphKernelNodeSetParams", 12000, "cuGraphKernelNodeSetParams_v2", "cuGraphKernelNodeSetParams"),
    ("cuMemAdvise", c_int::MAX, "cuMemAdvise_v2", "cuMemAdvise"),
    ("cuMemPrefetchAsync", c_int::MAX, "cuMemPrefetchAsync_v2", "cuMemPrefetchAsync"),
];

/// The address of an entry point as a program of CUDA version `version` means it; with per-thread default streams the
/// function's variant for them, where it has one.
fn find(name: &str, version: c_int, flags: u64) -> Option<*const ()> {
    let plain = |name: &str| {
        super::ALL.iter().flat_map(|list| list.iter()).find(|(known, _)| *known == name).map(|(_, address)| *address)
    };
    let exact = |name: &str| {
        let own = flags & PER_THREAD_DEFAULT_STREAM != 0;
        let variant = |ending| own.then(|| plain(&format!("{name}{ending}"))).flatten();
        variant("_ptsz").or_else(|| variant("_ptds")).or_else(|| plain(name))
    };
    match VERSIONED.iter().find(|row| row.0 == name) {
        Some((_, from, since, before)) => exact(if version >= *from { since } else { before }),
        // A bare name means the `_v2` of it, where there is one, since CUDA 3.2, 4.0 or 10.1.
        None => exact(&format!("{name}_v2")).or_else(|| exact(name)),
    }
}

exports! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        session::initialise()
    }

    fn cuDriverGetVersion(version: Out<c_int>) {
        let said = std::env::var(VERSION_VARIABLE).ok().and_then(|said| said.parse().ok());
        version.set(said.unwrap_or(VERSION))
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
        let found = find(&name, version, flags);
        address.set(found.unwrap_or(std::ptr::null()))?;
        found.map(|_| ()).ok_or(Status::NOT_FOUND)
    }

    fn cuGetProcAddress_v2(symbol: Text, address: Out<*const ()>, version: c_int, flags: u64, result: Out<c_int>) {
        let name = symbol.get()?;
        if address.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let found = find(&name, version, flags);
        address.set(found.unwrap_or(std::ptr::null()))?;
        match found {
            Some(_) => {
                result.set_if_wanted(0);
                Ok(())
            }
            // With a place for the reason, CUDA reports what is missing there and succeeds.
            None if !result.is_null() => {
                let known = find(&name, c_int::MAX, flags).is_some();
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
        session::context()?;
        crate::report::calls::start();
        Ok(())
    }

    fn cuProfilerStop() {
        session::context()?;
        crate::report::calls::stop();
        Ok(())
    }
}

aliases! {}
