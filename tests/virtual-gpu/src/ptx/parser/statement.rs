//! The statements of a body.

use super::{Kind, Parsed, Parser};
use crate::ptx::tree::{Guard, Instruction, Linkage, Position, Space, Statement};

impl<'a> Parser<'_, 'a> {
    /// The statements after `{`, up to and with `}`.
    pub(super) fn block(&mut self) -> Parsed<Vec<Statement<'a>>> {
        self.nested(|p| {
            let mut statements = Vec::new();
            while !p.take("}") {
                p.statement(&mut statements)?;
            }
            Ok(statements)
        })
    }

    fn statement(&mut self, statements: &mut Vec<Statement<'a>>) -> Parsed<()> {
        match self.kind() {
            Kind::Mark("{") => {
                self.next += 1;
                statements.push(Statement::Block(self.block()?));
            }
            Kind::Mark(";") => self.next += 1,
            Kind::Dot("loc") => statements.push(self.location()?),
            Kind::Dot("pragma") => self.pragma()?,
            Kind::Dot("file" | "section") => return Err(self.unexpected("a statement")),
            Kind::Dot(_) => {
                let space =
                    self.space(&[Space::Reg, Space::Local, Space::Param, Space::Shared, Space::Const, Space::Global])?;
                self.variables(Linkage::Internal, space, |v| statements.push(Statement::Variable(v)))?;
            }
            Kind::Name(name) if self.ahead(1).kind == Kind::Mark(":") => {
                let at = self.at();
                self.next += 2;
                self.labelled(name, at, statements)?;
            }
            Kind::Name(_) | Kind::Mark("@") => statements.push(Statement::Instruction(self.instruction()?)),
            _ => return Err(self.unexpected("a statement")),
        }
        Ok(())
    }

    fn labelled(&mut self, name: &'a str, at: Position, statements: &mut Vec<Statement<'a>>) -> Parsed<()> {
        match self.kind() {
            Kind::Dot("callprototype") => statements.push(Statement::Prototype(self.prototype(name, at)?)),
            Kind::Dot(kind @ ("branchtargets" | "calltargets")) => {
                self.next += 1;
                let targets = self.list(|p| {
                    let at = p.at();
                    Ok((p.name("a target")?, at))
                })?;
                self.expect(";")?;
                statements.push(if kind == "branchtargets" {
                    Statement::BranchTargets(name, targets, at)
                } else {
                    Statement::CallTargets(name, targets, at)
                });
            }
            _ => statements.push(Statement::Label(name, at)),
        }
        Ok(())
    }

    /// `.loc file line column`, and where the code was inlined from.
    pub(super) fn location(&mut self) -> Parsed<Statement<'a>> {
        self.next += 1;
        let file = self.count32("the index of a file")?;
        let line = self.count32("a line")?;
        let column = self.count32("a column")?;
        while self.take(",") {
            match self.name("'function_name' or 'inlined_at'")? {
                "function_name" => {
                    self.name("a name")?;
                    self.offset()?;
                }
                _ => {
                    for what in ["the index of a file", "a line", "a column"] {
                        self.count(what)?;
                    }
                }
            }
        }
        Ok(Statement::Location { file, line, column })
    }

    fn instruction(&mut self) -> Parsed<Instruction<'a>> {
        let guard = self.guard()?;
        let at = self.at();
        let opcode = self.name("an instruction")?;
        let mut modifiers = Vec::new();
        while let Kind::Dot(name) = self.kind() {
            modifiers.push(name);
            self.next += 1;
        }
        let operands = if self.is(";") { Vec::new() } else { self.list(|p| p.operand(opcode == "call"))? };
        if !self.is(";") {
            return Err(self.unexpected("',' or ';' after an operand"));
        }
        self.next += 1;
        Ok(Instruction { at, guard, opcode, modifiers, operands })
    }

    fn guard(&mut self) -> Parsed<Option<Guard<'a>>> {
        if !self.take("@") {
            return Ok(None);
        }
        let negated = self.take("!");
        let at = self.at();
        Ok(Some(Guard { name: self.name("a predicate")?, negated, at }))
    }
}
