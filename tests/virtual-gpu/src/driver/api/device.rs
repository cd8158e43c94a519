//! Devices, what they offer, and their primary contexts.

use std::ffi::{c_char, c_int, c_uint};

use crate::device::Description;
use crate::driver::abi::{DeviceNumber, DeviceProperties, Handle, Out, Text};
use crate::driver::exports::{aliases, exports, unsupported};
use crate::driver::session::{Session, driver};
use crate::driver::state::{Primary, current_stack};
use crate::driver::status::{Result, Status};

/// Bytes of constant memory on every GPU since compute capability 1.0.
const CONSTANT_BYTES: i32 = 64 << 10;
/// The largest pitch of a copy.
const MAX_PITCH: i32 = i32::MAX;
/// The largest grid, x y z, since compute capability 3.0.
const MAX_GRID: [i32; 3] = [i32::MAX, 65535, 65535];

/// A `CUdevice_attribute` of a device; none for a number that CUDA 12.2 does not know.
fn attribute(device: &Description, number: usize, attribute: c_uint) -> Option<i32> {
    let int = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
    let (major, minor) = device.compute_capability;
    let threads = device.max_threads_per_block as i32;
    Some(match attribute {
        1..=3 => threads,     // threads of a block, in x, in y
        4 => threads.min(64), // in z
        5 => MAX_GRID[0],
        6 => MAX_GRID[1],
        7 => MAX_GRID[2],
        8 => device.shared_per_block as i32,
        9 => CONSTANT_BYTES,
        10 => 32, // warp
        11 => MAX_PITCH,
        12 => device.registers_per_block as i32,
        13 => device.clock_khz as i32,
        14 => 512, // texture alignment
        15 => 1,   // copies overlap kernels
        16 => device.sms as i32,
        17 | 18 => 0, // no timeout, not integrated
        19 => 1,      // maps host memory
        20 => 0,      // compute mode: default
        21 => 131_072,
        22 => 131_072,
        23 => 65_536,
        24..=26 => 16_384,
        27 | 28 => 32_768,
        29 => 2_048,
        30 => 512, // surface alignment
        31 => 1,   // concurrent kernels
        32 => i32::from(device.ecc),
        33 => int(number as u64 + 1), // PCI bus
        34 | 35 => 0,                 // PCI device, TCC
        36 => device.memory_clock_khz as i32,
        37 => device.bus_width_bits as i32,
        38 => int(device.l2_bytes),
        39 => device.max_threads_per_sm as i32,
        40 => 2, // copy engines
        41 => 1, // unified addressing
        42 => 32_768,
        43 => 2_048,
        44 => 1,
        45 | 46 => 32_768,
        47 | 48 => 8_192,
        49 => 32_768,
        50 => 0,  // PCI domain
        51 => 32, // texture pitch alignment
        52 | 53 => 32_768,
        54 => 2_046,
        55 => 32_768,
        56 => 131_072,
        57 => 65_536,
        58..=60 => 16_384,
        61 => 32_768,
        62 => 2_048,
        63 | 64 => 32_768,
        65 => 2_048,
        66 | 67 => 32_768,
        68 => 2_046,
        69 => 268_435_456,
        70 => 131_072,
        71 => 65_000,
        72 => 2_097_120,
        73 | 74 => 32_768,
        75 => major as i32,
        76 => minor as i32,
        77 => 32_768,
        78..=80 => 1, // stream priorities, global and local data in the first-level cache
        81 => device.shared_per_sm as i32,
        82 => device.registers_per_sm as i32,
        83 => 0, // managed memory: not by the virtual GPU
        84 => 0,
        85 => int(number as u64),
        86 => 0, // host atomics
        87 => device.fp32_to_fp64_ratio as i32,
        88 | 89 => 0, // pageable access, concurrent managed access
        90 => 1,      // preemption
        91 => 0,      // registered memory has an address of its own on the device
        92..=94 => 0, // stream memory operations: not by the virtual GPU
        95 => 1,      // cooperative launch
        96 => 0,
        97 => device.shared_per_block_optin as i32,
        98 => 0,
        99 => 1, // host registration
        100..=105 => 0,
        106 => device.max_blocks_per_sm as i32,
        107 => 0,
        108 => int(device.l2_bytes / 4 * 3), // what may be set aside for persisting accesses
        109 => 128 << 20,                    // access policy window
        110 => 0,
        111 => device.reserved_shared_per_block as i32,
        112 | 114 => 0,
        113 => 1,
        115 => 1, // memory pools
        116..=119 => 0,
        120 => i32::from(major >= 9), // cluster launch
        121 => 0,
        122..=134 => 0,
        _ => return None,
    })
}

exports! {
    fn cuDeviceGet(device: Out<DeviceNumber>, ordinal: c_int) {
        driver()?.device(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetCount(count: Out<c_int>) {
        count.set(driver()?.devices.len() as c_int)
    }

    fn cuDeviceGetName(name: Out<c_char>, len: c_int, device: DeviceNumber) {
        let cuda = driver()?;
        let text = &cuda.device(device)?.description.name;
        if len <= 0 {
            return Err(Status::INVALID_VALUE);
        }
        let kept = text.bytes().take(len as usize - 1);
        name.set_all(kept.chain([0]).map(|byte| byte as c_char))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: DeviceNumber) {
        driver()?.device(device)?;
        let mut bytes = *b"VirtualGPU\0\0\0\0\0\0";
        bytes[12..].copy_from_slice(&device.to_be_bytes());
        uuid.set(bytes)
    }

    fn cuDeviceGetLuid(_luid: Out<c_char>, _mask: Out<c_uint>, device: DeviceNumber) {
        driver()?.device(device)?;
        Err(Status::NOT_SUPPORTED) // as on any Linux
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: DeviceNumber) {
        bytes.set(driver()?.device(device)?.description.memory_bytes as usize)
    }

    fn cuDeviceGetAttribute(value: Out<c_int>, which: c_uint, device: DeviceNumber) {
        let cuda = driver()?;
        let gpu = cuda.device(device)?;
        value.set(attribute(&gpu.description, device as usize, which).ok_or(Status::INVALID_VALUE)?)
    }

    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: DeviceNumber) {
        let capability = driver()?.device(device)?.description.compute_capability;
        major.set(capability.0 as c_int)?;
        minor.set(capability.1 as c_int)
    }

    fn cuDeviceGetProperties(properties: Out<DeviceProperties>, device: DeviceNumber) {
        let cuda = driver()?;
        let device = &cuda.device(device)?.description;
        let threads = device.max_threads_per_block as c_int;
        properties.set(DeviceProperties {
            max_threads_per_block: threads,
            max_threads_dim: [threads, threads, threads.min(64)],
            max_grid_size: MAX_GRID,
            shared_mem_per_block: device.shared_per_block as c_int,
            total_constant_memory: CONSTANT_BYTES,
            simd_width: 32,
            mem_pitch: MAX_PITCH,
            regs_per_block: device.registers_per_block as c_int,
            clock_rate: device.clock_khz as c_int,
            texture_align: 512,
        })
    }

    fn cuDeviceGetPCIBusId(id: Out<c_char>, len: c_int, device: DeviceNumber) {
        driver()?.device(device)?;
        let text = format!("0000:{:02x}:00.0", device + 1);
        if (len.max(0) as usize) <= text.len() {
            return Err(Status::INVALID_VALUE);
        }
        id.set_all(text.bytes().chain([0]).map(|byte| byte as c_char))
    }

    fn cuDeviceGetByPCIBusId(device: Out<DeviceNumber>, id: Text) {
        let id = id.get()?;
        let bus = id.rsplit(':').nth(1).and_then(|bus| c_int::from_str_radix(bus, 16).ok());
        let number = bus.and_then(|bus| bus.checked_sub(1)).ok_or(Status::INVALID_VALUE)?;
        driver()?.device(number)?;
        device.set(number)
    }

    fn cuDeviceCanAccessPeer(can: Out<c_int>, device: DeviceNumber, peer: DeviceNumber) {
        let cuda = driver()?;
        cuda.device(device)?;
        cuda.device(peer)?;
        can.set(0) // copies between devices work; kernels see their own device's memory
    }

    fn cuDeviceGetP2PAttribute(value: Out<c_int>, which: c_uint, from: DeviceNumber, to: DeviceNumber) {
        let cuda = driver()?;
        cuda.device(from)?;
        cuda.device(to)?;
        if from == to || !(1..=4).contains(&which) {
            return Err(Status::INVALID_VALUE);
        }
        value.set(0)
    }

    fn cuDeviceGetExecAffinitySupport(value: Out<c_int>, _kind: c_uint, device: DeviceNumber) {
        driver()?.device(device)?;
        value.set(0)
    }

    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: DeviceNumber) {
        let cuda = driver()?;
        cuda.device(device)?;
        pool.set(cuda.default_pool[device as usize])
    }

    fn cuDeviceGetMemPool(pool: Out<Handle>, device: DeviceNumber) {
        let cuda = driver()?;
        cuda.device(device)?;
        pool.set(cuda.current_pool[device as usize])
    }

    fn cuDeviceSetMemPool(device: DeviceNumber, pool: Handle) {
        let mut cuda = driver()?;
        cuda.device(device)?;
        let target = cuda.pools.get(&pool).ok_or(Status::INVALID_VALUE)?;
        if target.device != device as usize {
            return Err(Status::INVALID_DEVICE);
        }
        cuda.current_pool[device as usize] = pool;
        Ok(())
    }

    fn cuDeviceGetGraphMemAttribute(device: DeviceNumber, _which: c_uint, value: Out<u64>) {
        driver()?.device(device)?;
        value.set(0)
    }

    fn cuDeviceSetGraphMemAttribute(device: DeviceNumber, _which: c_uint, value: Out<u64>) {
        driver()?.device(device)?;
        value.get().map(|_| ())
    }

    fn cuDeviceGraphMemTrim(device: DeviceNumber) {
        driver()?.device(device).map(|_| ())
    }

    fn cuFlushGPUDirectRDMAWrites(_target: c_uint, _scope: c_uint) {
        Err(unsupported("cuFlushGPUDirectRDMAWrites", "remote memory access"))
    }

    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: DeviceNumber) {
        let mut cuda = driver()?;
        cuda.device(device)?;
        if context.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let Primary { context: made, flags, .. } = cuda.primary[device as usize];
        let handle = made.unwrap_or_else(|| cuda.create_context(device as usize, flags, true));
        let primary = &mut cuda.primary[device as usize];
        (primary.context, primary.count) = (Some(handle), primary.count + 1);
        context.set(handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: DeviceNumber) {
        let mut cuda = driver()?;
        cuda.device(device)?;
        let primary = cuda.primary[device as usize];
        match primary.count {
            0 => Err(Status::INVALID_CONTEXT),
            1 => reset(&mut cuda, device),
            _ => {
                cuda.primary[device as usize].count -= 1;
                Ok(())
            }
        }
    }

    fn cuDevicePrimaryCtxReset_v2(device: DeviceNumber) {
        let mut cuda = driver()?;
        cuda.device(device)?;
        reset(&mut cuda, device)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: DeviceNumber, flags: c_uint) {
        let mut cuda = driver()?;
        cuda.device(device)?;
        cuda.primary[device as usize].flags = flags;
        if let Some(context) = cuda.primary[device as usize].context {
            cuda.context_mut(context)?.flags = flags;
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: DeviceNumber, flags: Out<c_uint>, active: Out<c_int>) {
        let cuda = driver()?;
        cuda.device(device)?;
        let primary = cuda.primary[device as usize];
        flags.set(primary.flags)?;
        active.set(c_int::from(primary.context.is_some()))
    }
}

/// Runs what the primary context still owes, and destroys it.
fn reset(cuda: &mut Session, device: DeviceNumber) -> Result {
    if let Some(context) = cuda.primary[device as usize].context {
        let goal = cuda.all_of(context);
        cuda.wait_for(&goal);
        let lost = cuda.contexts.get(&context).and_then(|context| context.lost);
        cuda.destroy_context(context);
        let primary = &mut cuda.primary[device as usize];
        (primary.context, primary.count) = (None, 0);
        current_stack(|stack| stack.retain(|handle| *handle != context));
        return lost.map_or(Ok(()), Err);
    }
    Ok(())
}

aliases! {
    cuDeviceGetUuid = cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: DeviceNumber);
    cuDevicePrimaryCtxRelease = cuDevicePrimaryCtxRelease_v2(device: DeviceNumber);
    cuDevicePrimaryCtxReset = cuDevicePrimaryCtxReset_v2(device: DeviceNumber);
    cuDevicePrimaryCtxSetFlags = cuDevicePrimaryCtxSetFlags_v2(device: DeviceNumber, flags: c_uint);
}
