//! Memory in stream order: `cuMemAllocAsync` and the pools behind it.
//!
//! The address is known at once; the memory may be used by work that comes after the allocation, and by none that comes
//! after the release. Pools hold nothing back: what is freed is the device's again once the stream gets there.

use std::ffi::{c_int, c_uint, c_void};

use crate::driver::abi::{DevicePtr, Handle, HostPtr, In, MemLocation, MemPoolProps, Out};
use crate::driver::exports::{exports, invalid, unsupported};
use crate::driver::graph::Task;
use crate::driver::job::{Action, Lifetime};
use crate::driver::session::{Session, context, driver};
use crate::driver::state::Pool;
use crate::driver::status::{Result, Status};

use super::memory::allocate;

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const LOCATION_DEVICE: c_uint = 1;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD` and those from it on hold 64 bits, those before 32.
const FIRST_WIDE: c_uint = 4;

fn allocate_in_order(address: Out<DevicePtr>, bytes: usize, pool: Handle, stream: Handle) -> Result {
    let mut cuda = context()?;
    if address.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    if bytes == 0 {
        return address.set(0);
    }
    let device = cuda.device_number();
    let pool = if pool.is_null() { cuda.current_pool[device] } else { pool };
    if cuda.pools.get(&pool).ok_or(Status::INVALID_VALUE)?.device != device {
        return Err(unsupported("cuMemAllocFromPoolAsync", "a pool of another device than the current context's"));
    }
    let (id, _) = cuda.stream(stream)?;
    let made = allocate(&mut cuda, bytes as u64)?;
    let life = Lifetime { device, allocation: made.id, address: made.base, size: made.size, release: false };
    if let Some(capture) = cuda.capture_of(id) {
        cuda.note(capture, id, Task::Alloc(life))?;
        return address.set(made.base);
    }
    cuda.pooled.insert(made.base, pool);
    if let Some(pool) = cuda.pools.get_mut(&pool) {
        pool.alive.insert(made.base, made.size);
        pool.used += made.size;
        pool.high = pool.high.max(pool.used);
    }
    cuda.submit(stream, "allocation (cuMemAllocAsync)", Action::Mark(Some(life)))?;
    address.set(made.base)
}

fn free_in_order(cuda: &mut Session, address: DevicePtr, stream: Handle) -> Result {
    let found = cuda.locate(address).filter(|(_, found)| found.base == address);
    let Some((device, found)) = found.filter(|(device, _)| cuda.devices[*device].owns(address)) else {
        return Err(invalid("cuMemFreeAsync", &cuda.gpu().explain_free(address)));
    };
    let life = Lifetime { device, allocation: found.id, address, size: found.size, release: true };
    let (id, _) = cuda.stream(stream)?;
    if let Some(capture) = cuda.capture_of(id) {
        let graph = cuda.captures[&capture].graph;
        let owned = cuda.graphs.get(&graph).is_some_and(|graph| graph.owned().iter().any(|o| o.address == address));
        if !owned {
            return Err(unsupported(
                "cuMemFreeAsync",
                "in a capture, freeing memory that the capture did not allocate",
            ));
        }
        return cuda.note(capture, id, Task::Free(Lifetime { release: false, ..life })).map(|_| ());
    }
    cuda.submit(stream, "free (cuMemFreeAsync)", Action::Mark(Some(life)))?;
    cuda.give_back(address);
    Ok(())
}

exports! {
    #[ptsz]
    fn cuMemAllocAsync(address: Out<DevicePtr>, bytes: usize, stream: Handle) {
        allocate_in_order(address, bytes, Handle::NULL, stream)
    }

    #[ptsz]
    fn cuMemAllocFromPoolAsync(address: Out<DevicePtr>, bytes: usize, pool: Handle, stream: Handle) {
        if pool.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        allocate_in_order(address, bytes, pool, stream)
    }

    #[ptsz]
    fn cuMemFreeAsync(address: DevicePtr, stream: Handle) {
        let mut cuda = context()?;
        if address == 0 {
            return Ok(());
        }
        free_in_order(&mut cuda, address, stream)
    }

    fn cuMemPoolCreate(pool: Out<Handle>, properties: In<MemPoolProps>) {
        let mut cuda = driver()?;
        let properties = properties.get()?;
        if pool.is_null() || properties.alloc_type != 1 || properties.location.kind != LOCATION_DEVICE {
            return Err(Status::INVALID_VALUE);
        }
        if properties.handle_types != 0 {
            return Err(unsupported("cuMemPoolCreate", "memory shared between processes"));
        }
        cuda.device(properties.location.id)?;
        let handle = cuda.handle();
        cuda.pools.insert(handle, Pool { device: properties.location.id as usize, ..Pool::default() });
        pool.set(handle)
    }

    fn cuMemPoolDestroy(pool: Handle) {
        let mut cuda = driver()?;
        if cuda.default_pool.contains(&pool) {
            return Err(Status::INVALID_VALUE);
        }
        let target = cuda.pools.get_mut(&pool).ok_or(Status::INVALID_VALUE)?;
        target.doomed = true;
        if target.alive.is_empty() {
            cuda.pools.remove(&pool);
        }
        for device in 0..cuda.devices.len() {
            if cuda.current_pool[device] == pool {
                cuda.current_pool[device] = cuda.default_pool[device];
            }
        }
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: Handle, which: c_uint, value: Out<u64>) {
        let cuda = driver()?;
        let pool = cuda.pools.get(&pool).ok_or(Status::INVALID_VALUE)?;
        let kept = pool.attributes.get(&which).copied();
        match which {
            1..=3 => value.cast::<c_int>().set(kept.map_or(1, |kept| kept as c_int)),
            4 => value.set(kept.unwrap_or(0)),
            5 | 7 => value.set(pool.used),
            6 | 8 => value.set(pool.high),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    fn cuMemPoolSetAttribute(pool: Handle, which: c_uint, value: Out<u64>) {
        let mut cuda = driver()?;
        let pool = cuda.pools.get_mut(&pool).ok_or(Status::INVALID_VALUE)?;
        match which {
            1..FIRST_WIDE => {
                pool.attributes.insert(which, value.cast::<c_uint>().get()?.into());
                Ok(())
            }
            FIRST_WIDE => {
                pool.attributes.insert(which, value.get()?);
                Ok(())
            }
            6 | 8 if value.get()? == 0 => {
                pool.high = pool.used; // a high-water mark can only be reset
                Ok(())
            }
            _ => Err(Status::INVALID_VALUE),
        }
    }

    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        driver()?.pools.get(&pool).ok_or(Status::INVALID_VALUE).map(|_| ())
    }

    fn cuMemPoolSetAccess(pool: Handle, descriptions: In<[u32; 3]>, count: usize) {
        let cuda = driver()?;
        let device = cuda.pools.get(&pool).ok_or(Status::INVALID_VALUE)?.device;
        for [_, id, _] in descriptions.all(count)? {
            if id as usize != device {
                return Err(unsupported("cuMemPoolSetAccess", "access from another device"));
            }
        }
        Ok(())
    }

    fn cuMemPoolGetAccess(flags: Out<c_uint>, pool: Handle, place: In<MemLocation>) {
        let cuda = driver()?;
        let device = cuda.pools.get(&pool).ok_or(Status::INVALID_VALUE)?.device;
        let place = place.get()?;
        flags.set(if place.kind == LOCATION_DEVICE && place.id as usize == device { 3 } else { 0 })
    }

    fn cuMemPoolExportToShareableHandle(_handle: Out<c_void>, _pool: Handle, _kind: c_uint, _flags: u64) {
        Err(unsupported("cuMemPoolExportToShareableHandle", "memory shared between processes"))
    }

    fn cuMemPoolImportFromShareableHandle(_pool: Out<Handle>, _handle: HostPtr, _kind: c_uint, _flags: u64) {
        Err(unsupported("cuMemPoolImportFromShareableHandle", "memory shared between processes"))
    }
}
