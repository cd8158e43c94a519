//! Operations of many parts: memory, conversion, comparison, matrices, calls, `mbarrier`.

use super::instruction::*;
use super::kinds::*;
use super::types::*;

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
    /// Whether some of the values may be padding that nothing has written: elements of vectors, parameters, and bytes.
    pub fn padded(&self) -> bool {
        self.count > 1 || self.space == Space::Param || self.ty.bytes() == 1
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
