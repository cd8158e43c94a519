//! The body of a function: scopes, registers, labels, frames.

use super::data;
use super::instruction;
use super::names::{Entity, Scope, Variable};
use super::{Formal, Lowered, Signature, declare, formals, types};
use crate::program::{
    Arg, Class, Function, Guard, Instruction, Loc, Module, Op, Param, Reg, Space, SymbolKind, Type, Width,
};
use crate::ptx::{self, Position, Refusal, Statement};

/// Local memory of one thread, by the ISA.
const LOCAL_BYTES: u64 = 512 << 10;
/// Parameters of a kernel, by the ISA since version 8.1.
const PARAM_BYTES: u64 = 32_764;
/// Parameters of the calls of one function: as much as the window of parameter space holds.
const FRAME_BYTES: u64 = 1 << 24;

/// The signature of an indirect call.
pub(super) struct Prototype {
    pub returns: Vec<Formal>,
    pub params: Vec<Formal>,
}

/// A function being lowered.
pub(super) struct Body<'m, 'a> {
    pub module: &'m mut Module,
    pub names: &'m Scope<'a>,
    pub signatures: &'m [Signature],
    pub scopes: Vec<Scope<'a>>,
    pub function: Function,
    pub prototypes: Vec<Prototype>,
    labels: Vec<Option<u32>>,
    loc: Option<Loc>,
}

/// A function of a module.
pub(super) fn lower<'a>(
    module: &mut Module,
    names: &Scope<'a>,
    signatures: &[Signature],
    tree: &ptx::Function<'a>,
) -> Lowered<Function> {
    let function = Function {
        name: tree.name.to_owned(),
        entry: tree.entry,
        line: tree.at.line,
        directives: super::directives(tree)?,
        local_align: 1,
        ..Function::default()
    };
    let mut body = Body {
        module,
        names,
        signatures,
        scopes: vec![Scope::default()],
        function,
        prototypes: Vec::new(),
        labels: Vec::new(),
        loc: None,
    };
    body.function.returns = tree.returns.iter().map(|v| body.formal(v)).collect::<Lowered<_>>()?;
    body.function.params = tree.params.iter().map(|v| body.formal(v)).collect::<Lowered<_>>()?;
    if let Some(statements) = &tree.body {
        body.block(statements)?;
    }
    body.link()?;
    Ok(body.function)
}

fn align_up(offset: u64, align: u64) -> u64 {
    offset.next_multiple_of(align.max(1))
}

impl<'a> Body<'_, 'a> {
    /// A formal parameter or return value.
    fn formal(&mut self, variable: &ptx::Variable<'a>) -> Lowered<Param> {
        let layout = data::layout(variable, false)?;
        let name = variable.name.to_owned();
        let align = layout.align as u32;
        if variable.space == ptx::Space::Reg {
            if self.function.entry || layout.ty == Type::Pred {
                return Err(Refusal::new(variable.at, format!("'{name}' cannot be passed in this register")));
            }
            self.declare_register(variable)?;
            let Entity::Register { reg, .. } = self.find(variable.name, variable.at)? else {
                return Err(Refusal::new(variable.at, "a formal parameter is one register"));
            };
            return Ok(Param { name, place: Arg::Reg { width: Width::of_bits(layout.ty.bits()), reg }, align });
        }
        let entry = self.function.entry;
        let used = if entry { &mut self.function.param_bytes } else { &mut self.function.frame_bytes };
        let offset = align_up(u64::from(*used), layout.align);
        let end = offset.saturating_add(layout.size);
        if end > if entry { PARAM_BYTES } else { FRAME_BYTES } {
            return Err(Refusal::new(variable.at, "the parameters are larger than parameter space"));
        }
        *used = end as u32;
        let (offset, size) = (offset as u32, layout.size as u32);
        let what = if entry { SymbolKind::KernelParam(offset) } else { SymbolKind::Frame(offset) };
        let entity = Variable { what, space: Space::Param, size: layout.size, element: layout.element };
        self.scope().declare(variable.name, Entity::Variable(entity), variable.at)?;
        Ok(Param { name, place: Arg::Param { offset, size }, align })
    }

    fn scope(&mut self) -> &mut Scope<'a> {
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    /// A scope's statements. Labels are seen from before them, other names from their declaration on.
    fn block(&mut self, statements: &[Statement<'a>]) -> Lowered<()> {
        self.scopes.push(Scope::default());
        for statement in statements {
            if let Statement::Label(name, at) = statement {
                let label = self.labels.len() as u32;
                self.labels.push(None);
                self.scope().declare(name, Entity::Label(label), *at)?;
            }
        }
        for statement in statements {
            if let Statement::BranchTargets(name, targets, at) = statement {
                let targets = targets.iter().map(|(t, at)| self.label(t, *at)).collect::<Lowered<_>>()?;
                self.scope().declare(name, Entity::Targets(targets), *at)?;
            }
        }
        for statement in statements {
            self.statement(statement)?;
        }
        self.scopes.pop();
        Ok(())
    }

    fn statement(&mut self, statement: &Statement<'a>) -> Lowered<()> {
        match statement {
            Statement::Block(statements) => self.block(statements)?,
            Statement::Label(name, at) => {
                let label = self.label(name, *at)?;
                self.labels[label as usize] = Some(self.function.code.len() as u32);
            }
            Statement::Variable(variable) => self.variable(variable)?,
            Statement::Location { file, line, .. } => self.loc = Some(Loc { file: *file, line: *line }),
            Statement::BranchTargets(..) => {}
            Statement::CallTargets(name, targets, at) => {
                let mut known: Option<(Vec<Formal>, Vec<Formal>)> = None;
                for (target, at) in targets {
                    let Entity::Function(index) = self.find(target, *at)? else {
                        return Err(Refusal::new(*at, format!("'{target}' is not a function")));
                    };
                    let signature = &self.signatures[index as usize];
                    let this = (signature.returns.clone(), signature.params.clone());
                    if known.get_or_insert_with(|| this.clone()) != &this {
                        return Err(Refusal::new(*at, format!("'{target}' has another signature than the first")));
                    }
                }
                let (returns, params) = known.unwrap_or_default();
                self.prototype(name, Prototype { returns, params }, *at)?;
            }
            Statement::Prototype(p) => {
                let prototype = Prototype { returns: formals(&p.returns)?, params: formals(&p.params)? };
                self.prototype(p.name, prototype, p.at)?;
            }
            Statement::Instruction(i) => instruction::lower(self, i)?,
        }
        Ok(())
    }

    fn prototype(&mut self, name: &'a str, prototype: Prototype, at: Position) -> Lowered<()> {
        let index = self.prototypes.len();
        self.prototypes.push(prototype);
        self.scope().declare(name, Entity::Prototype(index), at)
    }

    /// The index of a label.
    pub(super) fn label(&mut self, name: &'a str, at: Position) -> Lowered<u32> {
        match self.find(name, at)? {
            Entity::Label(label) => Ok(label),
            _ => Err(Refusal::new(at, format!("'{name}' is not a label"))),
        }
    }

    fn variable(&mut self, variable: &ptx::Variable<'a>) -> Lowered<()> {
        match variable.space {
            ptx::Space::Reg => return self.declare_register(variable),
            ptx::Space::Local | ptx::Space::Param => {}
            _ => {
                let last = self.scopes.len() - 1;
                declare(self.module, &mut self.scopes[last], variable, Some(&self.function.name))?;
                let name = format!("{}::{}", self.function.name, variable.name);
                let mut scopes = vec![self.names];
                scopes.extend(&self.scopes);
                return data::initialise(self.module, &scopes, variable, &name);
            }
        }
        if variable.init.is_some() {
            return Err(Refusal::new(variable.at, format!("{:?} variables have no initial value", variable.space)));
        }
        let layout = data::layout(variable, false)?;
        let local = variable.space == ptx::Space::Local;
        let used = if local { &mut self.function.local_bytes } else { &mut self.function.frame_bytes };
        let offset = align_up(u64::from(*used), layout.align);
        let end = offset.saturating_add(layout.size);
        if end > if local { LOCAL_BYTES } else { FRAME_BYTES } {
            return Err(Refusal::new(variable.at, format!("'{}' is too large for its space", variable.name)));
        }
        *used = end as u32;
        let (what, space) = if local {
            self.function.local_align = self.function.local_align.max(layout.align as u32);
            (SymbolKind::Local(offset as u32), Space::Local)
        } else {
            (SymbolKind::Frame(offset as u32), Space::Param)
        };
        let entity = Variable { what, space, size: layout.size, element: layout.element };
        self.scope().declare(variable.name, Entity::Variable(entity), variable.at)
    }

    fn declare_register(&mut self, variable: &ptx::Variable<'a>) -> Lowered<()> {
        let Some(ty) = types::scalar(variable.ty).filter(|ty| *ty == Type::Pred || ty.bits() >= 8) else {
            return Err(Refusal::new(variable.at, format!("'.{}' is not a type of registers", variable.ty)));
        };
        if !variable.dimensions.is_empty() || variable.init.is_some() {
            return Err(Refusal::new(variable.at, "registers are neither arrays nor initialised"));
        }
        match variable.range {
            Some(count) => self.scope().declare_range(variable.name, count, ty, variable.vector),
            None => {
                let entity = self.new_registers(variable.name, ty, variable.vector, variable.at)?;
                self.scope().declare(variable.name, entity, variable.at)?;
            }
        }
        Ok(())
    }

    /// New registers in the file of their type.
    pub(super) fn new_registers(&mut self, name: &str, ty: Type, count: u8, at: Position) -> Lowered<Entity> {
        let registers = &mut self.function.registers;
        let file = match ty.class() {
            Class::R32 => &mut registers.r32,
            Class::R64 => &mut registers.r64,
            Class::Pred => &mut registers.pred,
        };
        let first = u16::try_from(file.len() + usize::from(count))
            .map(|end| end - u16::from(count))
            .map_err(|_| Refusal::new(at, "a function has at most 65535 registers of one size"))?;
        for i in 0..count {
            let member = if count > 1 { [".x", ".y", ".z", ".w"][usize::from(i)] } else { "" };
            file.push(format!("{name}{member}").into());
        }
        Ok(Entity::Register { ty, reg: Reg(first), count })
    }

    /// A register of the lowerer's own.
    pub(super) fn temporary(&mut self, ty: Type, at: Position) -> Lowered<Reg> {
        match self.new_registers("a special register", ty, 1, at)? {
            Entity::Register { reg, .. } => Ok(reg),
            _ => Err(Refusal::new(at, "no register left")),
        }
    }

    /// Appends an instruction.
    pub(super) fn emit(&mut self, op: Op, guard: Option<Guard>, line: u32) {
        self.function.code.push(Instruction { op, guard, line, loc: self.loc });
    }

    /// Labels to places, now that all are known.
    fn link(&mut self) -> Lowered<()> {
        let place = |label: u32| self.labels.get(label as usize).copied().flatten().unwrap_or(0);
        for instruction in &mut self.function.code {
            match &mut instruction.op {
                Op::Bra { target, .. } => *target = place(*target),
                Op::BrxIdx { targets, .. } => targets.iter_mut().for_each(|t| *t = place(*t)),
                _ => {}
            }
        }
        Ok(())
    }
}
