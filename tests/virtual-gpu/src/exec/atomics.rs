//! Atomics and reductions on memory, lane by lane.

use std::sync::atomic::Ordering::SeqCst;

use super::access::{Done, addresses, at, by_space, lanes, request, shared_request};
use super::float;
use super::integer::{low, value};
use super::regs::LANES;
use super::soft::{self, BF16, F16, F32, F64};
use super::view::View;
use super::warp::Worker;
use crate::fault::Kind;
use crate::memory::AccessError;
use crate::program::*;

/// Applies a function atomically and gives the old value.
macro_rules! update {
    ($cell:expr, $t:ty, $new:expr) => {{
        let result = $cell.fetch_update(SeqCst, SeqCst, |old| Some($new(u64::from(old)) as $t));
        u64::from(result.unwrap_or_else(|old| old))
    }};
}

impl Worker<'_> {
    pub(super) fn atom(&mut self, v: &mut View<'_>, t: &Atom, m: u32) -> Done {
        let mut a = addresses(&v.warp.regs, &t.address);
        let (n, class) = (t.ty.bytes(), t.ty.class());
        let b = v.warp.regs.wide(t.b, class);
        let c = v.warp.regs.wide(t.c.unwrap_or(Src::Imm(0)), class);
        let mut old = [0; LANES];
        for (space, m) in by_space(t.space, &mut a, m) {
            if m == 0 {
                continue;
            }
            match space {
                Space::Global | Space::Generic => {
                    request(&mut self.tally.counters.global_atomic, &a, m, n);
                    for lane in lanes(m) {
                        let (i, offset) = self.writable(a[lane], n).map_err(at(lane))?;
                        if t.op != AtomOp::Exch {
                            self.readable(a[lane], n).map_err(at(lane))?;
                        }
                        let r = &self.ctx.regions[i];
                        let new = |old: u64| atomic(t.op, t.ty, true, old, b[lane], c[lane]);
                        old[lane] = match n {
                            2 => update!(r.atomic16(offset), u16, new),
                            4 => update!(r.atomic32(offset), u32, new),
                            _ => update!(r.atomic64(offset), u64, new),
                        };
                        r.mark(offset, n.into());
                    }
                }
                Space::Shared => {
                    shared_request(&mut self.tally.counters.shared_atomic, &a, m, n);
                    for lane in lanes(m) {
                        if t.op != AtomOp::Exch {
                            v.read_shared(a[lane], n, lane, true, self.ctx.kernel.fences)?;
                        }
                        v.write_shared(a[lane], n, lane, true, self.ctx.kernel.fences)?;
                        let at = a[lane] as u32;
                        old[lane] = v.shared.load(at, n);
                        v.shared.store(at, n, atomic(t.op, t.ty, false, old[lane], b[lane], c[lane]));
                    }
                }
                _ => {
                    let what = "an atomic on memory that no other thread can reach";
                    return Err(at(m.trailing_zeros() as usize)(AccessError::new(Kind::WrongSpace, what)));
                }
            }
        }
        if let Some(d) = t.dst {
            self.poll(v, &a, &old, m);
            v.warp.regs.put(d, class, m, &old);
        }
        Ok(())
    }
}

/// The value that an atomic leaves behind.
fn atomic(op: AtomOp, ty: Type, global: bool, old: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bits();
    let (x, y) = (value(old, ty), value(b, ty));
    match op {
        AtomOp::Add if ty.float() => float_add(ty, global, old, b),
        AtomOp::Add => low(old.wrapping_add(b), bits),
        AtomOp::Min => low(x.min(y) as u64, bits),
        AtomOp::Max => low(x.max(y) as u64, bits),
        AtomOp::And => old & low(b, bits),
        AtomOp::Or => old | low(b, bits),
        AtomOp::Xor => old ^ low(b, bits),
        AtomOp::Exch => low(b, bits),
        AtomOp::Cas => {
            if low(old, bits) == low(b, bits) {
                low(c, bits)
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if x >= y {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if x == 0 || x > y {
                low(b, bits)
            } else {
                old - 1
            }
        }
    }
}

fn float_add(ty: Type, global: bool, a: u64, b: u64) -> u64 {
    match ty {
        Type::F64 => (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        Type::F32 => {
            // In global memory subnormals are flushed, in shared memory they are not.
            let flush = |v: u32| if global { float::flush(v) } else { v };
            let v = f32::from_bits(flush(a as u32)) + f32::from_bits(flush(b as u32));
            if v.is_nan() { F32.nan() } else { flush(v.to_bits()).into() }
        }
        _ => float::each_half(ty, |f, shift| {
            let part = |v: u64| f64::from_bits(soft::convert(v >> shift & 0xffff, f, F64, Round::Near));
            debug_assert!(f == F16 || f == BF16);
            soft::convert((part(a) + part(b)).to_bits(), F64, f, Round::Near)
        }),
    }
}
