//! What names mean, scope by scope.

use std::collections::HashMap;

use crate::program::{Reg, Space, SymbolKind, Type};
use crate::ptx::{Position, Refusal};

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Entity {
    /// A register; a vector has `count` in a row.
    Register { ty: Type, reg: Reg, count: u8 },
    /// Something with an address.
    Variable(Variable),
    /// A function, by index.
    Function(u32),
    /// A label, by index into the function's labels.
    Label(u32),
    /// `.branchtargets`: labels.
    Targets(Vec<u32>),
    /// `.callprototype` or `.calltargets`: index into the function's prototypes.
    Prototype(usize),
}

/// Something with an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variable {
    pub what: SymbolKind,
    pub space: Space,
    pub size: u64,
    /// Bytes of an element, for `name[index]`.
    pub element: u64,
}

/// A range `%r<10>` whose registers exist once they are named.
#[derive(Debug)]
struct Range<'a> {
    prefix: &'a str,
    count: u64,
    ty: Type,
    vector: u8,
}

/// The names of one scope.
#[derive(Debug, Default)]
pub(super) struct Scope<'a> {
    names: HashMap<&'a str, Entity>,
    ranges: Vec<Range<'a>>,
}

/// A register of a range that is named for the first time: its scope, type and vector length.
pub(super) struct Unborn {
    pub scope: usize,
    pub ty: Type,
    pub vector: u8,
}

/// What a search found.
pub(super) enum Found {
    Entity(Entity),
    Unborn(Unborn),
    Nothing,
}

impl<'a> Scope<'a> {
    pub fn declare(&mut self, name: &'a str, entity: Entity, at: Position) -> Result<(), Refusal> {
        if self.names.insert(name, entity).is_some() {
            return Err(Refusal::new(at, format!("'{name}' is declared twice in this scope")));
        }
        Ok(())
    }

    pub fn declare_range(&mut self, prefix: &'a str, count: u64, ty: Type, vector: u8) {
        self.ranges.push(Range { prefix, count, ty, vector });
    }

    pub fn born(&mut self, name: &'a str, entity: Entity) {
        self.names.insert(name, entity);
    }

    pub fn get(&self, name: &str) -> Option<&Entity> {
        self.names.get(name)
    }

    fn range_of(&self, name: &str) -> Option<&Range<'a>> {
        self.ranges.iter().find(|range| {
            let Some(digits) = name.strip_prefix(range.prefix) else { return false };
            let plain = digits == "0" || !digits.starts_with('0');
            plain && digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse().is_ok_and(|n: u64| n < range.count)
        })
    }
}

/// The innermost meaning of a name.
pub(super) fn find(scopes: &[Scope<'_>], name: &str) -> Found {
    for (i, scope) in scopes.iter().enumerate().rev() {
        if let Some(entity) = scope.get(name) {
            return Found::Entity(entity.clone());
        }
        if let Some(range) = scope.range_of(name) {
            return Found::Unborn(Unborn { scope: i, ty: range.ty, vector: range.vector });
        }
    }
    Found::Nothing
}
