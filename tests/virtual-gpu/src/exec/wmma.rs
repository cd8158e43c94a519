//! `wmma`: where its opaque fragments hold what, and how they get to memory and back.

use super::access::addresses;
use super::block::trouble;
use super::matrix::{extent, packed};
use super::regs::LANES;
use super::view::View;
use super::warp::{Trouble, Worker};
use crate::fault::Kind;
use crate::program::*;

/// `wmma` fragments are opaque; here lane after lane holds the matrix row by row, as often as it fits.
pub(super) fn wmma_place(lane: usize, i: usize, held: usize, rows: usize, cols: usize) -> (usize, usize) {
    let at = (lane * held + i) % (rows * cols);
    (at / cols, at % cols)
}

/// The same for any fragment: B of types below a byte, which lies by columns in memory, is held by columns.
pub(super) fn wmma_element(
    ty: Type,
    b: bool,
    (lane, i): (usize, usize),
    held: usize,
    (rows, cols): (usize, usize),
) -> (usize, usize) {
    if b && ty.bits() < 8 {
        let (col, row) = wmma_place(lane, i, held, cols, rows);
        return (row, col);
    }
    wmma_place(lane, i, held, rows, cols)
}

pub(super) fn wmma_move(worker: &mut Worker<'_>, v: &mut View<'_>, m: &WmmaMove, load: bool) -> Result<(), Trouble> {
    let (rows, cols) = extent(m);
    let (bits, e) = (m.ty.bits(), packed(m.ty));
    let held = m.regs.len() * e;
    let base = addresses(&v.warp.regs, &m.address);
    let along = if m.layout == Layout::Row { cols } else { rows };
    let stride = m.stride.map_or([along as u32; LANES], |s| v.warp.regs.u32s(s));
    let uniform = base.iter().zip(&stride).position(|x| x != (&base[0], &stride[0]));
    if let Some(l) = uniform {
        let what = "address and stride of a wmma must be the same in all lanes";
        return Err(trouble(l, Kind::InvalidOperand, what));
    }
    // Types below a byte go by whole registers: a register's elements are consecutive in memory.
    let unit = if bits < 8 { e } else { 1 };
    let width = if bits < 8 { 4 } else { m.ty.bytes() };
    let ty = match width {
        1 => Type::B8,
        2 => Type::B16,
        4 => Type::B32,
        _ => Type::B64,
    };
    for i in (0..held).step_by(unit) {
        let mut at = [0u64; LANES];
        for (lane, at) in at.iter_mut().enumerate() {
            let (r, c) = wmma_element(m.ty, m.matrix == WmmaMatrix::B, (lane, i), held, (rows, cols));
            let offset = if m.layout == Layout::Row {
                r as u64 * u64::from(stride[lane]) + c as u64
            } else {
                c as u64 * u64::from(stride[lane]) + r as u64
            };
            *at = base[lane].wrapping_add(offset * u64::from(bits) / 8);
        }
        let reg = m.regs[i / e];
        let shift = (i % e) as u32 * bits % 64;
        if load {
            let mut out = [0; LANES];
            worker.load_at(v, m.space, ty, &at, &mut out)?;
            let old = if shift == 0 { [0; LANES] } else { v.warp.regs.wide(Src::Reg(reg), m.ty.class()) };
            let joined = std::array::from_fn(|l| old[l] | out[l] << shift);
            v.warp.regs.put(reg, m.ty.class(), !0, &joined);
        } else {
            let words = v.warp.regs.wide(Src::Reg(reg), m.ty.class()).map(|w| w >> shift);
            worker.store_at(v, m.space, ty, &at, &words)?;
        }
    }
    Ok(())
}
