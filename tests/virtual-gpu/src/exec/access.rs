//! Loads and stores: address by address, with every check.

use std::sync::atomic::Ordering::SeqCst;

use super::integer::{low, value};
use super::regs::{LANES, Regs};
use super::view::View;
use super::warp::{Trouble, Worker};
use crate::counters::{SharedTraffic, Traffic};
use crate::fault::Kind;
use crate::memory::{AccessError, bank_passes, window};
use crate::program::*;

pub(super) type Done = Result<(), Trouble>;

const READ: u8 = 1;
const WRITTEN: u8 = 2;

/// Addresses of an operand, lane by lane.
pub(super) fn addresses(r: &Regs, a: &Address) -> [u64; LANES] {
    let base = if a.wide { r.u64s(a.base) } else { r.u32s(a.base).map(u64::from) };
    if matches!(a.base, Src::Imm(_)) && !a.wide {
        // A symbol: its address is not cut to the width of a register.
        return r.u64s(a.base).map(|b| b.wrapping_add_signed(a.offset));
    }
    base.map(|b| b.wrapping_add_signed(a.offset))
}

/// The space a generic address lies in, and the address there.
pub(super) fn of_window(a: u64) -> (Space, u64) {
    for (base, space) in [(window::SHARED, Space::Shared), (window::LOCAL, Space::Local), (window::PARAM, Space::Param)]
    {
        if a.wrapping_sub(base) < window::SIZE {
            return (space, a - base);
        }
    }
    (Space::Global, a)
}

/// The lanes of `m` by space, addresses made those of the space.
pub(super) fn by_space(space: Space, addresses: &mut [u64; LANES], m: u32) -> [(Space, u32); 4] {
    let space = if space == Space::Const { Space::Global } else { space };
    let mut masks = [(Space::Global, 0), (Space::Shared, 0), (Space::Local, 0), (Space::Param, 0)];
    if space != Space::Generic {
        masks[0] = (space, m);
        return masks;
    }
    for l in lanes(m) {
        let (s, a) = of_window(addresses[l]);
        addresses[l] = a;
        if let Some(e) = masks.iter_mut().find(|e| e.0 == s) {
            e.1 |= 1 << l;
        }
    }
    masks
}

/// Indices of the set bits.
#[inline(always)]
pub(super) fn lanes(mut m: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let l = m.trailing_zeros();
        m &= m - 1;
        Some(l as usize)
    })
}

/// Distinct 32-byte sectors that a request touches. Accesses are aligned and at most 16 bytes: none straddles.
fn sectors(addresses: &[u64; LANES], m: u32) -> u64 {
    let (mut n, mut last, mut sorted) = (0, u64::MAX, true);
    let mut ids = [0u64; LANES];
    for (i, l) in lanes(m).enumerate() {
        let id = addresses[l] >> 5;
        ids[i] = id;
        if id != last {
            sorted &= last == u64::MAX || id > last;
            n += 1;
            last = id;
        }
    }
    if sorted {
        return n;
    }
    let ids = &mut ids[..m.count_ones() as usize];
    ids.sort_unstable();
    1 + ids.windows(2).filter(|w| w[0] != w[1]).count() as u64
}

pub(super) fn request(t: &mut Traffic, addresses: &[u64; LANES], m: u32, bytes: u32) {
    t.requests += 1;
    t.sectors += sectors(addresses, m);
    t.bytes += u64::from(bytes * m.count_ones());
}

pub(super) fn shared_request(t: &mut SharedTraffic, addresses: &[u64; LANES], m: u32, bytes: u32) {
    let (passes, least) = bank_passes(addresses, m, bytes);
    t.requests += 1;
    t.conflicts += u64::from(passes - least);
    t.bytes += u64::from(bytes * m.count_ones());
}

pub(super) fn at(lane: usize) -> impl Fn(AccessError) -> Trouble {
    move |error| Trouble { lane: lane as u32, error }
}

fn strong(order: Order) -> bool {
    order != Order::Weak
}

impl Worker<'_> {
    /// The region and the offset of `n` bytes.
    #[inline(always)]
    fn region(&mut self, a: u64, n: u32, touch: u8) -> Result<(usize, u64), AccessError> {
        if a & u64::from(n - 1) != 0 {
            return Err(misaligned("global", a, n));
        }
        if let Some(r) = self.ctx.regions.get(self.cached) {
            let offset = a.wrapping_sub(r.allocation.base);
            if offset < r.allocation.size && u64::from(n) <= r.allocation.size - offset {
                self.touched[self.cached].note(touch, offset, n);
                return Ok((self.cached, offset));
            }
        }
        let regions = self.ctx.regions;
        let i = regions.partition_point(|r| r.allocation.base <= a).wrapping_sub(1);
        match regions.get(i) {
            Some(r) if a - r.allocation.base < r.allocation.size => {
                let offset = a - r.allocation.base;
                if u64::from(n) > r.allocation.size - offset {
                    return Err(self.ctx.memory.explain(a, n.into()));
                }
                self.cached = i;
                self.touched[i].note(touch, offset, n);
                Ok((i, offset))
            }
            _ => Err(self.ctx.memory.explain(a, n.into())),
        }
    }

    pub(super) fn readable(&mut self, a: u64, n: u32) -> Result<(usize, u64), AccessError> {
        let (i, offset) = self.region(a, n, READ)?;
        let r = &self.ctx.regions[i];
        if r.initialised(offset, n.into()) {
            return Ok((i, offset));
        }
        let what = format!(
            "{n} bytes read at {a:#x}, byte {offset} of the allocation of {} bytes at {:#x}, that nothing has written",
            r.allocation.size, r.allocation.base
        );
        Err(AccessError::new(Kind::UninitialisedGlobal, what))
    }

    pub(super) fn writable(&mut self, a: u64, n: u32) -> Result<(usize, u64), AccessError> {
        let (i, offset) = self.region(a, n, WRITTEN)?;
        if self.ctx.regions[i].read_only() {
            let what = format!("a write at {a:#x}, which is constant memory");
            return Err(AccessError::new(Kind::ReadOnly, what));
        }
        Ok((i, offset))
    }

    /// Notes a read of what other threads may change: the same values again at the same instruction is polling.
    pub(super) fn poll(&mut self, v: &mut View<'_>, a: &[u64; LANES], values: &[u64; LANES], m: u32) {
        let mix = |h: u64, x: u64| (h ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        let seen = (v.pc, lanes(m).fold(m.into(), |h, l| mix(mix(h, a[l]), values[l])));
        let warp = &mut *v.warp;
        let known = warp.polls.iter().position(|(pc, _)| *pc == v.pc).unwrap_or_else(|| {
            warp.next_poll = (warp.next_poll + 1) % warp.polls.len() as u8;
            warp.next_poll.into()
        });
        if warp.polls[known] == seen {
            self.patience -= 1;
        }
        warp.polls[known] = seen;
    }

    /// Loads; gives the lanes whose value is a byte of local memory that they have not written. Compilers copy structures byte
    /// by byte, padding included: the register is then one that nothing has written.
    pub(super) fn load(&mut self, v: &mut View<'_>, l: &Load, m: u32) -> Result<u32, Trouble> {
        let a = addresses(&v.warp.regs, &l.address);
        let mut out = [[0u64; LANES]; 4];
        let bare = self.fetch(v, l.space, l.order, l.ty.bytes(), l.count as usize, a, m, &mut out)?;
        for (d, values) in l.dst[..l.count as usize].iter().zip(&mut out) {
            let Some(d) = d else { continue };
            if l.ty.signed() && l.width.bits() > l.ty.bits() {
                *values = values.map(|x| low(value(x, l.ty) as u64, l.width.bits()));
            }
            v.warp.regs.put(*d, l.width.class(), m, values);
            if bare != 0 {
                let init = v.warp.regs.init_index(*d, l.width.class());
                v.warp.regs.init[init] = v.warp.regs.init[init] & !bare | m & !bare;
            }
        }
        Ok(bare)
    }

    /// One value a lane, for all lanes.
    pub(super) fn load_at(
        &mut self,
        v: &mut View<'_>,
        s: Space,
        ty: Type,
        a: &[u64; LANES],
        out: &mut [u64; LANES],
    ) -> Done {
        let mut values = [[0; LANES]; 4];
        self.fetch(v, s, Order::Weak, ty.bytes(), 1, *a, !0, &mut values)?;
        *out = values[0];
        Ok(())
    }

    /// Loads `count` values of `n` bytes a lane; gives the lanes that read a byte of local memory that they have not written.
    fn fetch(
        &mut self,
        v: &mut View<'_>,
        space: Space,
        order: Order,
        n: u32,
        count: usize,
        mut a: [u64; LANES],
        m: u32,
        out: &mut [[u64; LANES]; 4],
    ) -> Result<u32, Trouble> {
        let bytes = n * count as u32;
        let mut bare = 0;
        for (space, m) in by_space(space, &mut a, m) {
            if m == 0 {
                continue;
            }
            match space {
                Space::Global | Space::Const | Space::Generic => {
                    request(&mut self.tally.counters.global_load, &a, m, bytes);
                    if !self.load_row(&a, m, n, count, &mut out[0]) {
                        for lane in lanes(m) {
                            let (i, offset) = self.readable(a[lane], bytes).map_err(at(lane))?;
                            for (e, out) in out[..count].iter_mut().enumerate() {
                                out[lane] = self.ctx.regions[i].load(offset + u64::from(n) * e as u64, n);
                            }
                        }
                    }
                    if strong(order) {
                        std::sync::atomic::fence(SeqCst);
                        self.poll(v, &a, &out[0], m);
                    }
                }
                Space::Shared => {
                    shared_request(&mut self.tally.counters.shared_load, &a, m, bytes);
                    for lane in lanes(m) {
                        v.read_shared(a[lane], bytes, lane, strong(order), self.ctx.kernel.fences)?;
                        for (e, out) in out[..count].iter_mut().enumerate() {
                            out[lane] = v.shared.load(a[lane] as u32 + n * e as u32, n);
                        }
                    }
                    if strong(order) {
                        self.poll(v, &a, &out[0], m);
                    }
                }
                Space::Local => {
                    self.tally.counters.local_requests += 1;
                    for lane in lanes(m) {
                        lane_bounds("local", a[lane], bytes, v.warp.local.bytes()).map_err(at(lane))?;
                        for (e, out) in out[..count].iter_mut().enumerate() {
                            let (value, written) = v.warp.local.load(lane, a[lane] + u64::from(n) * e as u64, n);
                            if written == 0 && bytes == 1 {
                                bare |= 1 << lane;
                            } else if written == 0 {
                                let what = format!(
                                    "{n} bytes read at local address {:#x} that the thread has not written",
                                    a[lane]
                                );
                                return Err(at(lane)(AccessError::new(Kind::UninitialisedLocal, what)));
                            }
                            out[lane] = value;
                        }
                    }
                }
                Space::Param => {
                    for lane in lanes(m) {
                        for (e, out) in out[..count].iter_mut().enumerate() {
                            let a = a[lane] + u64::from(n) * e as u64;
                            out[lane] = self.load_param(v, lane, a, n).map_err(at(lane))?;
                        }
                    }
                }
            }
        }
        Ok(bare)
    }

    /// Loads a full warp's consecutive values at once; false if they are not so, or something needs a closer look.
    #[inline(always)]
    fn load_row(&mut self, a: &[u64; LANES], m: u32, n: u32, count: usize, out: &mut [u64; LANES]) -> bool {
        if m != !0 || count != 1 || !consecutive(a, n) || a[0] & u64::from(n - 1) != 0 {
            return false;
        }
        let Some((i, offset)) = self.row(a[0], n * 32, READ) else { return false };
        let r = &self.ctx.regions[i];
        if !r.initialised(offset, u64::from(n) * 32) {
            return false;
        }
        for (l, out) in out.iter_mut().enumerate() {
            *out = r.load(offset + u64::from(n) * l as u64, n);
        }
        true
    }

    /// As `region`, without alignment and without a reason.
    fn row(&mut self, a: u64, n: u32, touch: u8) -> Option<(usize, u64)> {
        let regions = self.ctx.regions;
        let inside = |i: usize| {
            let r = regions.get(i)?;
            let offset = a.wrapping_sub(r.allocation.base);
            (offset < r.allocation.size && u64::from(n) <= r.allocation.size - offset).then_some((i, offset))
        };
        let found = inside(self.cached)
            .or_else(|| inside(regions.partition_point(|r| r.allocation.base <= a).wrapping_sub(1)))?;
        self.cached = found.0;
        self.touched[found.0].note(touch, found.1, n);
        Some(found)
    }

    fn load_param(&mut self, v: &View<'_>, lane: usize, a: u64, n: u32) -> Result<u64, AccessError> {
        if a >= CALL_PARAMS {
            let a = a - CALL_PARAMS;
            lane_bounds("parameter", a, n, v.warp.frame.bytes())?;
            return Ok(v.warp.frame.load(lane, a, n).0);
        }
        let params = self.ctx.params;
        lane_bounds("parameter", a, n, params.len() as u64)?;
        let mut bytes = [0; 8];
        bytes[..n as usize].copy_from_slice(&params[a as usize..a as usize + n as usize]);
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn store(&mut self, v: &mut View<'_>, s: &Store, m: u32) -> Done {
        let a = addresses(&v.warp.regs, &s.address);
        let mut values = [[0u64; LANES]; 4];
        for (values, src) in values[..s.count as usize].iter_mut().zip(&s.src) {
            *values = v.warp.regs.wide(*src, s.width.class());
        }
        let (n, count) = (s.ty.bytes(), s.count as usize);
        let mut written = [m; 4];
        if s.padded() {
            for (written, src) in written[..count].iter_mut().zip(&s.src) {
                if let Src::Reg(reg) = src {
                    *written &= v.warp.regs.init[v.warp.regs.init_index(*reg, s.width.class())];
                }
            }
        }
        if written[..count].iter().all(|w| *w == m) {
            return self.place(v, s.space, s.order, n, count, a, m, &values);
        }
        self.place_written(v, s, &a, m, &written, &values)
    }

    /// Stores the elements of vectors and parameters that were written. Compilers pass the padding of structures along; what
    /// of it was never written leaves memory as it is, and parameters unwritten.
    fn place_written(
        &mut self,
        v: &mut View<'_>,
        s: &Store,
        a: &[u64; LANES],
        m: u32,
        written: &[u32; 4],
        values: &[[u64; LANES]; 4],
    ) -> Done {
        let n = s.ty.bytes();
        let nothing = m & !written[..s.count as usize].iter().fold(0, |all, w| all | w);
        // Whole vectors of padding occur as bytes alone.
        if nothing != 0 && s.space != Space::Param && n > 1 {
            let names = s.src[..s.count as usize].iter().filter_map(|src| match src {
                Src::Reg(reg) => Some(v.warp.regs.init_index(*reg, s.width.class())),
                _ => None,
            });
            let function = v.code[v.pc as usize].function;
            let names: Vec<_> = names.map(|slot| self.ctx.register_name(function, slot as u32)).collect();
            let what = format!("registers {} are read, but the thread has written none of them", names.join(", "));
            return Err(at(nothing.trailing_zeros() as usize)(AccessError::new(Kind::UninitialisedRegister, what)));
        }
        for (e, (written, values)) in written[..s.count as usize].iter().zip(values).enumerate() {
            let a = a.map(|a| a.wrapping_add(u64::from(n) * e as u64));
            self.place(v, s.space, s.order, n, 1, a, m & written, &[*values, [0; LANES], [0; LANES], [0; LANES]])?;
            if s.space != Space::Param {
                continue;
            }
            for lane in lanes(m & !written) {
                let at = a[lane].wrapping_sub(CALL_PARAMS);
                if at.checked_add(n.into()).is_some_and(|end| end <= v.warp.frame.bytes()) {
                    v.warp.frame.unwrite(lane, at, n);
                }
            }
        }
        Ok(())
    }

    /// Loads parameters; a register whose parameter was never written is none that has been written.
    pub(super) fn load_params(&mut self, v: &mut View<'_>, l: &Load, m: u32) -> Done {
        let a = addresses(&v.warp.regs, &l.address);
        let n = l.ty.bytes();
        self.load(v, l, m)?;
        for (e, d) in l.dst[..l.count as usize].iter().enumerate() {
            let Some(d) = d else { continue };
            let written = lanes(m).filter(|lane| match a[*lane].checked_sub(CALL_PARAMS) {
                Some(at) => v.warp.frame.load(*lane, at + u64::from(n) * e as u64, n).1 != 0,
                None => true,
            });
            let written = written.fold(0, |w, lane| w | 1 << lane);
            let init = v.warp.regs.init_index(*d, l.width.class());
            v.warp.regs.init[init] = v.warp.regs.init[init] & !m | written;
        }
        Ok(())
    }

    /// One value a lane, for all lanes.
    pub(super) fn store_at(
        &mut self,
        v: &mut View<'_>,
        s: Space,
        ty: Type,
        a: &[u64; LANES],
        value: &[u64; LANES],
    ) -> Done {
        let values = [*value, [0; LANES], [0; LANES], [0; LANES]];
        self.place(v, s, Order::Weak, ty.bytes(), 1, *a, !0, &values)
    }

    /// Stores `count` values of `n` bytes a lane.
    fn place(
        &mut self,
        v: &mut View<'_>,
        space: Space,
        order: Order,
        n: u32,
        count: usize,
        mut a: [u64; LANES],
        m: u32,
        values: &[[u64; LANES]; 4],
    ) -> Done {
        let bytes = n * count as u32;
        for (space, m) in by_space(space, &mut a, m) {
            if m == 0 {
                continue;
            }
            match space {
                Space::Global | Space::Const | Space::Generic => {
                    request(&mut self.tally.counters.global_store, &a, m, bytes);
                    if strong(order) {
                        std::sync::atomic::fence(SeqCst);
                    }
                    if m == !0
                        && count == 1
                        && consecutive(&a, n)
                        && a[0] & u64::from(n - 1) == 0
                        && let Some((i, offset)) = self.row(a[0], n * 32, WRITTEN)
                        && !self.ctx.regions[i].read_only()
                    {
                        let r = &self.ctx.regions[i];
                        for (l, value) in values[0].iter().enumerate() {
                            r.store(offset + u64::from(n) * l as u64, n, *value);
                        }
                        r.mark(offset, u64::from(n) * 32);
                        continue;
                    }
                    for lane in lanes(m) {
                        let (i, offset) = self.writable(a[lane], bytes).map_err(at(lane))?;
                        let r = &self.ctx.regions[i];
                        for (e, values) in values[..count].iter().enumerate() {
                            r.store(offset + u64::from(n) * e as u64, n, values[lane]);
                        }
                        r.mark(offset, bytes.into());
                    }
                }
                Space::Shared => {
                    shared_request(&mut self.tally.counters.shared_store, &a, m, bytes);
                    for lane in lanes(m) {
                        v.write_shared(a[lane], bytes, lane, strong(order), self.ctx.kernel.fences)?;
                        for (e, values) in values[..count].iter().enumerate() {
                            v.shared.store(a[lane] as u32 + n * e as u32, n, values[lane]);
                        }
                    }
                }
                Space::Local => {
                    self.tally.counters.local_requests += 1;
                    for lane in lanes(m) {
                        lane_bounds("local", a[lane], bytes, v.warp.local.bytes()).map_err(at(lane))?;
                        for (e, values) in values[..count].iter().enumerate() {
                            v.warp.local.store(lane, a[lane] + u64::from(n) * e as u64, n, values[lane]);
                        }
                    }
                }
                Space::Param => {
                    for lane in lanes(m) {
                        let Some(a) = a[lane].checked_sub(CALL_PARAMS) else {
                            let what = "a write to the kernel's parameters, which are read-only";
                            return Err(at(lane)(AccessError::new(Kind::ReadOnly, what)));
                        };
                        lane_bounds("parameter", a, bytes, v.warp.frame.bytes()).map_err(at(lane))?;
                        for (e, values) in values[..count].iter().enumerate() {
                            v.warp.frame.store(lane, a + u64::from(n) * e as u64, n, values[lane]);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a zero-terminated string at a generic address.
    pub(super) fn string(&mut self, a: u64) -> Result<String, AccessError> {
        let mut bytes = Vec::new();
        for i in 0..4096 {
            let (r, offset) = self.readable(a + i, 1)?;
            match self.ctx.regions[r].load(offset, 1) as u8 {
                0 => break,
                b => bytes.push(b),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads `n` bytes (1, 2, 4, 8) at a generic address for a builtin.
    pub(super) fn generic(&mut self, v: &View<'_>, lane: usize, a: u64, n: u32) -> Result<u64, AccessError> {
        match of_window(a) {
            (Space::Local, a) => {
                lane_bounds("local", a, n, v.warp.local.bytes())?;
                Ok(v.warp.local.load(lane, a, n).0)
            }
            (Space::Global, a) => {
                let (r, offset) = self.readable(a, n)?;
                Ok(self.ctx.regions[r].load(offset, n))
            }
            _ => Err(AccessError::new(Kind::WrongSpace, "arguments must lie in local or global memory")),
        }
    }
}

fn consecutive(a: &[u64; LANES], n: u32) -> bool {
    let mut same = true;
    for (l, x) in a.iter().enumerate() {
        same &= *x == a[0].wrapping_add(u64::from(n) * l as u64);
    }
    same
}

pub(super) fn misaligned(space: &str, a: u64, n: u32) -> AccessError {
    AccessError::new(Kind::Misaligned, format!("{space} address {a:#x} is not a multiple of the {n} bytes accessed"))
}

fn lane_bounds(space: &str, a: u64, n: u32, bytes: u64) -> Result<(), AccessError> {
    if a & u64::from(n - 1) != 0 {
        return Err(misaligned(space, a, n));
    }
    if a.checked_add(n.into()).is_none_or(|end| end > bytes) {
        let what = format!("{n} bytes at {space} address {a:#x}, but there are {bytes} bytes");
        return Err(AccessError::new(Kind::OutOfBounds, what));
    }
    Ok(())
}
