//! The modifiers of an instruction, taken one by one; what nobody took is an error.

use super::types;
use crate::program::{Round, Type};
use crate::ptx::{Instruction, Position, Refusal};

/// Modifiers not yet taken. Like NVIDIA's assembler, this takes them in any order, types in theirs.
pub(super) struct Modifiers<'a> {
    at: Position,
    opcode: &'a str,
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub fn new(instruction: &Instruction<'a>) -> Modifiers<'a> {
        Modifiers { at: instruction.at, opcode: instruction.opcode, left: instruction.modifiers.clone() }
    }

    /// Takes a modifier if it is there.
    pub fn take(&mut self, name: &str) -> bool {
        match self.left.iter().position(|m| *m == name) {
            Some(i) => {
                self.left.remove(i);
                true
            }
            None => false,
        }
    }

    /// Takes the first of these that is there.
    pub fn choose<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(name, _)| self.take(name)).map(|(_, value)| *value)
    }

    /// One of these must be there.
    pub fn need<T: Copy>(&mut self, choices: &[(&str, T)]) -> Result<T, Refusal> {
        self.choose(choices).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!(".{name}")).collect();
            self.refuse(format!("'{}' needs one of {}", self.opcode, names.join(", ")))
        })
    }

    /// This one must be there.
    pub fn expect(&mut self, name: &str) -> Result<(), Refusal> {
        self.need(&[(name, ())])
    }

    /// Ignores these, which change speed alone.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Takes the next type.
    pub fn maybe_type(&mut self) -> Option<Type> {
        let (i, ty) = self.left.iter().enumerate().find_map(|(i, name)| Some((i, types::scalar(name)?)))?;
        self.left.remove(i);
        Some(ty)
    }

    /// The next type, one of `allowed`.
    pub fn ty(&mut self, allowed: &[Type]) -> Result<Type, Refusal> {
        let ty = self.maybe_type().ok_or_else(|| {
            let names: Vec<String> = allowed.iter().map(|ty| types::name(*ty)).collect();
            self.refuse(format!("'{}' needs a type: one of {}", self.opcode, names.join(", ")))
        })?;
        if allowed.contains(&ty) {
            return Ok(ty);
        }
        let names: Vec<String> = allowed.iter().map(|ty| types::name(*ty)).collect();
        Err(self.refuse(format!(
            "'{}' does not take {} here; it takes {}",
            self.opcode,
            types::name(ty),
            names.join(", ")
        )))
    }

    /// The next type without taking it.
    pub fn peek_type(&self) -> Option<Type> {
        self.left.iter().find_map(|name| types::scalar(name))
    }

    /// `.rn`, `.rz`, `.rm`, `.rp`.
    pub fn round(&mut self) -> Option<Round> {
        self.choose(&[("rn", Round::Near), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)])
    }

    /// A rounding that the ISA requires.
    pub fn need_round(&mut self) -> Result<Round, Refusal> {
        self.round().ok_or_else(|| self.refuse(format!("'{}' needs a rounding: .rn, .rz, .rm or .rp", self.opcode)))
    }

    /// Takes the first modifier for which `parse` has an answer.
    pub fn find<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, value) = self.left.iter().enumerate().find_map(|(i, name)| Some((i, parse(name)?)))?;
        self.left.remove(i);
        Some(value)
    }

    /// All taken?
    pub fn finish(&self) -> Result<(), Refusal> {
        match self.left.first() {
            None => Ok(()),
            Some(name) => Err(self.refuse(format!(
                "'.{}' is unknown, repeated or out of place on '{}'",
                name.chars().take(64).collect::<String>(),
                self.opcode
            ))),
        }
    }

    /// A refusal at the instruction.
    pub fn refuse(&self, what: impl Into<String>) -> Refusal {
        Refusal::new(self.at, what)
    }
}
