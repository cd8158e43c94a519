//! The decoded instruction set: what a warp executes, with every name resolved.
//!
//! Operands carry no type of their own: the instruction's type says which register file a [`Reg`] indexes
//! ([`Type::class`]), so one variant serves a family and a match on it happens once a warp.

use super::forms::*;
use super::kinds::*;
use super::types::*;

/// Index of a register within its file and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg(pub u16);

/// A source operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Src {
    /// A register.
    Reg(Reg),
    /// The bits of an immediate, in the low bits (floats as their IEEE bits, integers in two's complement).
    Imm(u64),
    /// An address: index into [`super::Function::symbols`]; an immediate once a kernel is linked.
    Symbol(u32),
}

/// A predicate operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PredSrc {
    /// A predicate register, negated or not.
    Reg {
        /// The register.
        reg: Reg,
        /// `!p`.
        negated: bool,
    },
    /// A constant.
    Const(bool),
}

/// `[base + offset]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Register, immediate or symbol.
    pub base: Src,
    /// Whether a register base is 64 bits wide.
    pub wide: bool,
    /// Added to the base.
    pub offset: i64,
}

/// One operation. Instructions that have no effect here (`prefetch`, `pmevent`, `discard`, `applypriority`, cache
/// policies) are [`Op::Nop`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // operand names are PTX's own: d, a, b, c, p
pub enum Op {
    Nop,
    Int1 {
        op: IntOp1,
        ty: Type,
        dst: Reg,
        a: Src,
    },
    Int2 {
        op: IntOp2,
        ty: Type,
        dst: Reg,
        a: Src,
        b: Src,
    },
    Int3 {
        op: IntOp3,
        ty: Type,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    /// `bfi`: `a` into `b` at `c`, `d` bits; B32 or B64; `c` and `d` 32 bits.
    Bfi {
        ty: Type,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
        d: Src,
    },
    /// `add.cc`, `addc`, `sub.cc`, `subc`. 32 or 64 bits.
    Carry {
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        ty: Type,
        dst: Reg,
        a: Src,
        b: Src,
    },
    /// `mad.lo/hi.cc`, `madc.lo/hi`.
    MadCarry {
        high: bool,
        carry_in: bool,
        carry_out: bool,
        ty: Type,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    /// `lop3.or.b32 d|p, a, b, c, table, q` and `.and`: `p` is (d ≠ 0) combined with `q`.
    Lop3Pred {
        table: u8,
        op: BoolOp,
        dst: Option<Reg>,
        p: Reg,
        sources: [Src; 3],
        q: PredSrc,
    },
    /// `szext`: U32 or S32.
    Szext {
        clamp: bool,
        ty: Type,
        dst: Reg,
        a: Src,
        b: Src,
    },
    /// `bmsk.b32`.
    Bmsk {
        clamp: bool,
        dst: Reg,
        a: Src,
        b: Src,
    },
    Float1 {
        op: FloatOp1,
        ty: Type,
        mode: FloatMode,
        dst: Reg,
        a: Src,
    },
    Float2 {
        op: FloatOp2,
        ty: Type,
        mode: FloatMode,
        dst: Reg,
        a: Src,
        b: Src,
    },
    Fma {
        ty: Type,
        mode: FloatMode,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Testp {
        test: Testp,
        ty: Type,
        dst: Reg,
        a: Src,
    },
    /// `setp`: `dst` gets the comparison combined with c, `other` its complement combined with c; for packed types
    /// `dst` is the low half's and `other` the high half's.
    Setp {
        dst: Option<Reg>,
        other: Option<Reg>,
        comparison: Comparison,
    },
    /// `set`: all ones or 1.0 for true by `to` (integer U32 S32 U16 S16, float F32 F16 BF16 F16x2 BF16x2).
    Set {
        to: Type,
        dst: Reg,
        comparison: Comparison,
    },
    Selp {
        width: Width,
        dst: Reg,
        a: Src,
        b: Src,
        p: PredSrc,
    },
    /// `slct`: `a` if c ≥ 0 else `b`; `on` is S32 or F32.
    Slct {
        width: Width,
        on: Type,
        ftz: bool,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    /// `and/or/xor.pred`.
    PredLogic {
        op: BoolOp,
        dst: Reg,
        a: PredSrc,
        b: PredSrc,
    },
    /// `mov.pred`, `not.pred`.
    PredMov {
        dst: Reg,
        a: PredSrc,
    },
    Cvt(Cvt),
    /// `cvt.rn.f16x2.f32 d, a, b`: `a` in the upper half. `to` is F16x2 or BF16x2.
    CvtPair {
        to: Type,
        round: Round,
        relu: bool,
        dst: Reg,
        a: Src,
        b: Src,
    },
    /// `cvt.pack.sat.to.s32[.b32]`: saturates `a` and `b` and packs them; with `c`, `c` shifted up makes room. `to`
    /// is U16, S16, U8, S8, U4 or S4, or 2 bits with `two_bits` (signedness from `to`).
    CvtPack {
        to: Type,
        two_bits: bool,
        dst: Reg,
        a: Src,
        b: Src,
        c: Option<Src>,
    },
    Mov {
        width: Width,
        dst: Reg,
        a: Src,
    },
    /// `mov.b32 d, {a, b}`: parts of equal width, lowest first.
    Pack {
        width: Width,
        part: Width,
        dst: Reg,
        parts: [Src; 4],
    },
    /// `mov.b32 {a, b}, d`.
    Unpack {
        width: Width,
        part: Width,
        dst: RegVec,
        a: Src,
    },
    /// `mov` from a special register; a 32-bit one into a 64-bit register is zero-extended.
    MovSpecial {
        width: Width,
        dst: Reg,
        special: Special,
    },
    Load(Box<Load>),
    Store(Box<Store>),
    Atom(Box<Atom>),
    /// `cvta.space` (to generic) or `cvta.to.space`.
    Cvta {
        space: Space,
        to_generic: bool,
        wide: bool,
        dst: Reg,
        a: Src,
    },
    Isspacep {
        space: Space,
        wide: bool,
        dst: Reg,
        a: Src,
    },
    CpAsync(Box<CpAsync>),
    CpAsyncCommit,
    /// Waits until at most so many groups are pending; None: `cp.async.wait_all`.
    CpAsyncWait {
        pending: Option<u32>,
    },
    Mbarrier {
        space: Space,
        address: Option<Address>,
        op: Mbarrier,
    },
    /// Block barrier. `threads` None: all threads of the block. `aligned`: all threads of a warp must execute it together.
    Bar {
        kind: BarKind,
        id: Src,
        threads: Option<Src>,
        aligned: bool,
    },
    /// `bar.warp.sync`.
    BarWarp {
        mask: Src,
    },
    /// `membar`, `fence`.
    Fence {
        scope: Scope,
        seq_cst: bool,
    },
    /// `mask` None: the form without `.sync` (before sm_70).
    Shfl {
        mode: ShflMode,
        dst: Option<Reg>,
        p: Option<Reg>,
        a: Src,
        b: Src,
        c: Src,
        mask: Option<Src>,
    },
    /// `dst` is a predicate, or a 32-bit register for Ballot.
    Vote {
        mode: VoteMode,
        dst: Reg,
        a: PredSrc,
        mask: Option<Src>,
    },
    /// `match`: `all` with its predicate, or `any`. `ty` is B32 or B64; the result is 32 bits.
    Match {
        all: bool,
        ty: Type,
        dst: Option<Reg>,
        p: Option<Reg>,
        a: Src,
        mask: Src,
    },
    Redux {
        op: ReduxOp,
        ty: Type,
        dst: Reg,
        a: Src,
        mask: Src,
    },
    ActiveMask {
        dst: Reg,
    },
    /// `elect.sync d|p, mask`.
    Elect {
        dst: Option<Reg>,
        p: Reg,
        mask: Src,
    },
    /// `ldmatrix.sync.aligned.m8n8.xN[.trans].shared.b16`.
    LdMatrix {
        count: u8,
        trans: bool,
        space: Space,
        dst: RegVec,
        address: Address,
    },
    /// `movmatrix.sync.aligned.m8n8.trans.b16`.
    MovMatrix {
        dst: Reg,
        a: Src,
    },
    Mma(Box<Mma>),
    WmmaLoad(Box<WmmaMove>),
    WmmaStore(Box<WmmaMove>),
    /// Target: index into the function's code. `uniform` is `.uni`.
    Bra {
        target: u32,
        uniform: bool,
    },
    /// `brx.idx`; out of range is a fault.
    BrxIdx {
        index: Src,
        targets: Box<[u32]>,
    },
    Call(Box<Call>),
    /// In an entry it ends the thread.
    Ret,
    Exit,
    Trap,
    Brkpt,
    /// 32-bit nanoseconds: yields.
    Nanosleep {
        duration: Src,
    },
    /// `alloca`: bytes (32 or 64 bits by `wide`) of local memory; the result is a local address.
    Alloca {
        wide: bool,
        align: u32,
        dst: Reg,
        size: Src,
    },
    StackSave {
        wide: bool,
        dst: Reg,
    },
    StackRestore {
        wide: bool,
        a: Src,
    },
}

/// A guard: `@p` or `@!p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    /// The predicate.
    pub reg: Reg,
    /// `@!p`.
    pub negated: bool,
}

/// Where an instruction came from in the sources, by `.loc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Loc {
    /// Index into [`super::Module::files`].
    pub file: u32,
    /// Line there, from 1.
    pub line: u32,
}

/// An instruction: operation, guard and origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// For which lanes.
    pub guard: Option<Guard>,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Line of the source.
    pub loc: Option<Loc>,
}
