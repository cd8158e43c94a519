//! Contexts: making, choosing, waiting for them, and their settings.

use std::ffi::{c_int, c_uint, c_void};

use crate::driver::abi::{DeviceNumber, Handle, In, Out};
use crate::driver::exports::{aliases, exports, unsupported};
use crate::driver::session::{Session, context, driver};
use crate::driver::state::{LIMITS, current, current_stack};
use crate::driver::status::{Result, Status};

/// `CU_CTX_*` flags that CUDA 12.2 knows.
const FLAGS: c_uint = 0xff;

fn create(handle: Out<Handle>, flags: c_uint, device: DeviceNumber) -> Result {
    let mut cuda = driver()?;
    cuda.device(device)?;
    if handle.is_null() || flags & !FLAGS != 0 {
        return Err(Status::INVALID_VALUE);
    }
    let made = cuda.create_context(device as usize, flags, false);
    current_stack(|stack| stack.push(made));
    handle.set(made)
}

/// A context that calls name, alive but perhaps failed.
fn named(cuda: &Session, handle: Handle) -> Result<Handle> {
    let handle = if handle.is_null() { current() } else { handle };
    match cuda.contexts.contains_key(&handle) {
        true => Ok(handle),
        false => Err(Status::INVALID_CONTEXT),
    }
}

exports! {
    fn cuCtxCreate_v2(handle: Out<Handle>, flags: c_uint, device: DeviceNumber) {
        create(handle, flags, device)
    }

    fn cuCtxCreate_v3(
        handle: Out<Handle>, affinity: In<u8>, affinities: c_int, flags: c_uint, device: DeviceNumber,
    ) {
        if !affinity.is_null() || affinities != 0 {
            return Err(unsupported("cuCtxCreate_v3", "execution affinity"));
        }
        create(handle, flags, device)
    }

    fn cuCtxCreate_v4(handle: Out<Handle>, parameters: In<[usize; 3]>, flags: c_uint, device: DeviceNumber) {
        if !parameters.is_null() && parameters.get()? != [0; 3] {
            return Err(unsupported("cuCtxCreate_v4", "execution affinity and sharing with graphics"));
        }
        create(handle, flags, device)
    }

    fn cuCtxDestroy_v2(handle: Handle) {
        let mut cuda = driver()?;
        let known = cuda.contexts.get(&handle).ok_or(Status::INVALID_CONTEXT)?;
        if known.primary {
            return Err(Status::INVALID_CONTEXT);
        }
        let goal = cuda.all_of(handle);
        cuda.wait_for(&goal);
        let lost = cuda.contexts.get(&handle).and_then(|context| context.lost);
        cuda.destroy_context(handle);
        current_stack(|stack| {
            if stack.last() == Some(&handle) {
                stack.pop();
            }
        });
        lost.map_or(Ok(()), Err)
    }

    fn cuCtxPushCurrent_v2(handle: Handle) {
        let cuda = driver()?;
        if !cuda.contexts.contains_key(&handle) {
            return Err(Status::INVALID_CONTEXT);
        }
        current_stack(|stack| stack.push(handle));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(handle: Out<Handle>) {
        driver()?;
        let popped = current_stack(Vec::pop).ok_or(Status::INVALID_CONTEXT)?;
        handle.set_if_wanted(popped);
        Ok(())
    }

    fn cuCtxSetCurrent(handle: Handle) {
        let cuda = driver()?;
        if !handle.is_null() && !cuda.contexts.contains_key(&handle) {
            return Err(Status::INVALID_CONTEXT);
        }
        current_stack(|stack| {
            stack.pop();
            if !handle.is_null() {
                stack.push(handle);
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(handle: Out<Handle>) {
        driver()?;
        handle.set(current())
    }

    fn cuCtxGetDevice(device: Out<DeviceNumber>) {
        let cuda = driver()?;
        let handle = named(&cuda, Handle::NULL)?;
        device.set(cuda.contexts[&handle].device as DeviceNumber)
    }

    fn cuCtxGetFlags(flags: Out<c_uint>) {
        let cuda = context()?;
        flags.set(cuda.contexts[&cuda.context].flags)
    }

    fn cuCtxSetFlags(flags: c_uint) {
        let mut cuda = context()?;
        if flags & !FLAGS != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let handle = cuda.context;
        cuda.context_mut(handle)?.flags = flags;
        Ok(())
    }

    fn cuCtxGetId(handle: Handle, id: Out<u64>) {
        let cuda = driver()?;
        id.set(named(&cuda, handle)?.0 as u64)
    }

    fn cuCtxGetApiVersion(handle: Handle, version: Out<c_uint>) {
        let cuda = driver()?;
        named(&cuda, handle)?;
        version.set(3020) // the version that `cuCtxCreate_v2` stands for, as NVIDIA's driver answers
    }

    fn cuCtxSynchronize() {
        let mut cuda = context()?;
        cuda.refuse_while_capturing()?;
        let handle = cuda.context;
        let goal = cuda.all_of(handle);
        cuda.synchronize(handle, &goal)
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: c_uint) {
        let cuda = context()?;
        if limit as usize >= LIMITS {
            return Err(Status::UNSUPPORTED_LIMIT);
        }
        value.set(cuda.contexts[&cuda.context].limits[limit as usize])
    }

    fn cuCtxSetLimit(limit: c_uint, value: usize) {
        let mut cuda = context()?;
        if limit as usize >= LIMITS {
            return Err(Status::UNSUPPORTED_LIMIT);
        }
        let handle = cuda.context;
        cuda.context_mut(handle)?.limits[limit as usize] = value;
        Ok(())
    }

    fn cuCtxGetCacheConfig(config: Out<c_int>) {
        let cuda = context()?;
        config.set(cuda.contexts[&cuda.context].cache_config)
    }

    fn cuCtxSetCacheConfig(config: c_int) {
        let mut cuda = context()?;
        if !(0..=3).contains(&config) {
            return Err(Status::INVALID_VALUE);
        }
        let handle = cuda.context;
        cuda.context_mut(handle)?.cache_config = config;
        Ok(())
    }

    fn cuCtxGetSharedMemConfig(config: Out<c_int>) {
        let cuda = context()?;
        config.set(cuda.contexts[&cuda.context].shared_config)
    }

    fn cuCtxSetSharedMemConfig(config: c_int) {
        context()?;
        if !(0..=2).contains(&config) {
            return Err(Status::INVALID_VALUE);
        }
        Ok(()) // banks are 4 bytes wide on every GPU since compute capability 5.0
    }

    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        context()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() {
        context().map(|_| ())
    }

    fn cuCtxGetExecAffinity(_affinity: Out<c_void>, _kind: c_uint) {
        context()?;
        Err(Status::UNSUPPORTED_EXEC_AFFINITY)
    }

    fn cuCtxEnablePeerAccess(_peer: Handle, flags: c_uint) {
        context()?;
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        Err(Status::PEER_ACCESS_UNSUPPORTED)
    }

    fn cuCtxDisablePeerAccess(_peer: Handle) {
        context()?;
        Err(Status::PEER_ACCESS_NOT_ENABLED)
    }

    fn cuCtxAttach(_handle: Out<Handle>, _flags: c_uint) {
        Err(unsupported("cuCtxAttach", "counting the uses of a context (deprecated)"))
    }

    fn cuCtxDetach(_handle: Handle) {
        Err(unsupported("cuCtxDetach", "counting the uses of a context (deprecated)"))
    }
}

aliases! {
    cuCtxDestroy = cuCtxDestroy_v2(handle: Handle);
    cuCtxPushCurrent = cuCtxPushCurrent_v2(handle: Handle);
    cuCtxPopCurrent = cuCtxPopCurrent_v2(handle: Out<Handle>);
    cuCtxCreate = cuCtxCreate_v2(handle: Out<Handle>, flags: c_uint, device: DeviceNumber);
}
