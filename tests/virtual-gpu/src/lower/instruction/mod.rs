//! One instruction: its opcode picks a family, the family checks modifiers and operands and builds the operation.

mod compare;
mod control;
mod convert;
mod float;
mod integer;
mod matrix;
mod memory;
mod sync;

use super::Lowered;
use super::function::Body;
use super::modifiers::Modifiers;
use super::operand::{between, exactly};
use crate::program::{Guard, Op, PredSrc, Type};
use crate::ptx::{Instruction, Operand, OperandKind, Refusal};

/// Integer types of 16 bits and more.
const INTEGERS: [Type; 6] = [Type::U16, Type::U32, Type::U64, Type::S16, Type::S32, Type::S64];
/// Bits of 16 bits and more.
const BITS: [Type; 3] = [Type::B16, Type::B32, Type::B64];
/// Half-precision types, single and in pairs.
const HALVES: [Type; 4] = [Type::F16, Type::F16x2, Type::BF16, Type::BF16x2];

/// Appends an instruction to the function.
pub(super) fn lower<'a>(body: &mut Body<'_, 'a>, i: &Instruction<'a>) -> Lowered<()> {
    let guard = match i.guard {
        None => None,
        Some(guard) => {
            let kind = OperandKind::Name { name: guard.name, member: None, offset: 0, index: None };
            let reg = body.dst(&Operand { at: guard.at, kind }, Type::Pred)?;
            Some(Guard { reg, negated: guard.negated })
        }
    };
    let mut modifiers = Modifiers::new(i);
    let before = body.function.code.len();
    let op = operation(body, i, &mut modifiers)?;
    modifiers.finish()?;
    // Reads of special registers that the operation needed before it.
    for instruction in &mut body.function.code[before..] {
        instruction.guard = guard;
    }
    body.emit(op, guard, i.at.line);
    Ok(())
}

fn operation<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let float = m.peek_type().is_some_and(Type::float);
    match i.opcode {
        "add" | "sub" | "mul" | "mad" | "div" | "abs" | "neg" | "min" | "max" if float => float::arithmetic(b, i, m),
        "fma" => float::arithmetic(b, i, m),
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => float::unary(b, i, m),
        "copysign" | "testp" => float::sign(b, i, m),
        "add" | "sub" | "addc" | "subc" => integer::add(b, i, m),
        "mul" | "mul24" => integer::multiply(b, i, m),
        "mad" | "madc" | "mad24" => integer::multiply_add(b, i, m),
        "div" | "rem" | "min" | "max" | "sad" | "abs" | "neg" => integer::plain(b, i, m),
        "popc" | "clz" | "brev" | "bfind" | "fns" | "bfe" | "bfi" | "szext" | "bmsk" => integer::bit_fields(b, i, m),
        "vabsdiff2" | "vabsdiff4" => integer::absolute_differences(b, i, m),
        "dp4a" | "dp2a" => integer::dot(b, i, m),
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt" => integer::logic(b, i, m),
        "setp" | "set" | "selp" | "slct" => compare::lower(b, i, m),
        "cvt" => convert::cvt(b, i, m),
        "mov" => convert::mov(b, i, m),
        "cvta" | "isspacep" => convert::address(b, i, m),
        "ld" | "ldu" | "st" => memory::load_store(b, i, m),
        "atom" | "red" => memory::atomic(b, i, m),
        "prefetch" | "prefetchu" | "discard" | "applypriority" | "createpolicy" => memory::hint(b, i, m),
        "cp" => memory::copy_async(b, i, m),
        "mbarrier" => sync::mbarrier(b, i, m),
        "bar" | "barrier" => sync::barrier(b, i, m),
        "membar" | "fence" => sync::fence(b, i, m),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => sync::warp(b, i, m),
        "ldmatrix" | "movmatrix" => matrix::moves(b, i, m),
        "mma" => matrix::mma(b, i, m),
        "wmma" => matrix::wmma(b, i, m),
        "bra" | "brx" => control::branch(b, i, m),
        "call" => control::call(b, i, m),
        "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent" => control::simple(b, i, m),
        "alloca" | "stacksave" | "stackrestore" => control::stack(b, i, m),
        "tex" | "tld4" | "txq" | "suld" | "sust" | "sured" | "suq" | "istypep" => {
            Err(Refusal::new(i.at, format!("'{}': textures and surfaces are not supported", i.opcode)))
        }
        opcode => {
            let opcode: String = opcode.chars().take(64).collect();
            Err(Refusal::new(i.at, format!("unknown instruction '{opcode}'")))
        }
    }
}

impl Body<'_, '_> {
    /// Refuses what the module's target does not have.
    fn require(&self, i: &Instruction<'_>, what: &str, target: u32) -> Lowered<()> {
        if self.module.target >= target {
            return Ok(());
        }
        let what = format!("'{what}' needs sm_{target}, the module's target is sm_{}", self.module.target);
        Err(Refusal::new(i.at, what))
    }
}
