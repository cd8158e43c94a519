//! Device memory: allocation, release, what is left.

use std::ffi::{c_int, c_uint, c_void};

use crate::driver::abi::{DevicePtr, Handle, In, MemLocation, Out};
use crate::driver::core::{Access, Space, Touch};
use crate::driver::exports::{aliases, exports, invalid, unsupported};
use crate::driver::job::{Action, Job};
use crate::driver::session::{Session, context, context_or};
use crate::driver::status::{Result, Status};
use crate::memory::Allocation;

/// The pitch of `cuMemAllocPitch` is a multiple of this.
const PITCH: usize = 512;

/// Allocates on the current context's device. Memory whose release waits in a stream is waited for before a refusal, as
/// CUDA's allocator does.
pub(super) fn allocate(cuda: &mut Session, bytes: u64) -> Result<Allocation> {
    let (gpu, owner) = (cuda.gpu(), cuda.context);
    match gpu.alloc(owner, bytes) {
        Ok(made) => Ok(made),
        Err(_) => {
            let goal = cuda.all_of(owner);
            cuda.run(&goal);
            cuda.context(owner)?;
            gpu.alloc(owner, bytes).map_err(|text| {
                crate::report::warn(&text);
                Status::OUT_OF_MEMORY
            })
        }
    }
}

/// Frees what `cuMemFree` gets: waits for the legacy default stream, then makes sure that nothing else still uses it.
fn free(cuda: &mut Session, address: DevicePtr) -> Result {
    let found = cuda.locate(address).filter(|(_, found)| found.base == address);
    let Some((device, found)) = found else {
        return Err(invalid("cuMemFree", &cuda.gpu().explain_free(address)));
    };
    if !cuda.devices[device].owns(address) {
        return Err(invalid("cuMemFree", &format!("{address:#x} is not memory that was allocated by the program")));
    }
    let context = cuda.context;
    let id = cuda.contexts[&context].legacy;
    let what = "free (cuMemFree)".into();
    let job = Job { context, stream: Handle::NULL, what, action: Action::Mark(None) };
    let what = job.describe(id);
    let clock = cuda.enqueue(id, job)?;
    cuda.wait_for(&clock);
    // What ran before without an order is found by the ledger, what still waits by running it.
    let space = Space::Device { device, allocation: found.id };
    let range = found.base..found.base + found.size;
    let touch = Touch { stream: id, epoch: clock.get(id), what };
    cuda.touch_now(context, (space, range.clone(), Access::Write), &clock, &touch);
    cuda.settle(&[(space, range, Access::Write)], id, &clock);
    cuda.release(device, found.base, found.id);
    cuda.context(context).map(|_| ())
}

exports! {
    fn cuMemAlloc_v2(address: Out<DevicePtr>, bytes: usize) {
        let mut cuda = context()?;
        if address.is_null() || bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        cuda.refuse_while_capturing()?;
        address.set(allocate(&mut cuda, bytes as u64)?.base)
    }

    fn cuMemAllocPitch_v2(
        address: Out<DevicePtr>, pitch: Out<usize>, width: usize, height: usize, element: c_uint,
    ) {
        let mut cuda = context()?;
        if address.is_null() || pitch.is_null() || width == 0 || height == 0 || ![4, 8, 16].contains(&element) {
            return Err(Status::INVALID_VALUE);
        }
        cuda.refuse_while_capturing()?;
        let row = width.checked_next_multiple_of(PITCH).ok_or(Status::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(Status::OUT_OF_MEMORY)?;
        address.set(allocate(&mut cuda, bytes as u64)?.base)?;
        pitch.set(row)
    }

    fn cuMemFree_v2(address: DevicePtr) {
        let owner = |cuda: &Session| {
            cuda.locate(address).map(|(device, found)| cuda.devices[device].owner(found.base))
        };
        let mut cuda = context_or(owner)?;
        if address == 0 {
            return Ok(());
        }
        cuda.refuse_while_capturing()?;
        free(&mut cuda, address)
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let gpu = context()?.gpu();
        let capacity = gpu.description.memory_bytes;
        free.set_if_wanted((capacity - gpu.used().min(capacity)) as usize);
        total.set_if_wanted(capacity as usize);
        Ok(())
    }

    fn cuMemGetAddressRange_v2(base: Out<DevicePtr>, size: Out<usize>, address: DevicePtr) {
        let cuda = context()?;
        let (_, found) = cuda.locate(address).ok_or(Status::NOT_FOUND)?;
        base.set_if_wanted(found.base);
        size.set_if_wanted(found.size as usize);
        Ok(())
    }

    fn cuMemAllocManaged(_address: Out<DevicePtr>, _bytes: usize, _flags: c_uint) {
        context()?;
        Err(unsupported("cuMemAllocManaged", "managed memory"))
    }

    #[ptsz]
    fn cuMemPrefetchAsync(_address: DevicePtr, _bytes: usize, _device: c_int, _stream: Handle) {
        Err(unsupported("cuMemPrefetchAsync", "managed memory"))
    }

    #[ptsz]
    fn cuMemPrefetchAsync_v2(
        _address: DevicePtr, _bytes: usize, _place: MemLocation, _flags: c_uint, _stream: Handle,
    ) {
        Err(unsupported("cuMemPrefetchAsync", "managed memory"))
    }

    fn cuMemAdvise(_address: DevicePtr, _bytes: usize, _advice: c_uint, _device: c_int) {
        Err(unsupported("cuMemAdvise", "managed memory"))
    }

    fn cuMemAdvise_v2(_address: DevicePtr, _bytes: usize, _advice: c_uint, _place: MemLocation) {
        Err(unsupported("cuMemAdvise", "managed memory"))
    }

    fn cuMemCreate(_handle: Out<u64>, _size: usize, _properties: In<u8>, _flags: u64) {
        Err(unsupported("cuMemCreate", "virtual memory management"))
    }

    fn cuMemAddressReserve(_address: Out<DevicePtr>, _size: usize, _align: usize, _at: DevicePtr, _flags: u64) {
        Err(unsupported("cuMemAddressReserve", "virtual memory management"))
    }

    fn cuMemGetAllocationGranularity(_granularity: Out<usize>, _properties: In<u8>, _option: c_uint) {
        Err(unsupported("cuMemGetAllocationGranularity", "virtual memory management"))
    }

    fn cuIpcGetMemHandle(_handle: Out<[u8; 64]>, _address: DevicePtr) {
        Err(unsupported("cuIpcGetMemHandle", "memory shared between processes"))
    }

    fn cuImportExternalMemory(_memory: Out<Handle>, _description: In<u8>) {
        Err(unsupported("cuImportExternalMemory", "external memory"))
    }

    fn cuDestroyExternalMemory(_memory: Handle) {
        Err(unsupported("cuDestroyExternalMemory", "external memory"))
    }

    fn cuExternalMemoryGetMappedBuffer(_address: Out<DevicePtr>, _memory: Handle, _description: In<c_void>) {
        Err(unsupported("cuExternalMemoryGetMappedBuffer", "external memory"))
    }
}

aliases! {}
