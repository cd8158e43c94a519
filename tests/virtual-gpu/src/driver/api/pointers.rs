//! What the driver knows of an address.

use std::ffi::{c_int, c_uint};

use crate::driver::abi::{DevicePtr, Handle, HostPtr, In, MEMORY_DEVICE, MEMORY_HOST, Out};
use crate::driver::exports::exports;
use crate::driver::session::{Session, context};
use crate::driver::status::{Result, Status};

/// A value of any of the sizes that attributes have.
enum Value {
    Word(u64),
    Int(u32),
    Byte(bool),
}

fn attribute(cuda: &Session, which: c_uint, address: DevicePtr) -> Result<Value> {
    let pinned = usize::try_from(address).ok().and_then(|host| cuda.pinned(HostPtr(host), 1));
    let (device, base, size, id, context, host) = match (pinned, cuda.locate(address)) {
        (Some((base, block)), _) => {
            let device = cuda.contexts.get(&block.context).map_or(0, |context| context.device);
            (device, base as u64, block.len as u64, base as u64, block.context, true)
        }
        (None, Some((device, found))) => {
            (device, found.base, found.size, found.id, cuda.devices[device].owner(found.base), false)
        }
        (None, None) => return Err(Status::INVALID_VALUE),
    };
    Ok(match which {
        1 => Value::Word(context.0 as u64),
        2 => Value::Int(if host { MEMORY_HOST } else { MEMORY_DEVICE }),
        3 => Value::Word(address),
        4 if host => Value::Word(address),
        4 => return Err(Status::INVALID_VALUE), // device memory has no host pointer
        6 => Value::Int(1),                     // synchronous operations: as if always set
        7 => Value::Word(id),
        8 => Value::Int(0), // managed
        9 => Value::Int(device as u32),
        10 => Value::Int(0),
        11 => Value::Word(base),
        12 => Value::Word(size),
        13 => Value::Byte(true),
        14 => Value::Word(0),
        15 => Value::Byte(false),
        16 => Value::Int(3), // read and write
        17 => Value::Word(cuda.pooled.get(&base).copied().unwrap_or_default().0 as u64),
        18 => Value::Word(size),
        19 => Value::Word(base),
        20 => Value::Word(id),
        _ => return Err(Status::INVALID_VALUE),
    })
}

fn hand_out(value: &Value, out: Out<u64>) -> Result {
    match value {
        Value::Word(word) => out.set(*word),
        Value::Int(int) => out.cast::<u32>().set(*int),
        Value::Byte(byte) => out.cast::<bool>().set(*byte),
    }
}

exports! {
    fn cuPointerGetAttribute(out: Out<u64>, which: c_uint, address: DevicePtr) {
        let cuda = context()?;
        hand_out(&attribute(&cuda, which, address)?, out)
    }

    fn cuPointerGetAttributes(count: c_uint, which: In<c_uint>, out: In<Out<u64>>, address: DevicePtr) {
        let cuda = context()?;
        for index in 0..count as usize {
            // Unlike the single query, this one answers zeros for an address that is not known.
            let wanted = which.at(index)?;
            let value = attribute(&cuda, wanted, address).unwrap_or(match wanted {
                2 | 6 | 8 | 9 | 10 | 16 => Value::Int(if wanted == 9 { c_int::from(-2i8) as u32 } else { 0 }),
                13 | 15 => Value::Byte(false),
                _ => Value::Word(0),
            });
            hand_out(&value, out.at(index)?)?;
        }
        Ok(())
    }

    fn cuPointerSetAttribute(value: In<u32>, which: c_uint, address: DevicePtr) {
        let cuda = context()?;
        value.get()?;
        cuda.locate(address).ok_or(Status::INVALID_VALUE)?;
        if which == 6 { Ok(()) } else { Err(Status::INVALID_VALUE) }
    }

    fn cuMemGetAccess(flags: Out<u64>, _place: In<u8>, _address: DevicePtr) {
        context()?;
        flags.set(3)
    }

    fn cuStreamAttachMemAsync(_stream: Handle, _address: DevicePtr, _len: usize, _flags: c_uint) {
        Err(crate::driver::exports::unsupported("cuStreamAttachMemAsync", "managed memory"))
    }
}
