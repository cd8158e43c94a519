//! Page-locked host memory: allocated, or the program's own, registered. Devices see it at its host address.

use std::ffi::c_uint;
use std::sync::Arc;

use crate::driver::abi::{DevicePtr, Handle, HostPtr, Out};
use crate::driver::core::{Access, Space, Touch};
use crate::driver::exports::{aliases, exports, invalid};
use crate::driver::guard::Pinned;
use crate::driver::job::{Action, Job};
use crate::driver::session::{Session, context, context_or};
use crate::driver::state::HostBlock;
use crate::driver::status::{Result, Status};

/// `CU_MEMHOSTALLOC_PORTABLE | DEVICEMAP | WRITECOMBINED`.
const ALLOC_FLAGS: c_uint = 7;
/// `CU_MEMHOSTREGISTER_PORTABLE | DEVICEMAP | IOMEMORY | READ_ONLY`.
const REGISTER_FLAGS: c_uint = 15;

fn allocate(out: Out<HostPtr>, bytes: usize, flags: c_uint) -> Result {
    let mut cuda = context()?;
    if out.is_null() || bytes == 0 || flags & !ALLOC_FLAGS != 0 {
        return Err(Status::INVALID_VALUE);
    }
    cuda.refuse_while_capturing()?;
    let memory = Pinned::new(bytes).ok_or(Status::OUT_OF_MEMORY)?;
    let address = memory.address();
    let block = HostBlock { len: bytes, flags, memory: Some(Arc::new(memory)), context: cuda.context };
    register(&mut cuda, address, block)?;
    out.set(address)
}

fn register(cuda: &mut Session, address: HostPtr, block: HostBlock) -> Result {
    for (index, device) in cuda.devices.iter().enumerate() {
        if !device.map_host(address, block.through(address), block.len) {
            cuda.devices[..index].iter().for_each(|device| device.unmap_host(address));
            return Err(Status::HOST_MEMORY_ALREADY_REGISTERED);
        }
    }
    cuda.host.insert(address.0, block);
    Ok(())
}

/// Takes a block from the driver: work that is still to use it, unordered with what the host knows, is an error.
fn remove(call: &str, address: HostPtr, registered: bool) -> Result {
    let mut cuda = context_or(|cuda| cuda.host.get(&address.0).map(|block| block.context))?;
    cuda.refuse_while_capturing()?;
    let block = match cuda.host.get(&address.0) {
        Some(block) if block.memory.is_none() == registered => block.clone(),
        _ if registered => return Err(Status::HOST_MEMORY_NOT_REGISTERED),
        _ => return Err(invalid(call, &format!("{:#x} was not allocated by the driver", address.0))),
    };
    let context = cuda.context;
    let id = cuda.contexts[&context].legacy;
    let job = Job { context, stream: Handle::NULL, what: call.into(), action: Action::Mark(None) };
    let what = job.describe(id);
    let clock = cuda.enqueue(id, job)?;
    cuda.wait_for(&clock);
    let range = address.0 as u64..address.0 as u64 + block.len as u64;
    let touch = Touch { stream: id, epoch: clock.get(id), what };
    cuda.touch_now(context, (Space::Host, range.clone(), Access::Write), &clock, &touch);
    cuda.settle(&[(Space::Host, range, Access::Write)], id, &clock);
    cuda.host.remove(&address.0);
    cuda.devices.iter().for_each(|device| device.unmap_host(address));
    cuda.context(context).map(|_| ())
}

exports! {
    fn cuMemAllocHost_v2(address: Out<HostPtr>, bytes: usize) {
        allocate(address, bytes, 0)
    }

    fn cuMemHostAlloc(address: Out<HostPtr>, bytes: usize, flags: c_uint) {
        allocate(address, bytes, flags)
    }

    fn cuMemFreeHost(address: HostPtr) {
        if address.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        remove("cuMemFreeHost", address, false)
    }

    fn cuMemHostRegister_v2(address: HostPtr, bytes: usize, flags: c_uint) {
        let mut cuda = context()?;
        if address.is_null() || bytes == 0 || flags & !REGISTER_FLAGS != 0 {
            return Err(Status::INVALID_VALUE);
        }
        cuda.refuse_while_capturing()?;
        let block = HostBlock { len: bytes, flags, memory: None, context: cuda.context };
        register(&mut cuda, address, block)
    }

    fn cuMemHostUnregister(address: HostPtr) {
        remove("cuMemHostUnregister", address, true)
    }

    fn cuMemHostGetDevicePointer_v2(device: Out<DevicePtr>, address: HostPtr, flags: c_uint) {
        let cuda = context()?;
        if flags != 0 || cuda.pinned(address, 1).is_none() {
            return Err(Status::INVALID_VALUE);
        }
        device.set(address.0 as u64)
    }

    fn cuMemHostGetFlags(flags: Out<c_uint>, address: HostPtr) {
        let cuda = context()?;
        let (_, block) = cuda.pinned(address, 1).ok_or(Status::INVALID_VALUE)?;
        flags.set(block.flags)
    }
}

aliases! {
    cuMemAllocHost = cuMemAllocHost_v2(address: Out<HostPtr>, bytes: usize);
    cuMemHostRegister = cuMemHostRegister_v2(address: HostPtr, bytes: usize, flags: c_uint);
    cuMemHostGetDevicePointer = cuMemHostGetDevicePointer_v2(device: Out<DevicePtr>, address: HostPtr, flags: c_uint);
}
