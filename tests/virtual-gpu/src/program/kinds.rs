//! What operations of a family do: the names that a variant of [`Op`] chooses among.

use super::instruction::*;

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
