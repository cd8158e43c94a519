//! Types by name, and which register fits which instruction.

use crate::program::Type;

/// The type of this name, without its dot.
pub(super) fn scalar(name: &str) -> Option<Type> {
    use Type::*;
    Some(match name {
        "pred" => Pred,
        "b1" => B1,
        "u4" => U4,
        "s4" => S4,
        "b8" => B8,
        "u8" => U8,
        "s8" => S8,
        "b16" => B16,
        "u16" => U16,
        "s16" => S16,
        "f16" => F16,
        "bf16" => BF16,
        "b32" => B32,
        "u32" => U32,
        "s32" => S32,
        "f32" => F32,
        "tf32" => TF32,
        "f16x2" => F16x2,
        "bf16x2" => BF16x2,
        "u16x2" => U16x2,
        "s16x2" => S16x2,
        "b64" => B64,
        "u64" => U64,
        "s64" => S64,
        "f64" => F64,
        _ => return None,
    })
}

/// PTX's name of a type, with its dot.
pub(super) fn name(ty: Type) -> String {
    format!(".{ty:?}").to_lowercase()
}

/// Untyped bits.
pub(super) fn is_bits(ty: Type) -> bool {
    matches!(ty, Type::B1 | Type::B8 | Type::B16 | Type::B32 | Type::B64)
}

/// Integers of some signedness.
pub(super) fn is_integer(ty: Type) -> bool {
    use Type::*;
    matches!(ty, U4 | S4 | U8 | S8 | U16 | S16 | U32 | S32 | U64 | S64 | U16x2 | S16x2)
}

/// The rule of the ISA's type checking, sizes aside: bits go with everything, integers with integers, a float with itself.
fn kinds_agree(instruction: Type, register: Type) -> bool {
    is_bits(instruction)
        || is_bits(register)
        || (is_integer(instruction) && is_integer(register))
        || instruction == register
}

/// Whether a register may be an operand where the instruction works on `instruction`.
pub(super) fn fits(instruction: Type, register: Type) -> bool {
    if instruction == Type::Pred || register == Type::Pred {
        return instruction == register;
    }
    instruction.bits() == register.bits() && kinds_agree(instruction, register)
}

/// The relaxed rule of `ld`, `st` and `cvt`: integer and bit registers may be wider than the instruction's type.
pub(super) fn fits_wider(instruction: Type, register: Type) -> bool {
    if fits(instruction, register) {
        return true;
    }
    if instruction == Type::Pred || register == Type::Pred || register.bits() < instruction.bits() {
        return false;
    }
    if instruction.float() { is_bits(register) } else { kinds_agree(instruction, register) }
}
