//! The operands of an operation: one walk that serves checking, linking and liveness alike.

use super::*;

/// A register operand of an operation, as the walk meets it. Uses come before definitions.
#[derive(Debug)]
pub enum Operand<'a> {
    /// A source that may be an immediate or a symbol.
    Use(&'a mut Src, Class),
    /// A source that is always a register.
    UseReg(&'a mut Reg, Class),
    /// A destination.
    Def(&'a mut Reg, Class),
}

struct Walk<'f>(&'f mut dyn FnMut(Operand<'_>));

impl Walk<'_> {
    fn src(&mut self, s: &mut Src, class: Class) {
        (self.0)(Operand::Use(s, class));
    }

    fn r32(&mut self, s: &mut Src) {
        self.src(s, Class::R32);
    }

    fn option(&mut self, s: &mut Option<Src>, class: Class) {
        if let Some(s) = s {
            self.src(s, class);
        }
    }

    fn pred(&mut self, p: &mut PredSrc) {
        if let PredSrc::Reg { reg, .. } = p {
            (self.0)(Operand::UseReg(reg, Class::Pred));
        }
    }

    fn address(&mut self, a: &mut Address) {
        self.src(&mut a.base, wide(a.wide));
    }

    fn def(&mut self, r: &mut Reg, class: Class) {
        (self.0)(Operand::Def(r, class));
    }

    fn def_option(&mut self, r: &mut Option<Reg>, class: Class) {
        if let Some(r) = r {
            self.def(r, class);
        }
    }

    fn comparison(&mut self, c: &mut Comparison) {
        self.src(&mut c.a, c.ty.class());
        self.src(&mut c.b, c.ty.class());
        if let Some((_, p)) = &mut c.combine {
            self.pred(p);
        }
    }

    fn arg_use(&mut self, a: &mut Arg) {
        match a {
            Arg::Reg { width, reg } => (self.0)(Operand::UseReg(reg, width.class())),
            Arg::Imm { width, value } => (self.0)(Operand::Use(value, width.class())),
            Arg::Param { .. } => {}
        }
    }
}

fn wide(wide: bool) -> Class {
    if wide { Class::R64 } else { Class::R32 }
}

/// Register file of a result twice as wide as `ty`.
pub(crate) fn double(ty: Type) -> Class {
    wide(ty.bits() >= 32)
}

impl Op {
    /// Calls `f` for every operand, sources first. Call returns ([`Call::returns`]) are definitions at the call.
    pub fn operands(&mut self, f: &mut dyn FnMut(Operand<'_>)) {
        let mut w = Walk(f);
        match self {
            Op::Nop
            | Op::CpAsyncCommit
            | Op::CpAsyncWait { .. }
            | Op::Fence { .. }
            | Op::Bra { .. }
            | Op::Ret
            | Op::Exit
            | Op::Trap
            | Op::Brkpt => {}
            Op::Int1 { op, ty, dst, a } => {
                w.src(a, ty.class());
                let narrow = matches!(op, IntOp1::Popc | IntOp1::Clz | IntOp1::Bfind | IntOp1::BfindShift);
                w.def(dst, if narrow { Class::R32 } else { ty.class() });
            }
            Op::Int2 { op, ty, dst, a, b } => {
                w.src(a, ty.class());
                w.src(b, if matches!(op, IntOp2::Shl | IntOp2::Shr) { Class::R32 } else { ty.class() });
                w.def(dst, if *op == IntOp2::MulWide { double(*ty) } else { ty.class() });
            }
            Op::Int3 { op, ty, dst, a, b, c } => {
                let full = if *op == IntOp3::MadWide { double(*ty) } else { ty.class() };
                let bits = *op == IntOp3::Bfe;
                w.src(a, ty.class());
                w.src(b, if bits { Class::R32 } else { ty.class() });
                w.src(c, if bits { Class::R32 } else { full });
                w.def(dst, full);
            }
            Op::Bfi { ty, dst, a, b, c, d } => {
                w.src(a, ty.class());
                w.src(b, ty.class());
                w.r32(c);
                w.r32(d);
                w.def(dst, ty.class());
            }
            Op::Carry { ty, dst, a, b, .. } | Op::Float2 { ty, dst, a, b, .. } => {
                w.src(a, ty.class());
                w.src(b, ty.class());
                w.def(dst, ty.class());
            }
            Op::MadCarry { ty, dst, a, b, c, .. } | Op::Fma { ty, dst, a, b, c, .. } => {
                w.src(a, ty.class());
                w.src(b, ty.class());
                w.src(c, ty.class());
                w.def(dst, ty.class());
            }
            Op::Szext { dst, a, b, .. } | Op::Bmsk { dst, a, b, .. } | Op::CvtPair { dst, a, b, .. } => {
                w.r32(a);
                w.r32(b);
                w.def(dst, Class::R32);
            }
            Op::Float1 { ty, dst, a, .. } => {
                w.src(a, ty.class());
                w.def(dst, ty.class());
            }
            Op::Lop3Pred { dst, p, sources, q, .. } => {
                for s in sources {
                    w.r32(s);
                }
                w.pred(q);
                w.def_option(dst, Class::R32);
                w.def(p, Class::Pred);
            }
            Op::Testp { ty, dst, a, .. } => {
                w.src(a, ty.class());
                w.def(dst, Class::Pred);
            }
            Op::Setp { dst, other, comparison } => {
                w.comparison(comparison);
                w.def_option(dst, Class::Pred);
                w.def_option(other, Class::Pred);
            }
            Op::Set { to, dst, comparison } => {
                w.comparison(comparison);
                w.def(dst, to.class());
            }
            Op::Selp { width, dst, a, b, p } => {
                w.src(a, width.class());
                w.src(b, width.class());
                w.pred(p);
                w.def(dst, width.class());
            }
            Op::Slct { width, dst, a, b, c, .. } => {
                w.src(a, width.class());
                w.src(b, width.class());
                w.r32(c);
                w.def(dst, width.class());
            }
            Op::PredLogic { dst, a, b, .. } => {
                w.pred(a);
                w.pred(b);
                w.def(dst, Class::Pred);
            }
            Op::PredMov { dst, a } => {
                w.pred(a);
                w.def(dst, Class::Pred);
            }
            Op::Cvt(c) => {
                w.src(&mut c.a, c.from_width.class());
                w.def(&mut c.dst, c.to_width.class());
            }
            Op::CvtPack { dst, a, b, c, .. } => {
                w.r32(a);
                w.r32(b);
                w.option(c, Class::R32);
                w.def(dst, Class::R32);
            }
            Op::Mov { width, dst, a } => {
                w.src(a, width.class());
                w.def(dst, width.class());
            }
            Op::Pack { width, part, dst, parts } => {
                let n = (width.bits() / part.bits()) as usize;
                for p in &mut parts[..n.min(4)] {
                    w.src(p, part.class());
                }
                w.def(dst, width.class());
            }
            Op::Unpack { width, part, dst, a } => {
                w.src(a, width.class());
                for d in dst {
                    w.def_option(d, part.class());
                }
            }
            Op::MovSpecial { width, dst, .. } => w.def(dst, width.class()),
            Op::Load(l) => {
                w.address(&mut l.address);
                for d in &mut l.dst[..(l.count as usize).min(4)] {
                    w.def_option(d, l.width.class());
                }
            }
            Op::Store(s) => {
                w.address(&mut s.address);
                for v in &mut s.src[..(s.count as usize).min(4)] {
                    w.src(v, s.width.class());
                }
            }
            Op::Atom(a) => {
                w.address(&mut a.address);
                w.src(&mut a.b, a.ty.class());
                w.option(&mut a.c, a.ty.class());
                w.def_option(&mut a.dst, a.ty.class());
            }
            Op::Cvta { wide: wd, dst, a, .. } => {
                w.src(a, wide(*wd));
                w.def(dst, wide(*wd));
            }
            Op::Isspacep { wide: wd, dst, a, .. } => {
                w.src(a, wide(*wd));
                w.def(dst, Class::Pred);
            }
            Op::CpAsync(c) => {
                w.address(&mut c.dst);
                w.address(&mut c.src);
                w.option(&mut c.src_size, Class::R32);
                if let Some(p) = &mut c.ignore_src {
                    w.pred(p);
                }
            }
            Op::Mbarrier { address, op, .. } => {
                if let Some(a) = address {
                    w.address(a);
                }
                match op {
                    Mbarrier::Init { count } => w.r32(count),
                    Mbarrier::Inval | Mbarrier::CopyArrive { .. } => {}
                    Mbarrier::Arrive { dst, count, .. } => {
                        w.option(count, Class::R32);
                        w.def_option(dst, Class::R64);
                    }
                    Mbarrier::TestWait { dst, state, parity } => {
                        w.src(state, wide(!*parity));
                        w.def(dst, Class::Pred);
                    }
                    Mbarrier::PendingCount { dst, state } => {
                        w.src(state, Class::R64);
                        w.def(dst, Class::R32);
                    }
                }
            }
            Op::Bar { kind, id, threads, .. } => {
                w.r32(id);
                w.option(threads, Class::R32);
                match kind {
                    BarKind::Sync | BarKind::Arrive => {}
                    BarKind::Popc { dst, pred } => {
                        w.pred(pred);
                        w.def(dst, Class::R32);
                    }
                    BarKind::Vote { dst, pred, .. } => {
                        w.pred(pred);
                        w.def(dst, Class::Pred);
                    }
                }
            }
            Op::BarWarp { mask } => w.r32(mask),
            Op::Shfl { dst, p, a, b, c, mask, .. } => {
                w.r32(a);
                w.r32(b);
                w.r32(c);
                w.option(mask, Class::R32);
                w.def_option(dst, Class::R32);
                w.def_option(p, Class::Pred);
            }
            Op::Vote { mode, dst, a, mask } => {
                w.pred(a);
                w.option(mask, Class::R32);
                w.def(dst, if *mode == VoteMode::Ballot { Class::R32 } else { Class::Pred });
            }
            Op::Match { ty, dst, p, a, mask, .. } => {
                w.src(a, ty.class());
                w.r32(mask);
                w.def_option(dst, Class::R32);
                w.def_option(p, Class::Pred);
            }
            Op::Redux { dst, a, mask, .. } => {
                w.r32(a);
                w.r32(mask);
                w.def(dst, Class::R32);
            }
            Op::ActiveMask { dst } => w.def(dst, Class::R32),
            Op::Elect { dst, p, mask } => {
                w.r32(mask);
                w.def_option(dst, Class::R32);
                w.def(p, Class::Pred);
            }
            Op::LdMatrix { count, dst, address, .. } => {
                w.address(address);
                for d in &mut dst[..(*count as usize).min(4)] {
                    w.def_option(d, Class::R32);
                }
            }
            Op::MovMatrix { dst, a } => {
                w.r32(a);
                w.def(dst, Class::R32);
            }
            Op::Mma(m) => {
                for s in &mut m.a {
                    w.src(s, m.a_type.class());
                }
                for s in &mut m.b {
                    w.src(s, m.b_type.class());
                }
                for s in &mut m.c {
                    w.src(s, m.c_type.class());
                }
                if let Some((e, _)) = &mut m.sparse {
                    w.r32(e);
                }
                for r in &mut m.d {
                    w.def(r, m.d_type.class());
                }
            }
            Op::WmmaLoad(m) => {
                w.address(&mut m.address);
                w.option(&mut m.stride, Class::R32);
                for r in &mut m.regs {
                    w.def(r, m.ty.class());
                }
            }
            Op::WmmaStore(m) => {
                w.address(&mut m.address);
                w.option(&mut m.stride, Class::R32);
                for r in &mut m.regs {
                    (w.0)(Operand::UseReg(r, m.ty.class()));
                }
            }
            Op::BrxIdx { index, .. } => w.r32(index),
            Op::Call(c) => {
                if let CallTarget::Indirect(s) = &mut c.target {
                    w.src(s, Class::R64);
                }
                for a in &mut c.args {
                    w.arg_use(a);
                }
                for r in &mut c.returns {
                    if let Arg::Reg { width, reg } = r {
                        w.def(reg, width.class());
                    }
                }
            }
            Op::Nanosleep { duration } => w.r32(duration),
            Op::Alloca { wide: wd, dst, size, .. } => {
                w.src(size, wide(*wd));
                w.def(dst, wide(*wd));
            }
            Op::StackSave { wide: wd, dst } => w.def(dst, wide(*wd)),
            Op::StackRestore { wide: wd, a } => w.src(a, wide(*wd)),
        }
    }

    /// Calls `f` for every branch target.
    pub fn targets(&mut self, f: &mut dyn FnMut(&mut u32)) {
        match self {
            Op::Bra { target, .. } => f(target),
            Op::BrxIdx { targets, .. } => targets.iter_mut().for_each(f),
            _ => {}
        }
    }
}
