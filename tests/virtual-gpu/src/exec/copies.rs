//! `cp.async`: read now, written to shared memory when the thread waits for its group.

use super::access::{Done, addresses, at, lanes, misaligned, of_window, request, shared_request};
use super::regs::LANES;
use super::view::View;
use super::warp::{Copies, Worker};
use crate::fault::Kind;
use crate::memory::AccessError;
use crate::program::*;

impl Worker<'_> {
    pub(super) fn cp_async(&mut self, v: &mut View<'_>, c: &CpAsync, m: u32) -> Done {
        let to = addresses(&v.warp.regs, &c.dst).map(|a| of_window(a).1);
        let from = addresses(&v.warp.regs, &c.src);
        let size = u32::from(c.size);
        let take = c.src_size.map_or([size; LANES], |s| v.warp.regs.u32s(s));
        let ignore = c.ignore_src.map_or(0, |p| v.warp.regs.mask(p));
        let reading = lanes(m).filter(|l| ignore >> l & 1 == 0 && take[*l] > 0).fold(0, |x, l| x | 1 << l);
        if reading != 0 {
            request(&mut self.tally.counters.global_load, &from, reading, size);
        }
        shared_request(&mut self.tally.counters.shared_store, &to, m, size);
        let mut copies = Box::new(Copies { m, to: [0; LANES], data: [[0; 2]; LANES], group: v.warp.committed, size });
        for lane in lanes(m) {
            if take[lane] > size {
                let what = format!("src-size {} is more than the {size} bytes copied", take[lane]);
                return Err(at(lane)(AccessError::new(Kind::InvalidOperand, what)));
            }
            let n = if reading >> lane & 1 == 1 { take[lane] } else { 0 };
            if n > 0 {
                // The whole access must be aligned; only its first bytes need to be there.
                if from[lane] & u64::from(size - 1) != 0 {
                    return Err(at(lane)(misaligned("global", from[lane], size)));
                }
                if n == size {
                    let (r, offset) = self.readable(from[lane], size).map_err(at(lane))?;
                    let r = &self.ctx.regions[r];
                    copies.data[lane] = match size {
                        4 | 8 => [r.load(offset, size), 0],
                        _ => [r.load(offset, 8), r.load(offset + 8, 8)],
                    };
                    v.write_shared(to[lane], size, lane, false, false)?;
                    copies.to[lane] = to[lane] as u32;
                    v.shared.begin_copy(to[lane] as u32, size);
                    continue;
                }
                let mut bytes = [0u8; 16];
                for (i, byte) in bytes[..n as usize].iter_mut().enumerate() {
                    let (r, offset) = self.readable(from[lane] + i as u64, 1).map_err(at(lane))?;
                    *byte = self.ctx.regions[r].load(offset, 1) as u8;
                }
                let half = |i: usize| bytes[i..i + 8].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
                copies.data[lane] = [half(0), half(8)];
            }
            v.write_shared(to[lane], size, lane, false, false)?;
            copies.to[lane] = to[lane] as u32;
            v.shared.begin_copy(to[lane] as u32, size);
        }
        v.warp.copies.push(*copies);
        Ok(())
    }
}
