//! Sizes of variables, and their initial bytes.

use super::names::{Entity, Scope};
use super::{Lowered, types};
use crate::program::{Module, Relocation, Symbol, SymbolKind, Type};
use crate::ptx::{Constant, Init, Linkage, Position, Refusal, Space, Variable};

/// More than any device has.
const LARGEST: u64 = 1 << 40;

/// The size of a variable.
pub(super) struct Layout {
    /// Type of one scalar.
    pub ty: Type,
    /// Bytes of one element (of a vector: all its scalars).
    pub element: u64,
    /// Bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
}

/// What a variable takes in memory. An unsized first dimension takes its size from the initial value, or is 0 where
/// `open`.
pub(super) fn layout(variable: &Variable<'_>, open: bool) -> Lowered<Layout> {
    let refuse = |what: String| Refusal::new(variable.at, what);
    let ty = types::scalar(variable.ty).ok_or_else(|| match variable.ty {
        "texref" | "samplerref" | "surfref" => refuse(format!("'.{}': textures are not supported", variable.ty)),
        ty => refuse(format!("'.{}' is not a type", ty.chars().take(64).collect::<String>())),
    })?;
    let storable = types::is_bits(ty) && ty.bits() >= 8 || (ty.bits() >= 8 && !matches!(ty, Type::TF32));
    if variable.space != Space::Reg && !storable {
        return Err(refuse(format!("'.{}' is a type of registers, not of memory", variable.ty)));
    }
    if variable.range.is_some() && variable.space != Space::Reg {
        return Err(refuse(format!("'{}<…>' names registers; memory takes '[…]'", variable.name)));
    }
    let element = u64::from(ty.bytes()) * u64::from(variable.vector);
    let mut size = element;
    for (i, dimension) in variable.dimensions.iter().enumerate() {
        let count = match (dimension, &variable.init) {
            (Some(count), _) => *count,
            (None, Some(Init::List(items))) if i == 0 => items.len() as u64,
            (None, _) if i == 0 && open && variable.linkage == Linkage::Extern => 0,
            (None, _) if i == 0 && variable.space == Space::Param => 0,
            _ => return Err(refuse(format!("'{}' needs a size", variable.name))),
        };
        size = size
            .checked_mul(count)
            .filter(|s| *s <= LARGEST)
            .ok_or_else(|| refuse(format!("'{}' is larger than any memory", variable.name)))?;
    }
    let align = variable.align.unwrap_or(element);
    if align < u64::from(ty.bytes()) && variable.space != Space::Reg {
        return Err(refuse(format!("'{}' is aligned to {align} bytes, less than its type's size", variable.name)));
    }
    Ok(Layout { ty, element, size, align })
}

/// Where initial values go.
struct Image<'m, 's, 'a> {
    scopes: &'m [&'s Scope<'a>],
    ty: Type,
    vector: usize,
    bytes: Vec<u8>,
    relocations: Vec<Relocation>,
    limit: u64,
}

/// Writes a variable's initial value into the module's record of it.
pub(super) fn initialise(
    module: &mut Module,
    scopes: &[&Scope<'_>],
    variable: &Variable<'_>,
    name: &str,
) -> Lowered<()> {
    let Some(init) = &variable.init else { return Ok(()) };
    if !matches!(variable.space, Space::Global | Space::Const) {
        return Err(Refusal::new(variable.at, format!("{:?} variables have no initial value", variable.space)));
    }
    let Some(index) = module.globals.iter().rposition(|g| g.name == name) else { return Ok(()) };
    let layout = layout(variable, true)?;
    let mut image = Image {
        scopes,
        ty: layout.ty,
        vector: usize::from(variable.vector),
        bytes: Vec::new(),
        relocations: Vec::new(),
        limit: layout.size,
    };
    let dimensions: Vec<u64> = variable.dimensions.iter().map(|d| d.unwrap_or(layout.size / layout.element)).collect();
    image.fill(init, &dimensions, 0, variable.at)?;
    let global = &mut module.globals[index];
    global.init = image.bytes;
    global.relocations = image.relocations;
    Ok(())
}

impl Image<'_, '_, '_> {
    /// `init` at byte `at` of an array of `dimensions` (the last of them possibly a vector).
    fn fill(&mut self, init: &Init<'_>, dimensions: &[u64], at: u64, position: Position) -> Lowered<()> {
        let scalar = u64::from(self.ty.bytes());
        match (init, dimensions) {
            (Init::List(items), [count, inner @ ..]) => {
                if items.len() as u64 > *count {
                    return Err(Refusal::new(position, format!("{} initial values for {count} elements", items.len())));
                }
                let stride = inner.iter().product::<u64>() * scalar * self.vector as u64;
                for (i, item) in items.iter().enumerate() {
                    self.fill(item, inner, at + i as u64 * stride, position)?;
                }
                Ok(())
            }
            (Init::List(items), []) if items.len() <= self.vector => {
                for (i, item) in items.iter().enumerate() {
                    self.fill(item, &[], at + i as u64 * scalar, position)?;
                }
                Ok(())
            }
            (Init::List(_), []) => Err(Refusal::new(position, "too many initial values")),
            (Init::Constant(constant), []) => {
                let bits = immediate(*constant, self.ty, position)?;
                self.put(at, &bits.to_le_bytes()[..scalar as usize], position)
            }
            (Init::Address { .. }, []) => self.address(init, at, position),
            (_, [_, ..]) => Err(Refusal::new(position, "an array's initial value stands in braces")),
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8], position: Position) -> Lowered<()> {
        let end = at + bytes.len() as u64;
        if end > self.limit {
            return Err(Refusal::new(position, "the initial value is larger than the variable"));
        }
        if self.bytes.len() < end as usize {
            self.bytes.resize(end as usize, 0);
        }
        self.bytes[at as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }

    fn address(&mut self, init: &Init<'_>, at: u64, position: Position) -> Lowered<()> {
        let Init::Address { name, offset, generic, mask, at: place } = init else { return Ok(()) };
        let what = match self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            Some(Entity::Variable(variable)) => variable.what,
            Some(Entity::Function(index)) => SymbolKind::Function(*index),
            _ => return Err(Refusal::new(*place, format!("'{name}' is not a variable or function"))),
        };
        if !matches!(what, SymbolKind::Global(_) | SymbolKind::Function(_)) {
            return Err(Refusal::new(*place, format!("'{name}' has no address before a kernel runs")));
        }
        let size = self.ty.bytes() as u8;
        let shift = match mask {
            None if size >= 4 => 0,
            None => return Err(Refusal::new(*place, "an address takes 32 or 64 bits; a byte of it needs a mask")),
            Some(mask) => {
                let shift = mask.trailing_zeros() & !7;
                if size != 1 || shift > 56 || *mask != 0xff << shift {
                    return Err(Refusal::new(*place, "a mask selects one byte of an address for a variable of bytes"));
                }
                shift as u8
            }
        };
        self.put(at, &[0; 8][..usize::from(size)], position)?;
        let symbol = Symbol { what, offset: *offset, generic: *generic };
        self.relocations.push(Relocation { at, size, shift, symbol });
        Ok(())
    }
}

/// The bits of a constant where `ty` is wanted.
pub(super) fn immediate(constant: Constant, ty: Type, at: Position) -> Lowered<u64> {
    let mask = if ty.bits() == 64 { u64::MAX } else { (1 << ty.bits()) - 1 };
    let single = |value: f64| u64::from((value as f32).to_bits());
    match (constant, ty) {
        (Constant::Signed(value), _) if !ty.float() => Ok(value as u64 & mask),
        (Constant::Unsigned(value), _) if !ty.float() => Ok(value & mask),
        (Constant::Single(bits), Type::F32 | Type::B32) => Ok(u64::from(bits)),
        (Constant::Single(bits), Type::F64 | Type::B64) => Ok(f64::from(f32::from_bits(bits)).to_bits()),
        (Constant::Double(value), Type::F32 | Type::B32) => Ok(single(value)),
        (Constant::Double(value), Type::F64 | Type::B64) => Ok(value.to_bits()),
        _ => {
            let kind = match constant {
                Constant::Signed(_) | Constant::Unsigned(_) => "an integer",
                _ => "a floating-point",
            };
            Err(Refusal::new(at, format!("{kind} constant where {} is wanted", types::name(ty))))
        }
    }
}
