//! The registers of a warp: 32 lanes wide, with a mask of lanes that have written each.

use crate::program::{Class, PredSrc, Reg, Src};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// Register files of one warp.
pub struct Regs {
    r32: Vec<[u32; LANES]>,
    r64: Vec<[u64; LANES]>,
    pred: Vec<u32>,
    /// Lanes that wrote each register: 32-bit file, then 64-bit, then predicates.
    pub init: Vec<u32>,
    /// The carry flag of each lane.
    pub carry: u32,
}

impl Regs {
    /// Files of these sizes, unwritten.
    pub fn new(r32: usize, r64: usize, pred: usize) -> Regs {
        Regs {
            r32: vec![[0; LANES]; r32],
            r64: vec![[0; LANES]; r64],
            pred: vec![0; pred],
            init: vec![0; r32 + r64 + pred],
            carry: 0,
        }
    }

    /// Values of a 32-bit operand.
    #[inline(always)]
    pub fn u32s(&self, s: Src) -> [u32; LANES] {
        match s {
            Src::Reg(r) => self.r32[r.0 as usize],
            Src::Imm(v) => [v as u32; LANES],
            Src::Symbol(_) => [0; LANES],
        }
    }

    /// Values of a 64-bit operand.
    #[inline(always)]
    pub fn u64s(&self, s: Src) -> [u64; LANES] {
        match s {
            Src::Reg(r) => self.r64[r.0 as usize],
            Src::Imm(v) => [v; LANES],
            Src::Symbol(_) => [0; LANES],
        }
    }

    /// Values of an operand of either file, widened.
    #[inline(always)]
    pub fn wide(&self, s: Src, class: Class) -> [u64; LANES] {
        if class == Class::R64 { self.u64s(s) } else { self.u32s(s).map(u64::from) }
    }

    /// One lane's value, widened.
    pub fn lane(&self, s: Src, class: Class, lane: usize) -> u64 {
        match (s, class) {
            (Src::Reg(r), Class::R64) => self.r64[r.0 as usize][lane],
            (Src::Reg(r), Class::R32) => self.r32[r.0 as usize][lane].into(),
            (Src::Reg(r), Class::Pred) => u64::from(self.pred[r.0 as usize] >> lane & 1),
            (Src::Imm(v), _) => v,
            (Src::Symbol(_), _) => 0,
        }
    }

    /// Mask of a predicate operand.
    #[inline(always)]
    pub fn mask(&self, p: PredSrc) -> u32 {
        match p {
            PredSrc::Reg { reg, negated } => self.pred[reg.0 as usize] ^ if negated { !0 } else { 0 },
            PredSrc::Const(v) => {
                if v {
                    !0
                } else {
                    0
                }
            }
        }
    }

    /// Mask of a predicate register.
    #[inline(always)]
    pub fn pred(&self, r: Reg) -> u32 {
        self.pred[r.0 as usize]
    }

    /// Writes a 32-bit register in the lanes of `m`.
    #[inline(always)]
    pub fn put32(&mut self, d: Reg, m: u32, v: &[u32; LANES]) {
        let to = &mut self.r32[d.0 as usize];
        if m == !0 {
            *to = *v;
        } else {
            for l in 0..LANES {
                to[l] = if m >> l & 1 == 1 { v[l] } else { to[l] };
            }
        }
    }

    /// Writes a 64-bit register in the lanes of `m`.
    #[inline(always)]
    pub fn put64(&mut self, d: Reg, m: u32, v: &[u64; LANES]) {
        let to = &mut self.r64[d.0 as usize];
        if m == !0 {
            *to = *v;
        } else {
            for l in 0..LANES {
                to[l] = if m >> l & 1 == 1 { v[l] } else { to[l] };
            }
        }
    }

    /// Writes a register of either file.
    #[inline(always)]
    pub fn put(&mut self, d: Reg, class: Class, m: u32, v: &[u64; LANES]) {
        if class == Class::R64 { self.put64(d, m, v) } else { self.put32(d, m, &v.map(|x| x as u32)) }
    }

    /// Writes one lane.
    pub fn put_lane(&mut self, d: Reg, class: Class, lane: usize, v: u64) {
        match class {
            Class::R64 => self.r64[d.0 as usize][lane] = v,
            Class::R32 => self.r32[d.0 as usize][lane] = v as u32,
            Class::Pred => self.put_pred(d, 1 << lane, (v as u32 & 1) << lane),
        }
    }

    /// Writes a predicate in the lanes of `m`.
    #[inline(always)]
    pub fn put_pred(&mut self, d: Reg, m: u32, v: u32) {
        let p = &mut self.pred[d.0 as usize];
        *p = *p & !m | v & m;
    }

    /// One lane's value in the register at a place in the table of written lanes, and whether it was written.
    pub fn at(&self, slot: usize, lane: usize) -> (u64, bool) {
        let (n32, n64) = (self.r32.len(), self.r64.len());
        let value = if slot < n32 {
            self.r32[slot][lane].into()
        } else if slot < n32 + n64 {
            self.r64[slot - n32][lane]
        } else {
            u64::from(self.pred[slot - n32 - n64] >> lane & 1)
        };
        (value, self.init[slot] >> lane & 1 == 1)
    }

    /// Puts a value back where [`Regs::at`] found it.
    pub fn set_at(&mut self, slot: usize, lane: usize, (value, written): (u64, bool)) {
        let (n32, n64) = (self.r32.len(), self.r64.len());
        let bit = 1 << lane;
        if slot < n32 {
            self.r32[slot][lane] = value as u32;
        } else if slot < n32 + n64 {
            self.r64[slot - n32][lane] = value;
        } else {
            let p = &mut self.pred[slot - n32 - n64];
            *p = *p & !bit | (value as u32 & 1) << lane;
        }
        self.init[slot] = self.init[slot] & !bit | u32::from(written) << lane;
    }

    /// Index into [`Regs::init`].
    pub fn init_index(&self, r: Reg, class: Class) -> usize {
        let i = r.0 as usize;
        match class {
            Class::R32 => i,
            Class::R64 => self.r32.len() + i,
            Class::Pred => self.r32.len() + self.r64.len() + i,
        }
    }

    #[inline(always)]
    pub(super) fn map1(&mut self, d: Reg, m: u32, a: Src, f: impl Fn(u32) -> u32) {
        let a = self.u32s(a);
        let mut r = [0; LANES];
        for l in 0..LANES {
            r[l] = f(a[l]);
        }
        self.put32(d, m, &r);
    }

    #[inline(always)]
    pub(super) fn map2(&mut self, d: Reg, m: u32, a: Src, b: Src, f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (self.u32s(a), self.u32s(b));
        let mut r = [0; LANES];
        for l in 0..LANES {
            r[l] = f(a[l], b[l]);
        }
        self.put32(d, m, &r);
    }

    #[inline(always)]
    pub(super) fn map3(&mut self, d: Reg, m: u32, a: Src, b: Src, c: Src, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (self.u32s(a), self.u32s(b), self.u32s(c));
        let mut r = [0; LANES];
        for l in 0..LANES {
            r[l] = f(a[l], b[l], c[l]);
        }
        self.put32(d, m, &r);
    }

    #[inline(always)]
    pub(super) fn map2_64(&mut self, d: Reg, m: u32, a: Src, b: Src, f: impl Fn(u64, u64) -> u64) {
        let (a, b) = (self.u64s(a), self.u64s(b));
        let mut r = [0; LANES];
        for l in 0..LANES {
            r[l] = f(a[l], b[l]);
        }
        self.put64(d, m, &r);
    }

    #[inline(always)]
    pub(super) fn map3_64(&mut self, d: Reg, m: u32, a: Src, b: Src, c: Src, f: impl Fn(u64, u64, u64) -> u64) {
        let (a, b, c) = (self.u64s(a), self.u64s(b), self.u64s(c));
        let mut r = [0; LANES];
        for l in 0..LANES {
            r[l] = f(a[l], b[l], c[l]);
        }
        self.put64(d, m, &r);
    }

    /// Lane by lane, for what is rare: `f` gets the values of the sources in the lanes of `m`.
    #[inline(always)]
    pub(super) fn lanes<const N: usize>(
        &mut self,
        d: Reg,
        to: Class,
        m: u32,
        sources: [(Src, Class); N],
        f: impl Fn([u64; N]) -> u64,
    ) {
        for l in 0..LANES {
            if m >> l & 1 == 1 {
                let v = f(sources.map(|(s, c)| self.lane(s, c, l)));
                self.put_lane(d, to, l, v);
            }
        }
    }

    #[inline(always)]
    pub(super) fn compare<T: Copy>(a: &[T; LANES], b: &[T; LANES], f: impl Fn(T, T) -> bool) -> u32 {
        let mut m = 0;
        for l in 0..LANES {
            m |= u32::from(f(a[l], b[l])) << l;
        }
        m
    }
}
