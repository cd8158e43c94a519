//! The vocabulary of instructions: types, roundings, comparisons, spaces, scopes.

/// An operand type of PTX. It also fixes the register file: 64-bit types live in 64-bit slots, `Pred` in a lane mask,
/// everything else in a 32-bit slot whose unused upper bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are PTX's own
pub enum Type {
    Pred,
    B1,
    U4,
    S4,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    BF16,
    B32,
    U32,
    S32,
    F32,
    TF32,
    F16x2,
    BF16x2,
    U16x2,
    S16x2,
    B64,
    U64,
    S64,
    F64,
}

impl Type {
    /// Bits of one value.
    pub fn bits(self) -> u32 {
        use Type::*;
        match self {
            Pred | B1 => 1,
            U4 | S4 => 4,
            B8 | U8 | S8 => 8,
            B16 | U16 | S16 | F16 | BF16 => 16,
            B32 | U32 | S32 | F32 | TF32 | F16x2 | BF16x2 | U16x2 | S16x2 => 32,
            B64 | U64 | S64 | F64 => 64,
        }
    }

    /// Bytes of one value in memory.
    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// Whether values are signed integers.
    pub fn signed(self) -> bool {
        use Type::*;
        matches!(self, S4 | S8 | S16 | S32 | S64 | S16x2)
    }

    /// Whether values are floats, packed ones included.
    pub fn float(self) -> bool {
        use Type::*;
        matches!(self, F16 | BF16 | F32 | TF32 | F16x2 | BF16x2 | F64)
    }

    /// The register file that holds values of this type.
    pub fn class(self) -> Class {
        match self {
            Type::Pred => Class::Pred,
            t if t.bits() == 64 => Class::R64,
            _ => Class::R32,
        }
    }
}

/// The three register files of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Slots of 32 bits a lane; narrower registers too, zero-extended.
    R32,
    /// Slots of 64 bits a lane.
    R64,
    /// One bit a lane.
    Pred,
}

/// Width of a register operand where the instruction's type does not say it (`ld`, `st`, `cvt` take wider registers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// An 8-bit register, in a 32-bit slot.
    W8,
    /// A 16-bit register, in a 32-bit slot.
    W16,
    /// A 32-bit register.
    W32,
    /// A 64-bit register.
    W64,
}

impl Width {
    /// Bits of the register.
    pub fn bits(self) -> u32 {
        match self {
            Width::W8 => 8,
            Width::W16 => 16,
            Width::W32 => 32,
            Width::W64 => 64,
        }
    }

    /// The register file of such a register.
    pub fn class(self) -> Class {
        if self == Width::W64 { Class::R64 } else { Class::R32 }
    }

    /// The width of `bits` bits (1 to 64).
    pub fn of_bits(bits: u32) -> Width {
        match bits {
            0..=8 => Width::W8,
            9..=16 => Width::W16,
            17..=32 => Width::W32,
            _ => Width::W64,
        }
    }
}

/// Rounding of a float result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Round {
    /// `.rn`: to nearest, ties to even.
    #[default]
    Near,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
    /// `.rna`: to nearest, ties away from zero (`cvt.rna.tf32.f32`).
    NearAway,
    /// `.rni`: to an integral value, ties to even (`cvt` only).
    IntNear,
    /// `.rzi`: to an integral value, towards zero.
    IntZero,
    /// `.rmi`: to an integral value, towards minus infinity.
    IntDown,
    /// `.rpi`: to an integral value, towards plus infinity.
    IntUp,
}

/// Modifiers of float arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FloatMode {
    /// Rounding of the result.
    pub round: Round,
    /// `.ftz`: subnormal inputs and results become zeros of their sign.
    pub ftz: bool,
    /// `.sat`: clamp to [0, 1], NaN to 0.
    pub sat: bool,
    /// `.approx`: where the exact form exists too.
    pub approx: bool,
    /// `.full` (`div.full.f32`).
    pub full: bool,
    /// `.NaN` (`min`, `max`): a NaN input gives NaN.
    pub nan: bool,
    /// `.xorsign.abs` (`min`, `max`).
    pub xorsign_abs: bool,
    /// `.relu` (`fma`): negative results and NaN become 0 (NaN: canonical NaN stays for `fma.relu`, as PTX says).
    pub relu: bool,
}

/// Comparisons of `set` and `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are PTX's own; lo, ls, hi, hs are lt, le, gt, ge on unsigned types
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Unordered forms: true when an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Both are numbers.
    Num,
    /// One is NaN.
    Nan,
}

/// Boolean operations on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum BoolOp {
    And,
    Or,
    Xor,
}

/// State spaces that addresses can mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// No space named: the address itself tells (see [`crate::memory::window`]).
    Generic,
    /// Device memory.
    Global,
    /// Read-only device memory: constant variables live there, addresses are those of global memory.
    Const,
    /// The block's shared memory, addresses from 0.
    Shared,
    /// A thread's own memory, addresses from 0.
    Local,
    /// Kernel parameters from address 0; parameters of calls from [`super::CALL_PARAMS`].
    Param,
}

/// Memory ordering of a load, a store or an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub enum Order {
    #[default]
    Weak,
    Volatile,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
    SeqCst,
}

/// Who takes part in an ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// The block.
    Cta,
    /// The device.
    #[default]
    Gpu,
    /// The whole system.
    Sys,
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are PTX's own
pub enum Special {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    /// 64 bits.
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    Clock,
    ClockHi,
    /// 64 bits.
    Clock64,
    /// 64 bits.
    GlobalTimer,
    GlobalTimerLo,
    GlobalTimerHi,
    DynamicSmemSize,
    TotalSmemSize,
    /// `%reserved_smem_offset_begin`, `_end`, `_cap`, `_0`, `_1`: shared memory that the system keeps for itself.
    ReservedBegin,
    ReservedEnd,
    ReservedBytes,
    Reserved0,
    Reserved1,
    /// `%envreg1`, `%envreg2`: the halves, high and low, of the address where blocks of a cooperative launch meet.
    EnvReg1,
    EnvReg2,
    /// `%pm0` to `%pm7`, the other `%envreg`: zero.
    Zero,
    /// 64-bit zero (`%pm0_64`).
    Zero64,
}

impl Special {
    /// True for those that tell of shared memory that the system keeps for itself.
    pub fn reserved(self) -> bool {
        use Special::*;
        matches!(self, ReservedBegin | ReservedEnd | ReservedBytes | Reserved0 | Reserved1)
    }

    /// Width of the value.
    pub fn width(self) -> Width {
        match self {
            Special::GridId | Special::Clock64 | Special::GlobalTimer | Special::Zero64 => Width::W64,
            _ => Width::W32,
        }
    }
}
