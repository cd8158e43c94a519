//! The operands of instructions.

use super::expression::integer;
use super::{Kind, Parsed, Parser, Refusal};
use crate::ptx::tree::{Address, Operand, OperandKind};

impl<'a> Parser<'_, 'a> {
    /// One operand. In a `call`, parentheses hold lists of arguments; elsewhere, constants.
    pub(super) fn operand(&mut self, call: bool) -> Parsed<Operand<'a>> {
        let first = self.nested(|p| p.single(call))?;
        if !self.take("|") {
            return Ok(first);
        }
        let at = first.at;
        let second = self.nested(|p| p.single(call))?;
        Ok(Operand { at, kind: OperandKind::Pair(Box::new(first), Box::new(second)) })
    }

    fn single(&mut self, call: bool) -> Parsed<Operand<'a>> {
        let at = self.at();
        let kind = match self.kind() {
            Kind::Name("_") => {
                self.next += 1;
                OperandKind::Sink
            }
            Kind::Name(name) if name != "WARP_SZ" => self.named()?,
            Kind::Mark("!") if matches!(self.ahead(1).kind, Kind::Name(_)) => {
                self.next += 1;
                OperandKind::Not(self.name("a predicate")?)
            }
            Kind::Mark("{") => {
                self.next += 1;
                OperandKind::Vector(self.operands("}", call)?)
            }
            Kind::Mark("(") if call => {
                self.next += 1;
                OperandKind::List(self.operands(")", call)?)
            }
            Kind::Mark("[") => {
                self.next += 1;
                OperandKind::Address(self.address_operand()?)
            }
            _ => OperandKind::Constant(self.operand_constant()?),
        };
        Ok(Operand { at, kind })
    }

    fn operands(&mut self, end: &'static str, call: bool) -> Parsed<Vec<Operand<'a>>> {
        if self.take(end) {
            return Ok(Vec::new());
        }
        let operands = self.list(|p| p.operand(call))?;
        self.expect(end)?;
        Ok(operands)
    }

    fn named(&mut self) -> Parsed<OperandKind<'a>> {
        let name = self.name("a name")?;
        let member = match self.kind() {
            Kind::Dot(member) => {
                self.next += 1;
                Some(member)
            }
            _ => None,
        };
        let index = self.index()?;
        let offset = self.offset()?;
        Ok(OperandKind::Name { name, member, offset, index })
    }

    fn index(&mut self) -> Parsed<Option<u64>> {
        if !self.take("[") {
            return Ok(None);
        }
        let index = self.size()?;
        self.expect("]")?;
        Ok(Some(index))
    }

    /// What follows `[`.
    fn address_operand(&mut self) -> Parsed<Address<'a>> {
        let mut address = Address { base: None, offset: 0, rest: Vec::new() };
        match self.kind() {
            Kind::Name(name) if name != "WARP_SZ" => {
                self.next += 1;
                address.base = Some(name);
                if let Kind::Dot(_) = self.kind() {
                    return Err(Refusal::new(self.at(), "an element of a vector cannot be an address"));
                }
                address.offset = self.offset()?;
            }
            _ => {
                let at = self.at();
                let value = self.constant()?;
                address.offset = integer(value, at)?;
            }
        }
        if self.take(",") {
            address.rest = self.list(|p| p.operand(false))?;
        }
        self.expect("]")?;
        Ok(address)
    }
}
