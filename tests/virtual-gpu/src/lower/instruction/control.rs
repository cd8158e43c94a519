//! Branches, calls and the end of threads.

use super::*;
use crate::lower::Formal;
use crate::lower::names::Entity;
use crate::program::{Arg, Call, CallTarget, Space, Src, SymbolKind, Width};

/// `bra` and `brx.idx`.
pub(super) fn branch<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let uniform = m.take("uni");
    if i.opcode == "bra" {
        let [label] = exactly(i)?;
        let OperandKind::Name { name, member: None, offset: 0, index: None } = label.kind else {
            return Err(Refusal::new(label.at, "a branch goes to a label"));
        };
        return Ok(Op::Bra { target: b.label(name, label.at)?, uniform });
    }
    m.expect("idx")?;
    let [index, list] = exactly(i)?;
    let index = b.src(index, Type::U32)?;
    let OperandKind::Name { name, .. } = list.kind else {
        return Err(Refusal::new(list.at, "a list of branch targets is wanted here"));
    };
    match b.find(name, list.at)? {
        Entity::Targets(targets) => Ok(Op::BrxIdx { index, targets: targets.into() }),
        _ => Err(Refusal::new(list.at, format!("'{name}' is not a list of branch targets"))),
    }
}

/// Operands without an effect of their own.
pub(super) fn simple<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    match i.opcode {
        "nanosleep" => {
            m.ty(&[Type::U32])?;
            let [t] = exactly(i)?;
            return Ok(Op::Nanosleep { duration: b.src(t, Type::U32)? });
        }
        "pmevent" => {
            m.ignore(&["mask"]);
            let [event] = exactly(i)?;
            b.literal(event, 65535, "an event")?;
            return Ok(Op::Nop);
        }
        _ => {}
    }
    let [] = exactly(i)?;
    Ok(match i.opcode {
        "ret" => {
            m.ignore(&["uni"]);
            Op::Ret
        }
        "exit" => Op::Exit,
        "trap" => Op::Trap,
        _ => Op::Brkpt,
    })
}

/// `alloca`, `stacksave`, `stackrestore`.
pub(super) fn stack<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    let ty = m.ty(&[Type::U32, Type::U64])?;
    let wide = ty == Type::U64;
    if i.opcode != "alloca" {
        let [a] = exactly(i)?;
        return Ok(match i.opcode {
            "stacksave" => Op::StackSave { wide, dst: b.dst(a, ty)? },
            _ => Op::StackRestore { wide, a: b.src(a, ty)? },
        });
    }
    between(i, 2, 3)?;
    let align = match i.operands.get(2) {
        Some(align) => b.literal(align, 1 << 16, "an alignment")? as u32,
        None => 8,
    };
    if !align.is_power_of_two() {
        return Err(m.refuse("an alignment is a power of two"));
    }
    Ok(Op::Alloca { wide, align, dst: b.dst(&i.operands[0], ty)?, size: b.src(&i.operands[1], ty)? })
}

/// `call (returns), function, (arguments), prototype;` with all but the function optional.
pub(super) fn call<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    m.ignore(&["uni"]);
    let mut rest = i.operands.as_slice();
    let list = |rest: &mut &'_ [Operand<'a>]| -> Option<Vec<Operand<'a>>> {
        let (first, others) = rest.split_first()?;
        let OperandKind::List(items) = &first.kind else { return None };
        *rest = others;
        Some(items.clone())
    };
    let returns = list(&mut rest).unwrap_or_default();
    let Some((callee, mut rest)) = rest.split_first() else { return Err(m.refuse("'call' names no function")) };
    let args = list(&mut rest).unwrap_or_default();
    let OperandKind::Name { name, .. } = callee.kind else {
        return Err(Refusal::new(callee.at, "'call' takes a function or a register with its address"));
    };
    let (target, formals) = match (b.find(name, callee.at)?, rest) {
        (Entity::Function(index), []) => {
            let signature = &b.signatures[index as usize];
            if signature.entry {
                return Err(Refusal::new(callee.at, format!("'{name}' is a kernel, which cannot be called")));
            }
            let target = match signature.builtin {
                Some(builtin) => CallTarget::Builtin(builtin),
                None => CallTarget::Function(index),
            };
            (target, (signature.returns.clone(), signature.params.clone()))
        }
        (Entity::Register { .. }, [prototype]) => {
            let OperandKind::Name { name, .. } = prototype.kind else {
                return Err(Refusal::new(prototype.at, "a prototype is wanted here"));
            };
            let Entity::Prototype(index) = b.find(name, prototype.at)? else {
                return Err(Refusal::new(prototype.at, format!("'{name}' is not a prototype")));
            };
            let prototype = &b.prototypes[index];
            let formals = (prototype.returns.clone(), prototype.params.clone());
            (CallTarget::Indirect(b.src(callee, Type::U64)?), formals)
        }
        (Entity::Register { .. }, _) => return Err(m.refuse("an indirect call needs a prototype")),
        _ => return Err(Refusal::new(callee.at, format!("'{name}' is not a function, or too many operands follow"))),
    };
    let returns = arguments(b, i, &returns, &formals.0, true)?;
    let args = arguments(b, i, &args, &formals.1, false)?;
    Ok(Op::Call(Box::new(Call { target, args, returns })))
}

fn arguments<'a>(
    b: &mut Body<'_, 'a>,
    i: &Instruction<'a>,
    actual: &[Operand<'a>],
    formals: &[Formal],
    returned: bool,
) -> Lowered<Box<[Arg]>> {
    if actual.len() != formals.len() {
        let what = if returned { "results" } else { "arguments" };
        let what = format!("the function has {} {what}, the call {}", formals.len(), actual.len());
        return Err(Refusal::new(i.at, what));
    }
    actual.iter().zip(formals).map(|(op, formal)| argument(b, op, formal, returned)).collect()
}

fn argument<'a>(b: &mut Body<'_, 'a>, op: &Operand<'a>, formal: &Formal, returned: bool) -> Lowered<Arg> {
    let width = Width::of_bits(formal.ty.bits());
    if let OperandKind::Name { name, member: None, offset: 0, index: None } = op.kind
        && let Entity::Variable(variable) = b.find(name, op.at)?
        && let (SymbolKind::Frame(offset), Space::Param) = (variable.what, variable.space)
    {
        if variable.size != formal.size && formal.size != 0 {
            let what = format!("'{name}' has {} bytes, the function's parameter {}", variable.size, formal.size);
            return Err(Refusal::new(op.at, what));
        }
        return Ok(Arg::Param { offset, size: variable.size as u32 });
    }
    if formal.size > u64::from(formal.ty.bytes()) {
        return Err(Refusal::new(op.at, "an array is passed in a .param variable"));
    }
    if returned {
        return Ok(Arg::Reg { width, reg: b.dst(op, formal.ty)? });
    }
    match b.src(op, formal.ty)? {
        Src::Reg(reg) => Ok(Arg::Reg { width, reg }),
        value => Ok(Arg::Imm { width, value }),
    }
}
