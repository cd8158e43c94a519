//! Operands: names to registers, symbols and addresses, checked against the type wanted.

use super::function::Body;
use super::names::{Entity, Found, Variable, find};
use super::{Lowered, data, types};
use crate::program::{Address, PredSrc, Reg, RegVec, Space, Special, Src, Symbol, SymbolKind, Type, Width};
use crate::ptx::{Constant, Instruction, Operand, OperandKind, Position, Refusal};

/// A register operand.
#[derive(Clone, Copy)]
pub(super) struct Register {
    pub reg: Reg,
    pub ty: Type,
}

/// The operands of an instruction that takes `N`.
pub(super) fn exactly<'i, 'a, const N: usize>(i: &'i Instruction<'a>) -> Lowered<&'i [Operand<'a>; N]> {
    i.operands
        .as_slice()
        .try_into()
        .map_err(|_| Refusal::new(i.at, format!("'{}' takes {N} operands here, found {}", i.opcode, i.operands.len())))
}

/// How many operands an instruction may have.
pub(super) fn between(i: &Instruction<'_>, least: usize, most: usize) -> Lowered<()> {
    if (least..=most).contains(&i.operands.len()) {
        return Ok(());
    }
    let what = format!("'{}' takes {least} to {most} operands here, found {}", i.opcode, i.operands.len());
    Err(Refusal::new(i.at, what))
}

impl<'a> Body<'_, 'a> {
    pub(super) fn find(&mut self, name: &'a str, at: Position) -> Lowered<Entity> {
        match find(&self.scopes, name) {
            Found::Entity(entity) => Ok(entity),
            Found::Unborn(unborn) => {
                let entity = self.new_registers(name, unborn.ty, unborn.vector, at)?;
                self.scopes[unborn.scope].born(name, entity.clone());
                Ok(entity)
            }
            Found::Nothing => match self.names.get(name) {
                Some(entity) => Ok(entity.clone()),
                None if special(name, None).is_some() || special(name, Some("x")).is_some() => {
                    Err(Refusal::new(at, format!("special register '{name}' is read with mov or cvt")))
                }
                None => {
                    Err(Refusal::new(at, format!("'{}' is not declared", name.chars().take(64).collect::<String>())))
                }
            },
        }
    }

    /// The register that an operand names, if it does.
    pub(super) fn register(&mut self, op: &Operand<'a>) -> Lowered<Option<Register>> {
        let OperandKind::Name { name, member, offset: 0, index: None } = op.kind else { return Ok(None) };
        let Entity::Register { ty, reg, count } = self.find(name, op.at)? else { return Ok(None) };
        let place = match member {
            None if count == 1 => 0,
            None => {
                return Err(Refusal::new(op.at, format!("'{name}' is a vector; name an element, such as {name}.x")));
            }
            Some(member) => match ["x", "y", "z", "w"]
                .iter()
                .zip(["r", "g", "b", "a"])
                .position(|(p, c)| *p == member || c == member)
            {
                Some(i) if i < usize::from(count) => i as u16,
                _ => return Err(Refusal::new(op.at, format!("'{name}' has no element '.{member}'"))),
            },
        };
        Ok(Some(Register { reg: Reg(reg.0 + place), ty }))
    }

    fn typed_register(&mut self, op: &Operand<'a>, ty: Type, rule: fn(Type, Type) -> bool) -> Lowered<Register> {
        match self.register(op)? {
            Some(register) if rule(ty, register.ty) => Ok(register),
            Some(register) => {
                let what = format!("a {} register where {} is wanted", types::name(register.ty), types::name(ty));
                Err(Refusal::new(op.at, what))
            }
            None => Err(Refusal::new(op.at, format!("a register of type {} is wanted here", types::name(ty)))),
        }
    }

    /// A destination.
    pub(super) fn dst(&mut self, op: &Operand<'a>, ty: Type) -> Lowered<Reg> {
        Ok(self.typed_register(op, ty, types::fits)?.reg)
    }

    /// A destination or `_`.
    pub(super) fn dst_or_sink(&mut self, op: &Operand<'a>, ty: Type) -> Lowered<Option<Reg>> {
        if matches!(op.kind, OperandKind::Sink) { Ok(None) } else { self.dst(op, ty).map(Some) }
    }

    /// `d` or `d|p`.
    pub(super) fn dst_pair(&mut self, op: &Operand<'a>, ty: Type) -> Lowered<(Option<Reg>, Option<Reg>)> {
        match &op.kind {
            OperandKind::Pair(d, p) => Ok((self.dst_or_sink(d, ty)?, self.dst_or_sink(p, Type::Pred)?)),
            _ => Ok((self.dst_or_sink(op, ty)?, None)),
        }
    }

    /// A source of exactly this type.
    pub(super) fn src(&mut self, op: &Operand<'a>, ty: Type) -> Lowered<Src> {
        self.source(op, ty, types::fits).map(|(src, _)| src)
    }

    /// A source for `ld`, `st` and `cvt`, whose register may be wider; and its width.
    pub(super) fn wide_src(&mut self, op: &Operand<'a>, ty: Type) -> Lowered<(Src, Width)> {
        self.source(op, ty, types::fits_wider)
    }

    /// A destination that may be wider.
    pub(super) fn wide_dst(&mut self, op: &Operand<'a>, ty: Type) -> Lowered<(Reg, Width)> {
        let register = self.typed_register(op, ty, types::fits_wider)?;
        Ok((register.reg, Width::of_bits(register.ty.bits())))
    }

    fn source(&mut self, op: &Operand<'a>, ty: Type, rule: fn(Type, Type) -> bool) -> Lowered<(Src, Width)> {
        match &op.kind {
            OperandKind::Constant(constant) => {
                Ok((Src::Imm(data::immediate(*constant, ty, op.at)?), Width::of_bits(ty.bits())))
            }
            OperandKind::Name { name, member: None, offset, index } => match self.find(name, op.at)? {
                Entity::Register { .. } => {
                    let register = self.typed_register(op, ty, rule)?;
                    Ok((Src::Reg(register.reg), Width::of_bits(register.ty.bits())))
                }
                Entity::Variable(variable) => {
                    self.address_fits(&variable, ty, name, op.at)?;
                    let offset = element_offset(&variable, *index, *offset);
                    Ok((Src::Symbol(self.symbol(variable.what, offset, op.at)?), Width::of_bits(ty.bits())))
                }
                Entity::Function(index) if ty.bits() == 64 && !ty.float() => {
                    Ok((Src::Symbol(self.symbol(SymbolKind::Function(index), *offset, op.at)?), Width::W64))
                }
                _ => Err(Refusal::new(op.at, format!("'{name}' is not a value of type {}", types::name(ty)))),
            },
            _ => {
                let register = self.typed_register(op, ty, rule)?;
                Ok((Src::Reg(register.reg), Width::of_bits(register.ty.bits())))
            }
        }
    }

    /// Addresses have 64 bits; within shared, local and parameter space 32 suffice.
    fn address_fits(&self, variable: &Variable, ty: Type, name: &str, at: Position) -> Lowered<()> {
        let narrow = matches!(variable.space, Space::Shared | Space::Local | Space::Param);
        if ty.float() || !(ty.bits() == 64 || ty.bits() == 32 && narrow) {
            return Err(Refusal::new(at, format!("the address of '{name}' does not fit {}", types::name(ty))));
        }
        Ok(())
    }

    /// A predicate as a source.
    pub(super) fn predicate(&mut self, op: &Operand<'a>) -> Lowered<PredSrc> {
        match &op.kind {
            OperandKind::Constant(Constant::Signed(value)) => Ok(PredSrc::Const(*value != 0)),
            OperandKind::Constant(Constant::Unsigned(value)) => Ok(PredSrc::Const(*value != 0)),
            OperandKind::Not(name) => {
                let inner = OperandKind::Name { name, member: None, offset: 0, index: None };
                let reg = self.dst(&Operand { at: op.at, kind: inner }, Type::Pred)?;
                Ok(PredSrc::Reg { reg, negated: true })
            }
            _ => Ok(PredSrc::Reg { reg: self.dst(op, Type::Pred)?, negated: false }),
        }
    }

    /// `[…]` in `space`, or `name[index]`.
    pub(super) fn address(&mut self, op: &Operand<'a>, space: Space) -> Lowered<Address> {
        let address = match &op.kind {
            OperandKind::Address(address) => address,
            OperandKind::Name { name, member: None, offset, index: Some(index) } => {
                return match self.find(name, op.at)? {
                    Entity::Variable(variable) => {
                        let offset = element_offset(&variable, Some(*index), *offset);
                        self.variable_address(name, &variable, offset, space, op.at)
                    }
                    _ => Err(Refusal::new(op.at, format!("'{name}' is not an array"))),
                };
            }
            _ => return Err(Refusal::new(op.at, "an address in brackets is wanted here")),
        };
        if !address.rest.is_empty() {
            return Err(Refusal::new(op.at, "only textures have coordinates"));
        }
        let Some(name) = address.base else {
            return Ok(Address { base: Src::Imm(address.offset as u64), wide: true, offset: 0 });
        };
        match self.find(name, op.at)? {
            Entity::Register { ty, reg, count: 1 } => {
                if ty.float() || !matches!(ty.bits(), 32 | 64) {
                    let what = format!("'{name}' is {}; an address is a 32- or 64-bit integer", types::name(ty));
                    return Err(Refusal::new(op.at, what));
                }
                if ty.bits() == 32 && matches!(space, Space::Generic | Space::Global | Space::Const) {
                    let what = format!("'{name}' has 32 bits; an address in {space:?} space has 64");
                    return Err(Refusal::new(op.at, what));
                }
                Ok(Address { base: Src::Reg(reg), wide: ty.bits() == 64, offset: address.offset })
            }
            Entity::Variable(variable) => self.variable_address(name, &variable, address.offset, space, op.at),
            _ => Err(Refusal::new(op.at, format!("'{name}' is not an address"))),
        }
    }

    /// A variable's address where the instruction works in `space`; only global memory is its own generic address.
    fn variable_address(
        &mut self,
        name: &str,
        variable: &Variable,
        offset: i64,
        space: Space,
        at: Position,
    ) -> Lowered<Address> {
        if variable.space != space && (variable.space, space) != (Space::Global, Space::Generic) {
            let what = format!("'{name}' is in {:?} space, the instruction's is {space:?}", variable.space);
            return Err(Refusal::new(at, what));
        }
        Ok(Address { base: Src::Symbol(self.symbol(variable.what, 0, at)?), wide: true, offset })
    }

    /// The operands of `{ … }`, of a vector register, or of a scalar.
    pub(super) fn elements(&mut self, op: &Operand<'a>, count: usize) -> Lowered<Vec<Operand<'a>>> {
        let elements = match &op.kind {
            OperandKind::Vector(elements) => elements.clone(),
            OperandKind::Name { name, member: None, offset: 0, index: None } => match self.find(name, op.at)? {
                Entity::Register { count, .. } if count > 1 => ["x", "y", "z", "w"][..usize::from(count)]
                    .iter()
                    .map(|&member| Operand {
                        at: op.at,
                        kind: OperandKind::Name { name, member: Some(member), offset: 0, index: None },
                    })
                    .collect(),
                _ => vec![op.clone()],
            },
            _ => vec![op.clone()],
        };
        if elements.len() != count {
            return Err(Refusal::new(op.at, format!("{count} registers are wanted here, found {}", elements.len())));
        }
        Ok(elements)
    }

    /// Destination registers of a vector, `_` allowed; all of one width.
    pub(super) fn wide_vector(&mut self, op: &Operand<'a>, count: usize, ty: Type) -> Lowered<(RegVec, Width)> {
        let mut regs = [None; 4];
        let mut width = None;
        for (slot, element) in regs.iter_mut().zip(self.elements(op, count)?) {
            if matches!(element.kind, OperandKind::Sink) {
                continue;
            }
            let (reg, w) = self.wide_dst(&element, ty)?;
            if *width.get_or_insert(w) != w {
                return Err(Refusal::new(op.at, "the registers of a vector have one width"));
            }
            *slot = Some(reg);
        }
        Ok((regs, width.unwrap_or(Width::of_bits(ty.bits()))))
    }

    /// Registers of a matrix fragment or its like.
    pub(super) fn dsts(&mut self, op: &Operand<'a>, count: usize, ty: Type) -> Lowered<Box<[Reg]>> {
        self.elements(op, count)?.iter().map(|e| self.dst(e, ty)).collect()
    }

    /// Sources of a matrix fragment.
    pub(super) fn srcs(&mut self, op: &Operand<'a>, count: usize, ty: Type) -> Lowered<Box<[Src]>> {
        self.elements(op, count)?.iter().map(|e| self.src(e, ty)).collect()
    }

    /// An integer known when the text is read.
    pub(super) fn literal(&mut self, op: &Operand<'a>, most: u64, what: &str) -> Lowered<u64> {
        match op.kind {
            OperandKind::Constant(Constant::Signed(v)) if v >= 0 && v as u64 <= most => Ok(v as u64),
            OperandKind::Constant(Constant::Unsigned(v)) if v <= most => Ok(v),
            _ => Err(Refusal::new(op.at, format!("{what} is a constant from 0 to {most}"))),
        }
    }
}

fn element_offset(variable: &Variable, index: Option<u64>, offset: i64) -> i64 {
    offset.wrapping_add((index.unwrap_or(0).wrapping_mul(variable.element)) as i64)
}

impl Body<'_, '_> {
    /// The index of a symbol in this function.
    pub(super) fn symbol(&mut self, what: SymbolKind, offset: i64, at: Position) -> Lowered<u32> {
        let symbols = &mut self.function.symbols;
        let symbol = Symbol { what, offset, generic: false };
        if let Some(index) = symbols.iter().rposition(|s| *s == symbol) {
            return Ok(index as u32);
        }
        let index = u32::try_from(symbols.len()).map_err(|_| Refusal::new(at, "too many symbols"))?;
        symbols.push(symbol);
        Ok(index)
    }
}

/// The special register of this name.
pub(super) fn special(name: &str, member: Option<&str>) -> Option<Special> {
    use Special::*;
    let by_axis = |axes: [Special; 3]| match member? {
        "x" => Some(axes[0]),
        "y" => Some(axes[1]),
        "z" => Some(axes[2]),
        _ => None,
    };
    match name {
        "%tid" => return by_axis([TidX, TidY, TidZ]),
        "%ntid" => return by_axis([NtidX, NtidY, NtidZ]),
        "%ctaid" => return by_axis([CtaidX, CtaidY, CtaidZ]),
        "%nctaid" => return by_axis([NctaidX, NctaidY, NctaidZ]),
        _ if member.is_some() => return None,
        _ => {}
    }
    Some(match name {
        "%laneid" => LaneId,
        "%warpid" => WarpId,
        "%nwarpid" => NWarpId,
        "%smid" => SmId,
        "%nsmid" => NSmId,
        "%gridid" => GridId,
        "%lanemask_eq" => LaneMaskEq,
        "%lanemask_le" => LaneMaskLe,
        "%lanemask_lt" => LaneMaskLt,
        "%lanemask_ge" => LaneMaskGe,
        "%lanemask_gt" => LaneMaskGt,
        "%clock" => Clock,
        "%clock_hi" => ClockHi,
        "%clock64" => Clock64,
        "%globaltimer" => GlobalTimer,
        "%globaltimer_lo" => GlobalTimerLo,
        "%globaltimer_hi" => GlobalTimerHi,
        "%dynamic_smem_size" => DynamicSmemSize,
        "%total_smem_size" => TotalSmemSize,
        "%reserved_smem_offset_begin" => ReservedBegin,
        "%reserved_smem_offset_end" => ReservedEnd,
        "%reserved_smem_offset_cap" => ReservedBytes,
        "%reserved_smem_offset_0" => Reserved0,
        "%reserved_smem_offset_1" => Reserved1,
        "%envreg1" => EnvReg1,
        "%envreg2" => EnvReg2,
        _ => {
            let below = |prefix: &str, count: u32| {
                name.strip_prefix(prefix).and_then(|n| n.parse().ok()).is_some_and(|n: u32| n < count)
            };
            if below("%envreg", 32) || below("%pm", 8) {
                Zero
            } else if name.strip_suffix("_64").is_some_and(|n| n.len() == 4 && n.starts_with("%pm")) {
                Zero64
            } else {
                return None;
            }
        }
    })
}

impl Body<'_, '_> {
    /// Whether the text itself gives this name a meaning.
    pub(super) fn declared(&self, name: &str) -> bool {
        !matches!(find(&self.scopes, name), Found::Nothing) || self.names.get(name).is_some()
    }
}
