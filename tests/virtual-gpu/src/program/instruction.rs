//! The decoded instruction set: what a warp executes, with every name resolved.
//!
//! Operands carry no type of their own: the instruction's type says which register file a [`Reg`] indexes
//! ([`Type::class`]), so one variant serves a family and a match on it happens once a warp.

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

/// Integer operations of one operand. Types: all integers of 16 to 64 bits that PTX allows for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IntOp1 {
    Neg,
    Abs,
    Not,
    Cnot,
    /// Result 32 bits for 32- and 64-bit sources.
    Popc,
    /// Result 32 bits.
    Clz,
    Brev,
    /// Result 32 bits; 0xffffffff where there is none.
    Bfind,
    /// `bfind.shiftamt`.
    BfindShift,
}

/// Integer operations of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IntOp2 {
    Add,
    /// `add.sat.s32`.
    AddSat,
    Sub,
    /// `sub.sat.s32`.
    SubSat,
    MulLo,
    MulHi,
    /// Result of twice the width.
    MulWide,
    Mul24Lo,
    Mul24Hi,
    Div,
    Rem,
    Min,
    Max,
    /// `min.relu.{s32,s16x2}`.
    MinRelu,
    /// `max.relu`.
    MaxRelu,
    And,
    Or,
    Xor,
    /// `b` is always 32 bits.
    Shl,
    /// `b` is always 32 bits; arithmetic on signed types.
    Shr,
}

/// Integer operations of three operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IntOp3 {
    MadLo,
    MadHi,
    /// `mad.hi.sat.s32`.
    MadHiSat,
    /// `c` and the result of twice the width.
    MadWide,
    Mad24Lo,
    Mad24Hi,
    /// `mad24.hi.sat.s32`.
    Mad24HiSat,
    Sad,
    /// `b` and `c` are 32 bits.
    Bfe,
    /// `lop3.b32` with its table. `ty` is B32.
    Lop3(u8),
    /// `prmt.b32`. `ty` is B32.
    Prmt(Prmt),
    /// `shf`: `a` low word, `b` high word, `c` amount. `ty` is B32.
    Shf {
        left: bool,
        /// `.clamp` rather than `.wrap`.
        clamp: bool,
    },
    /// `dp4a`: whether `a` and `b` are signed; `ty` is the accumulator's (U32 or S32).
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    /// `dp2a`.
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    /// `vabsdiff2`, `vabsdiff4`: `lanes` differences of halves or bytes; with `add` their sum and `c`, else packed.
    AbsDiff {
        lanes: u8,
        signed: bool,
        add: bool,
    },
    /// `fns.b32`: mask, base, offset. `ty` is B32.
    Fns,
}

/// Modes of `prmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Prmt {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// Float operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FloatOp1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Float operations of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FloatOp2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    /// Sign of `a`, magnitude of `b`.
    CopySign,
}

/// Properties that `testp` tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Testp {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Operations of `atom` and `red`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    /// `b` is the comparand, `c` the new value.
    Cas,
    Inc,
    Dec,
}

/// Operations of `redux` and `barrier.red`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ReduxOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// What a block barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// `bar.sync`, `barrier.sync`.
    Sync,
    /// `bar.arrive`: does not wait.
    Arrive,
    /// `bar.red.popc`: count of true predicates into a 32-bit register.
    Popc {
        /// Result.
        dst: Reg,
        /// Counted.
        pred: PredSrc,
    },
    /// `bar.red.and` / `.or` into a predicate.
    Vote {
        /// `.and` rather than `.or`.
        all: bool,
        /// Result.
        dst: Reg,
        /// Combined.
        pred: PredSrc,
    },
}

/// Modes of `shfl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Results of `vote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    /// Result in a 32-bit register.
    Ballot,
}

/// Fragment order of a matrix operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Layout {
    Row,
    Col,
}

/// `mma`, `mma.sp` and `wmma.mma`: D = A·B + C.
#[derive(Clone, Debug, PartialEq)]
pub struct Mma {
    /// Rows of A, columns of B, depth.
    pub shape: (u8, u8, u16),
    /// Layout of A (`.row` but for m8n8k4 f16 and wmma).
    pub a_layout: Layout,
    /// Layout of B (`.col` but for m8n8k4 f16 and wmma).
    pub b_layout: Layout,
    /// Element type of A: F16, BF16, TF32, F64, S8, U8, S4, U4, B1.
    pub a_type: Type,
    /// Element type of B.
    pub b_type: Type,
    /// Element type of C: F16, F32, F64, S32.
    pub c_type: Type,
    /// Element type of D.
    pub d_type: Type,
    /// `.satfinite` on integers.
    pub saturate: bool,
    /// For B1: `.and.popc` rather than `.xor.popc`.
    pub and_popc: bool,
    /// Whether this is `wmma.mma` (fragments in the interpreter's wmma order).
    pub wmma: bool,
    /// Rounding (F64 only).
    pub round: Round,
    /// Result registers: 64-bit files for F64, packed 32-bit registers otherwise.
    pub d: Box<[Reg]>,
    /// Registers of A.
    pub a: Box<[Src]>,
    /// Registers of B.
    pub b: Box<[Src]>,
    /// Registers of C.
    pub c: Box<[Src]>,
    /// `mma.sp`: the metadata register and the selector.
    pub sparse: Option<(Src, u8)>,
}

/// Which matrix a `wmma.load` or `wmma.store` moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum WmmaMatrix {
    A,
    B,
    C,
    D,
}

/// `wmma.load` and `wmma.store`.
#[derive(Clone, Debug, PartialEq)]
pub struct WmmaMove {
    /// Which matrix.
    pub matrix: WmmaMatrix,
    /// m, n, k.
    pub shape: (u8, u8, u16),
    /// Order in memory.
    pub layout: Layout,
    /// Element type in memory.
    pub ty: Type,
    /// Space of the address.
    pub space: Space,
    /// First element.
    pub address: Address,
    /// Elements between rows (or columns); 32 bits. None: packed.
    pub stride: Option<Src>,
    /// Fragment registers: written by a load, read by a store.
    pub regs: Box<[Reg]>,
}

/// `cp.async`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpAsync {
    /// Bytes written: 4, 8 or 16.
    pub size: u8,
    /// Destination in shared memory.
    pub dst: Address,
    /// Source in global memory.
    pub src: Address,
    /// `src-size`: bytes read, the rest is zero; 32 bits.
    pub src_size: Option<Src>,
    /// `ignore-src`: if true all is zero.
    pub ignore_src: Option<PredSrc>,
}

/// A vector of up to four registers; `None` is PTX's sink `_`.
pub type RegVec = [Option<Reg>; 4];

/// `ld`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Space of the address.
    pub space: Space,
    /// Type of one element.
    pub ty: Type,
    /// Elements: 1, 2 or 4.
    pub count: u8,
    /// Width of the destination registers; results are sign- or zero-extended by `ty`.
    pub width: Width,
    /// Destinations; the first `count` count.
    pub dst: RegVec,
    /// Address.
    pub address: Address,
    /// Ordering.
    pub order: Order,
    /// Scope of the ordering.
    pub scope: Scope,
    /// `.nc`, `ldu`: memory that is not written while the kernel runs.
    pub read_only: bool,
}

/// `st`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Store {
    /// Space of the address.
    pub space: Space,
    /// Type of one element.
    pub ty: Type,
    /// Elements: 1, 2 or 4.
    pub count: u8,
    /// Width of the source registers; wider ones are cut.
    pub width: Width,
    /// Values; the first `count` count.
    pub src: [Src; 4],
    /// Address.
    pub address: Address,
    /// Ordering.
    pub order: Order,
    /// Scope of the ordering.
    pub scope: Scope,
}

impl Store {
    /// Whether some of the values may be padding that nothing has written: elements of vectors, and parameters.
    pub fn padded(&self) -> bool {
        self.count > 1 || self.space == Space::Param
    }
}

/// `atom` and `red`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Atom {
    /// Space of the address.
    pub space: Space,
    /// Operation.
    pub op: AtomOp,
    /// Type; F16x2, BF16x2, B16 (cas) included.
    pub ty: Type,
    /// The old value; None for `red` and `_`.
    pub dst: Option<Reg>,
    /// Address.
    pub address: Address,
    /// First operand.
    pub b: Src,
    /// Second operand (cas).
    pub c: Option<Src>,
    /// Ordering.
    pub order: Order,
    /// Scope.
    pub scope: Scope,
}

/// `setp` and `set`'s comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Relation.
    pub compare: Compare,
    /// Type of the operands.
    pub ty: Type,
    /// `.ftz`.
    pub ftz: bool,
    /// Left.
    pub a: Src,
    /// Right.
    pub b: Src,
    /// `.and/.or/.xor` with a predicate.
    pub combine: Option<(BoolOp, PredSrc)>,
}

/// `cvt`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cvt {
    /// Type of the result.
    pub to: Type,
    /// Type of the source.
    pub from: Type,
    /// Width of the destination register.
    pub to_width: Width,
    /// Width of the source register.
    pub from_width: Width,
    /// Rounding, if named.
    pub round: Option<Round>,
    /// `.ftz`.
    pub ftz: bool,
    /// `.sat`.
    pub sat: bool,
    /// `.relu`.
    pub relu: bool,
    /// Destination.
    pub dst: Reg,
    /// Source.
    pub a: Src,
}

/// A value passed to or from a function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A register of the caller (or callee); predicates cannot be passed.
    Reg {
        /// Its width.
        width: Width,
        /// The register.
        reg: Reg,
    },
    /// An immediate or symbol.
    Imm {
        /// Width of the formal.
        width: Width,
        /// Bits.
        value: Src,
    },
    /// A `.param` variable: offset in the function's parameter frame ([`super::Function::frame_bytes`]) and size.
    Param {
        /// Bytes from the frame's start.
        offset: u32,
        /// Bytes.
        size: u32,
    },
}

/// What a call calls.
#[derive(Clone, Debug, PartialEq)]
pub enum CallTarget {
    /// A function of the module, by index.
    Function(u32),
    /// A function pointer (64-bit register), checked against the module's functions at run time.
    Indirect(Src),
    /// A service of CUDA's device runtime.
    Builtin(Builtin),
}

/// Functions the device runtime provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// `vprintf(format, arguments) -> s32`; both generic 64-bit addresses.
    Vprintf,
    /// `__assertfail(message, file, line, function, char_size)`.
    AssertFail,
    /// `malloc(u64) -> u64`: always null, as when the heap is used up.
    Malloc,
    /// `free(u64)`.
    Free,
}

/// `call`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Whom.
    pub target: CallTarget,
    /// Arguments in order.
    pub args: Box<[Arg]>,
    /// Where results go.
    pub returns: Box<[Arg]>,
}

/// `mbarrier` operations on a 64-bit object in shared memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mbarrier {
    /// Sets the expected count (32 bits).
    Init {
        /// Arrivals a phase.
        count: Src,
    },
    /// Ends its use.
    Inval,
    /// Arrives; the state token goes to `dst` (64 bits).
    Arrive {
        /// Token; None for `_`.
        dst: Option<Reg>,
        /// Arrivals (32 bits); None: 1.
        count: Option<Src>,
        /// `.noComplete`.
        no_complete: bool,
        /// `arrive_drop`.
        drop: bool,
    },
    /// Tests whether the token's phase is over.
    TestWait {
        /// Result.
        dst: Reg,
        /// Token (64 bits), or the parity (32 bits) with `parity`.
        state: Src,
        /// `.parity`.
        parity: bool,
    },
    /// `mbarrier.pending_count`: no address; token (64 bits) to count (32 bits).
    PendingCount {
        /// Result.
        dst: Reg,
        /// Token.
        state: Src,
    },
    /// `cp.async.mbarrier.arrive`: arrives when the thread's copies are done.
    CopyArrive {
        /// `.noinc`.
        no_increment: bool,
    },
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
