//! Matrix instructions: fragments of a warp's registers to dense matrices, the product, and back.
//!
//! Fragments follow the PTX ISA. With `g = lane / 4`, `t = lane % 4` and `e` elements in a 32-bit register, register
//! `r` of A holds row `g + 8 (r % 2)` (8-row shapes have one register), columns `t e + j + 4 e (r / 2)`; register `r`
//! of B holds rows `t e + j + 4 e r` of column `g`; C and D hold row `g + 8 (i / 2)`, column `2 t + i % 2`. The
//! m8n8k4 half-precision form, four products at once, has maps of its own.
//!
//! Products are exact; sums run over k in ascending order from c, rounded to f32 at each step as a fused multiply-add
//! (doubles likewise in f64, integers exactly). Hardware sums in another order with fewer roundings: results agree to
//! the rounding of a sum, and bit for bit where all partial sums are exact.

use super::access::{addresses, of_window};
use super::float::{f16_to_f32, f32_to_f16};
use super::regs::LANES;
use super::sparse::{metadata_of, spread};
use super::view::View;
use super::warp::{Trouble, Worker};
use super::wmma::{wmma_element, wmma_move, wmma_place};
use crate::program::*;

/// Elements of a type in one register.
pub(super) fn packed(ty: Type) -> usize {
    match ty.bits() {
        64 => 1,
        bits => 32 / bits as usize,
    }
}

/// Registers of A, B, C, D of a shape; None for shapes that PTX lacks.
fn registers(m: &Mma) -> Option<[usize; 4]> {
    use Type::*;
    let (rows, cols, k) = m.shape;
    let accumulators = rows as usize * cols as usize / LANES;
    let c = |ty: Type| if ty == F16 { accumulators / 2 } else { accumulators };
    let cd = [c(m.c_type), c(m.d_type)];
    if m.wmma {
        let a = match (m.a_type, m.shape) {
            (F16, (16, 16, 16) | (32, 8, 16) | (8, 32, 16)) => [8, 8],
            (BF16, (16, 16, 16)) => [4, 4],
            (BF16, (32, 8, 16)) => [8, 2],
            (BF16, (8, 32, 16)) => [2, 8],
            (TF32, (16, 16, 8)) => [4, 4],
            (U8 | S8, (16, 16, 16)) => [2, 2],
            (U8 | S8, (32, 8, 16)) => [4, 1],
            (U8 | S8, (8, 32, 16)) => [1, 4],
            (U4 | S4, (8, 8, 32)) | (B1, (8, 8, 128)) | (F64, (8, 8, 4)) => [1, 1],
            _ => return None,
        };
        return Some([a[0], a[1], cd[0], cd[1]]);
    }
    if m.a_type == F16 && m.shape == (8, 8, 4) {
        let c = |ty: Type| if ty == F16 { 4 } else { 8 };
        return m.sparse.is_none().then(|| [2, 2, c(m.c_type), c(m.d_type)]);
    }
    let depths: &[u16] = match (m.a_type, rows, m.sparse.is_some()) {
        (F16 | BF16, 16, false) => &[8, 16],
        (F16 | BF16, 16, true) => &[16, 32],
        (TF32, 16, false) => &[4, 8],
        (TF32, 16, true) => &[8, 16],
        (U8 | S8, 16, false) => &[16, 32],
        (U8 | S8, 16, true) => &[32, 64],
        (U8 | S8, 8, false) => &[16],
        (U4 | S4, 16, false) => &[32, 64],
        (U4 | S4, 16, true) => &[64, 128],
        (U4 | S4, 8, false) => &[32],
        (B1, 16, false) => &[128, 256],
        (B1, 8, false) => &[128],
        (F64, 8, false) => &[4],
        _ => return None,
    };
    let deep = usize::from(k);
    if !depths.contains(&k) || cols != 8 {
        return None;
    }
    let e = packed(m.a_type);
    let a = rows as usize * deep / LANES / e / if m.sparse.is_some() { 2 } else { 1 };
    Some([a, 8 * deep / LANES / e, cd[0], cd[1]])
}

/// Whether the interpreter has this form.
pub(super) fn supported(m: &Mma) -> bool {
    use Type::*;
    let types = match m.a_type {
        F16 => m.b_type == F16 && matches!(m.c_type, F16 | F32) && matches!(m.d_type, F16 | F32),
        BF16 | TF32 => m.b_type == m.a_type && (m.c_type, m.d_type) == (F32, F32),
        F64 => (m.b_type, m.c_type, m.d_type) == (F64, F64, F64),
        U8 | S8 => matches!(m.b_type, U8 | S8) && (m.c_type, m.d_type) == (S32, S32),
        U4 | S4 => matches!(m.b_type, U4 | S4) && (m.c_type, m.d_type) == (S32, S32),
        B1 => m.b_type == B1 && (m.c_type, m.d_type) == (S32, S32),
        _ => false,
    };
    let selector = m.sparse.is_none_or(|(_, s)| s < 4);
    types && selector && registers(m) == Some([m.a.len(), m.b.len(), m.c.len(), m.d.len()])
}

/// Elements of a `wmma` fragment, and the matrix's rows and columns.
pub(super) fn extent(m: &WmmaMove) -> (usize, usize) {
    let (rows, cols, k) = (m.shape.0 as usize, m.shape.1 as usize, m.shape.2 as usize);
    match m.matrix {
        WmmaMatrix::A => (rows, k),
        WmmaMatrix::B => (k, cols),
        WmmaMatrix::C | WmmaMatrix::D => (rows, cols),
    }
}

/// Whether the interpreter has this form.
pub(super) fn supported_move(m: &WmmaMove) -> bool {
    let (rows, cols) = extent(m);
    let held = m.regs.len() * packed(m.ty) * LANES;
    rows * cols > 0 && held.is_multiple_of(rows * cols) && held > 0
}

/// Runs a matrix instruction for a whole warp.
pub(super) fn run(worker: &mut Worker<'_>, v: &mut View<'_>, op: &Op) -> Result<(), Trouble> {
    match op {
        Op::Mma(m) => {
            let (x, y, k) = m.shape;
            let deep = u64::from(k);
            let four = if !m.wmma && m.a_type == Type::F16 && m.shape == (8, 8, 4) { 4 } else { 1 };
            let halves = if m.sparse.is_some() { 2 } else { 1 };
            worker.tally.counters.tensor_fma += four * u64::from(x) * u64::from(y) * deep / halves;
            mma(v, m)
        }
        Op::LdMatrix { count, trans, space: _, dst, address } => ldmatrix(worker, v, *count, *trans, dst, address),
        Op::MovMatrix { dst, a } => {
            let from = v.warp.regs.u32s(*a);
            let mut to = [0; LANES];
            for (l, to) in to.iter_mut().enumerate() {
                // Element (row, column) of the result is (column, row) of the source.
                let half = |j: usize| {
                    let (row, col) = (2 * (l % 4) + j, l / 4);
                    from[row * 4 + col / 2] >> (16 * (col % 2)) & 0xffff
                };
                *to = half(0) | half(1) << 16;
            }
            v.warp.regs.put32(*dst, !0, &to);
            Ok(())
        }
        Op::WmmaLoad(m) => wmma_move(worker, v, m, true),
        Op::WmmaStore(m) => wmma_move(worker, v, m, false),
        _ => Ok(()),
    }
}

fn ldmatrix(
    worker: &mut Worker<'_>,
    v: &mut View<'_>,
    count: u8,
    trans: bool,
    dst: &RegVec,
    address: &Address,
) -> Result<(), Trouble> {
    let a = addresses(&v.warp.regs, address).map(|a| of_window(a).1);
    for (i, d) in dst.iter().enumerate().take(count as usize) {
        let mut rows = [[0u16; 8]; 8];
        let mut at = [0u64; LANES];
        for (r, row) in rows.iter_mut().enumerate() {
            let lane = i * 8 + r;
            let base = a[lane];
            at[r] = base;
            v.read_shared(base, 16, lane, false, false)?;
            for (j, x) in row.iter_mut().enumerate() {
                *x = v.shared.load(base as u32 + 2 * j as u32, 2) as u16;
            }
        }
        // The lane that names a row reads it for all: eight rows of 16 bytes are one pass without conflicts.
        let (passes, least) = crate::memory::bank_passes(&at, 0xff, 16);
        worker.tally.counters.shared_load.conflicts += u64::from(passes - least);
        worker.tally.counters.shared_load.bytes += 128;
        let mut out = [0; LANES];
        for (l, out) in out.iter_mut().enumerate() {
            let (g, t) = (l / 4, 2 * (l % 4));
            let (x, y) = if trans { (rows[t][g], rows[t + 1][g]) } else { (rows[g][t], rows[g][t + 1]) };
            *out = u32::from(x) | u32::from(y) << 16;
        }
        if let Some(d) = d {
            v.warp.regs.put32(*d, !0, &out);
        }
    }
    worker.tally.counters.shared_load.requests += 1;
    Ok(())
}

/// Elements of registers as raw bits: `[lane][element]` flattened, `e` elements a register.
fn elements(v: &View<'_>, regs: impl Iterator<Item = Src>, ty: Type) -> Vec<[u64; LANES]> {
    let (bits, e) = (ty.bits(), packed(ty));
    let mut out = Vec::new();
    for s in regs {
        let words = v.warp.regs.wide(s, ty.class());
        for j in 0..e {
            let mask = if bits >= 64 { !0 } else { (1u64 << bits) - 1 };
            out.push(words.map(|w| w >> (j as u32 * bits % 64) & mask));
        }
    }
    out
}

/// Where element `i` of a lane's fragment lies, for each matrix.
pub(super) struct Maps {
    pub rows: usize,
    pub cols: usize,
    pub k: usize,
}

impl Maps {
    fn a(&self, m: &Mma, lane: usize, i: usize) -> (usize, usize) {
        let e = packed(m.a_type);
        let (g, t, r, j) = (lane / 4, lane % 4, i / e, i % e);
        if self.rows == 8 { (g, t * e + j) } else { (g + 8 * (r % 2), t * e + j + 4 * e * (r / 2)) }
    }

    fn b(&self, m: &Mma, lane: usize, i: usize) -> (usize, usize) {
        let e = packed(m.b_type);
        let (g, t, r, j) = (lane / 4, lane % 4, i / e, i % e);
        (t * e + j + 4 * e * r, g)
    }

    fn c(&self, lane: usize, i: usize) -> (usize, usize) {
        (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2)
    }
}

/// Gathers a matrix of `rows` by `cols`.
fn gather<T: Copy + Default>(
    elements: &[[u64; LANES]],
    rows: usize,
    cols: usize,
    at: impl Fn(usize, usize) -> (usize, usize),
    number: impl Fn(u64) -> T,
) -> Vec<T> {
    let mut out = vec![T::default(); rows * cols];
    for (i, values) in elements.iter().enumerate() {
        for (lane, bits) in values.iter().enumerate() {
            let (r, c) = at(lane, i);
            if let Some(o) = out.get_mut(r * cols + c) {
                *o = number(*bits);
            }
        }
    }
    out
}

fn mma(v: &mut View<'_>, m: &Mma) -> Result<(), Trouble> {
    if !m.wmma && m.a_type == Type::F16 && m.shape == (8, 8, 4) {
        return quad_pairs(v, m);
    }
    let maps = Maps { rows: m.shape.0 as usize, cols: m.shape.1 as usize, k: m.shape.2 as usize };
    match m.a_type {
        Type::F64 => product(v, m, &maps, f64::from_bits, |a, b, c| a.mul_add(b, c), f64::from_bits, f64::to_bits),
        #[cfg(target_arch = "x86_64")]
        Type::F16 | Type::BF16 if plain(m) && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => {
            // SAFETY: the features were detected.
            unsafe { halves_vectors(v, m) };
            Ok(())
        }
        Type::F16 | Type::BF16 | Type::TF32 => {
            let number = |bits: u64| float(m.a_type, bits);
            let half = m.c_type == Type::F16;
            let c_number = move |bits: u64| if half { f16_to_f32(bits as u16) } else { f32::from_bits(bits as u32) };
            let half = m.d_type == Type::F16;
            let bits = move |x: f32| match x {
                x if half => f32_to_f16(x).into(),
                x if x.is_nan() => 0x7fff_ffff,
                x => x.to_bits().into(),
            };
            floats(v, m, &maps, number, c_number, bits)
        }
        Type::B1 => {
            let and = m.and_popc;
            let step = move |a: i64, b: i64, c: i64| c + if and { a & b } else { a ^ b };
            integers(v, m, &maps, step)
        }
        _ => integers(v, m, &maps, |a, b, c| c + a * b),
    }
}

/// Whether this is the form that fills most kernels: m16n8k8 and m16n8k16 of halves into floats.
#[cfg(target_arch = "x86_64")]
fn plain(m: &Mma) -> bool {
    !m.wmma && m.sparse.is_none() && m.shape.0 == 16 && (m.c_type, m.d_type) == (Type::F32, Type::F32)
}

/// The same sums as everywhere, without tables: fragments go straight to arrays of fixed size.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn halves_vectors(v: &mut View<'_>, m: &Mma) {
    let bf = m.a_type == Type::BF16;
    let low = |w: u32| if bf { f32::from_bits(w << 16) } else { f16_to_f32(w as u16) };
    let high = |w: u32| if bf { f32::from_bits(w & 0xffff_0000) } else { f16_to_f32((w >> 16) as u16) };
    let (mut a, mut b, mut c) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    for (r, s) in m.a.iter().enumerate() {
        for (l, w) in v.warp.regs.u32s(*s).into_iter().enumerate() {
            let (row, col) = (l / 4 + 8 * (r % 2), 2 * (l % 4) + 8 * (r / 2));
            (a[row][col], a[row][col + 1]) = (low(w), high(w));
        }
    }
    for (r, s) in m.b.iter().enumerate() {
        for (l, w) in v.warp.regs.u32s(*s).into_iter().enumerate() {
            let (row, col) = (2 * (l % 4) + 8 * r, l / 4);
            (b[row][col], b[row + 1][col]) = (low(w), high(w));
        }
    }
    for (i, s) in m.c.iter().enumerate() {
        for (l, w) in v.warp.regs.u32s(*s).into_iter().enumerate() {
            c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2] = f32::from_bits(w);
        }
    }
    for (a, c) in a.iter().zip(&mut c) {
        for (x, b) in a[..usize::from(m.shape.2).min(16)].iter().zip(&b) {
            for (c, y) in c.iter_mut().zip(b) {
                *c = x.mul_add(*y, *c);
            }
        }
    }
    for (i, d) in m.d.iter().enumerate() {
        let out = std::array::from_fn(|l| {
            let x = c[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
            if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
        });
        v.warp.regs.put32(*d, !0, &out);
    }
}

/// The value of an input of the float unit. The low 13 bits of a tf32 do not count.
fn float(ty: Type, bits: u64) -> f32 {
    match ty {
        Type::F16 => f16_to_f32(bits as u16),
        Type::BF16 => f32::from_bits((bits as u32) << 16),
        _ => f32::from_bits(bits as u32 & !0x1fff),
    }
}

fn integers(v: &mut View<'_>, m: &Mma, maps: &Maps, step: impl Fn(i64, i64, i64) -> i64) -> Result<(), Trouble> {
    let bits = m.a_type.bits();
    let number = |ty: Type| move |x: u64| if ty.signed() { (x as i64) << (64 - bits) >> (64 - bits) } else { x as i64 };
    let saturate = m.saturate;
    let out = move |x: i64| {
        let x = if saturate { x.clamp(i32::MIN.into(), i32::MAX.into()) } else { x };
        u64::from(x as u32)
    };
    let (a, b) = operands(v, m, maps, number(m.a_type), number(m.b_type))?;
    finish(v, m, maps, &a, &b, step, |x| i64::from(x as u32 as i32), out);
    Ok(())
}

fn floats(
    v: &mut View<'_>,
    m: &Mma,
    maps: &Maps,
    number: impl Fn(u64) -> f32 + Copy,
    c_number: impl Fn(u64) -> f32,
    bits: impl Fn(f32) -> u64,
) -> Result<(), Trouble> {
    let (a, b) = operands(v, m, maps, number, number)?;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let mut c = accumulators(v, m, maps, c_number);
        // SAFETY: the features were detected.
        unsafe { sum_vectors(&a, &b, &mut c, maps) };
        scatter(v, m, maps, &c, bits);
        return Ok(());
    }
    finish(v, m, maps, &a, &b, |a: f32, b, c| a.mul_add(b, c), c_number, bits);
    Ok(())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sum_vectors(a: &[f32], b: &[f32], c: &mut [f32], maps: &Maps) {
    sum(a, b, c, maps, |a, b, c| a.mul_add(b, c));
}

#[inline(always)]
fn sum<T: Copy>(a: &[T], b: &[T], c: &mut [T], maps: &Maps, step: impl Fn(T, T, T) -> T) {
    for (a, c) in a.chunks_exact(maps.k).zip(c.chunks_exact_mut(maps.cols)) {
        for (x, b) in a.iter().zip(b.chunks_exact(maps.cols)) {
            for (c, y) in c.iter_mut().zip(b) {
                *c = step(*x, *y, *c);
            }
        }
    }
}

fn product<T: Copy + Default>(
    v: &mut View<'_>,
    m: &Mma,
    maps: &Maps,
    number: impl Fn(u64) -> T + Copy,
    step: impl Fn(T, T, T) -> T,
    c_number: impl Fn(u64) -> T,
    bits: impl Fn(T) -> u64,
) -> Result<(), Trouble> {
    let (a, b) = operands(v, m, maps, number, number)?;
    finish(v, m, maps, &a, &b, step, c_number, bits);
    Ok(())
}

/// A, row by row (spread out where it is sparse), and B, row by row.
fn operands<T: Copy + Default>(
    v: &View<'_>,
    m: &Mma,
    maps: &Maps,
    a_number: impl Fn(u64) -> T,
    b_number: impl Fn(u64) -> T,
) -> Result<(Vec<T>, Vec<T>), Trouble> {
    let a = elements(v, m.a.iter().copied(), m.a_type);
    let b = elements(v, m.b.iter().copied(), m.b_type);
    if m.wmma {
        let a_at = |lane: usize, i: usize| wmma_place(lane, i, a.len(), maps.rows, maps.k);
        let b_at = |lane: usize, i: usize| wmma_element(m.b_type, true, (lane, i), b.len(), (maps.k, maps.cols));
        return Ok((gather(&a, maps.rows, maps.k, a_at, a_number), gather(&b, maps.k, maps.cols, b_at, b_number)));
    }
    let held = if m.sparse.is_some() { maps.k / 2 } else { maps.k };
    let dense = gather(&a, maps.rows, held, |l, i| maps.a(m, l, i), a_number);
    let b = gather(&b, maps.k, maps.cols, |l, i| maps.b(m, l, i), b_number);
    match m.sparse {
        Some((metadata, selector)) => {
            let words = v.warp.regs.u32s(metadata);
            Ok((spread(m, maps, &dense, |row| metadata_of(m, &words, selector.into(), row))?, b))
        }
        None => Ok((dense, b)),
    }
}

fn accumulators<T: Copy + Default>(v: &View<'_>, m: &Mma, maps: &Maps, number: impl Fn(u64) -> T) -> Vec<T> {
    let c = elements(v, m.c.iter().copied(), m.c_type);
    let at = |lane: usize, i: usize| {
        if m.wmma { wmma_place(lane, i, c.len(), maps.rows, maps.cols) } else { maps.c(lane, i) }
    };
    gather(&c, maps.rows, maps.cols, at, number)
}

fn finish<T: Copy + Default>(
    v: &mut View<'_>,
    m: &Mma,
    maps: &Maps,
    a: &[T],
    b: &[T],
    step: impl Fn(T, T, T) -> T,
    c_number: impl Fn(u64) -> T,
    bits: impl Fn(T) -> u64,
) {
    let mut c = accumulators(v, m, maps, c_number);
    sum(a, b, &mut c, maps, step);
    scatter(v, m, maps, &c, bits);
}

fn scatter<T: Copy>(v: &mut View<'_>, m: &Mma, maps: &Maps, d: &[T], bits: impl Fn(T) -> u64) {
    let e = packed(m.d_type);
    let n = m.d.len() * e;
    for (r, reg) in m.d.iter().enumerate() {
        let mut out = [0u64; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            for j in 0..e {
                let i = r * e + j;
                let (row, col) = if m.wmma { wmma_place(lane, i, n, maps.rows, maps.cols) } else { maps.c(lane, i) };
                *out |= bits(d[row * maps.cols + col]) << (j as u32 * m.d_type.bits() % 64);
            }
        }
        v.warp.regs.put(*reg, m.d_type.class(), !0, &out);
    }
}

/// `mma.m8n8k4` on halves: each eight lanes (four of each half warp) make a product of their own.
fn quad_pairs(v: &mut View<'_>, m: &Mma) -> Result<(), Trouble> {
    let a = elements(v, m.a.iter().copied(), Type::F16);
    let b = elements(v, m.b.iter().copied(), Type::F16);
    let c = elements(v, m.c.iter().copied(), m.c_type);
    let upper = |lane: usize| if lane >= 16 { 4 } else { 0 };
    let line = |lane: usize, i: usize, by_lane: bool| {
        if by_lane { (lane % 4 + upper(lane), i) } else { (i + upper(lane), lane % 4) }
    };
    let place = |ty: Type, lane: usize, i: usize| match ty {
        Type::F16 => (lane % 4 + upper(lane), i),
        _ => ((lane & 1) + (i & 2) + upper(lane), (i & 4) + (lane & 2) + (i & 1)),
    };
    let e = packed(m.d_type);
    let mut out = vec![[0u64; LANES]; m.d.len()];
    for quad in 0..4 {
        let members = || (0..LANES).filter(|l| l % 16 / 4 == quad);
        let (mut x, mut y, mut z) = ([[0f32; 4]; 8], [[0f32; 8]; 4], [[0f32; 8]; 8]);
        for lane in members() {
            for i in 0..4 {
                let (row, k) = line(lane, i, m.a_layout == Layout::Row);
                x[row][k] = f16_to_f32(a[i][lane] as u16);
                // B's lines are its columns.
                let (col, k) = line(lane, i, m.b_layout == Layout::Col);
                y[k][col] = f16_to_f32(b[i][lane] as u16);
            }
            for (i, c) in c.iter().enumerate() {
                let (row, col) = place(m.c_type, lane, i);
                z[row][col] =
                    if m.c_type == Type::F16 { f16_to_f32(c[lane] as u16) } else { f32::from_bits(c[lane] as u32) };
            }
        }
        for (x, z) in x.iter().zip(&mut z) {
            for (x, y) in x.iter().zip(&y) {
                z.iter_mut().zip(y).for_each(|(z, y)| *z = x.mul_add(*y, *z));
            }
        }
        for lane in members() {
            for i in 0..8 {
                let (row, col) = place(m.d_type, lane, i);
                let value = z[row][col];
                let bits = match m.d_type {
                    Type::F16 => u64::from(f32_to_f16(value)),
                    _ if value.is_nan() => 0x7fff_ffff,
                    _ => value.to_bits().into(),
                };
                out[i / e][lane] |= bits << (16 * (i % e));
            }
        }
    }
    for (reg, out) in m.d.iter().zip(&out) {
        v.warp.regs.put(*reg, m.d_type.class(), !0, out);
    }
    Ok(())
}
