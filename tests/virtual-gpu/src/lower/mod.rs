//! Syntax tree → program: names resolved, types checked by the rules of the PTX ISA.
//!
//! What the ISA forbids is refused here, once, with its line; the interpreter then runs without looking at a name or a
//! type again. Modifiers that only advise (cache operators, eviction priorities, `.uni`) are accepted and dropped.

mod data;
mod function;
mod instruction;
mod modifiers;
mod names;
mod operand;
#[cfg(test)]
mod tests;
mod types;

use std::collections::HashMap;
use std::sync::Arc;

use crate::program::{self, Builtin, Directives, Function, Module};
use crate::ptx::{self, Item, Linkage, Refusal, Space, Variable};
use names::{Entity, Scope};

type Lowered<T> = Result<T, Refusal>;

/// The program of a PTX text.
///
/// # Errors
/// Text that is not PTX, and PTX that its rules forbid or that the virtual GPU does not know: line, column, reason.
pub fn load(text: &str) -> Result<Module, ptx::Error> {
    let tree = ptx::parse(text)?;
    module(&tree, text).map_err(|refusal| refusal.quote(text))
}

/// A function as its callers see it.
#[derive(Debug)]
struct Signature {
    returns: Vec<Formal>,
    params: Vec<Formal>,
    builtin: Option<Builtin>,
    entry: bool,
}

/// A formal parameter as callers see it.
#[derive(Debug, Clone, PartialEq)]
struct Formal {
    /// The type of a register or of a scalar parameter.
    ty: program::Type,
    /// In a register rather than in parameter space.
    register: bool,
    size: u64,
    align: u64,
}

fn module(tree: &ptx::Module<'_>, text: &str) -> Lowered<Module> {
    let mut module = Module {
        version: tree.version,
        target: target(tree)?,
        files: files(tree)?,
        source: Arc::from(text),
        ..Module::default()
    };
    let mut names = Scope::default();
    let mut signatures = Vec::new();
    let mut bodies: HashMap<usize, &ptx::Function<'_>> = HashMap::new();
    for item in &tree.items {
        match item {
            Item::Variable(variable) => declare(&mut module, &mut names, variable, None)?,
            Item::Function(function) => {
                let index = declare_function(&mut module, &mut names, &mut signatures, function)?;
                if function.body.is_some() && bodies.insert(index, function).is_some() {
                    return Err(Refusal::new(function.at, format!("'{}' is defined twice", function.name)));
                }
            }
            Item::Alias { name, target, at } => match names.get(target) {
                Some(entity @ Entity::Function(_)) => {
                    let entity = entity.clone();
                    names.born(name, entity);
                }
                _ => return Err(Refusal::new(*at, format!("'{target}' is not a function"))),
            },
            Item::Prototype(_) => {}
        }
    }
    for item in &tree.items {
        if let Item::Variable(variable) = item {
            data::initialise(&mut module, &[&names], variable, variable.name)?;
        }
    }
    for index in 0..module.functions.len() {
        if let Some(function) = bodies.get(&index) {
            module.functions[index] = function::lower(&mut module, &names, &signatures, function)?;
        }
    }
    Ok(module)
}

/// 80 of `sm_80`.
fn target(tree: &ptx::Module<'_>) -> Lowered<u32> {
    let architecture = tree.targets.iter().find_map(|t| t.strip_prefix("sm_").or(t.strip_prefix("compute_")));
    let digits = architecture.map(|a| a.trim_end_matches(|c: char| c.is_ascii_alphabetic()));
    digits.and_then(|d| d.parse().ok()).ok_or_else(|| {
        let what = format!("no architecture such as sm_80 among the targets '{}'", tree.targets.join(", "));
        Refusal::new(ptx::Position { line: 1, column: 1 }, what)
    })
}

/// Paths by index; PTX may leave gaps.
fn files(tree: &ptx::Module<'_>) -> Lowered<Vec<String>> {
    let mut files = Vec::new();
    for (index, path) in &tree.files {
        let index = *index as usize;
        if index > 1 << 16 {
            return Err(Refusal::new(ptx::Position { line: 1, column: 1 }, "file indices go to 65536"));
        }
        if files.len() <= index {
            files.resize(index + 1, String::new());
        }
        files[index] = (*path).to_owned();
    }
    Ok(files)
}

/// A variable of module scope, or a static one of a function.
fn declare<'a>(
    module: &mut Module,
    names: &mut Scope<'a>,
    variable: &Variable<'a>,
    function: Option<&str>,
) -> Lowered<()> {
    let name = function.map_or_else(|| variable.name.to_owned(), |f| format!("{f}::{}", variable.name));
    if function.is_none() && variable.linkage == Linkage::Extern && names.get(variable.name).is_some() {
        return Ok(());
    }
    let layout = data::layout(variable, true)?;
    let (what, space) = match variable.space {
        Space::Global | Space::Const => {
            let space = if variable.space == Space::Global { program::Space::Global } else { program::Space::Const };
            if space == program::Space::Const && layout.size > 1 << 16 {
                return Err(Refusal::new(variable.at, format!("'{}' is larger than constant memory", variable.name)));
            }
            let index = module.globals.len() as u32;
            module.globals.push(program::Global {
                name,
                size: layout.size,
                align: layout.align,
                space,
                external: variable.linkage == Linkage::Extern,
                init: Vec::new(),
                relocations: Vec::new(),
            });
            (program::SymbolKind::Global(index), space)
        }
        Space::Shared => {
            let dynamic = variable.linkage == Linkage::Extern;
            let size = u32::try_from(layout.size).map_err(|_| {
                Refusal::new(variable.at, format!("'{}' is too large for shared memory", variable.name))
            })?;
            let index = module.shared.len() as u32;
            let size = if dynamic { 0 } else { size };
            module.shared.push(program::Shared { name, size, align: layout.align as u32, dynamic });
            (program::SymbolKind::Shared(index), program::Space::Shared)
        }
        space => return Err(Refusal::new(variable.at, format!("{space:?} variables belong into functions"))),
    };
    let entity = names::Variable { what, space, size: layout.size, element: layout.element };
    names.declare(variable.name, Entity::Variable(entity), variable.at)
}

/// A function's name and signature; a definition fills the place of its declaration.
fn declare_function<'a>(
    module: &mut Module,
    names: &mut Scope<'a>,
    signatures: &mut Vec<Signature>,
    function: &ptx::Function<'a>,
) -> Lowered<usize> {
    let external = function.body.is_none();
    let signature = Signature {
        returns: formals(&function.returns)?,
        params: formals(&function.params)?,
        builtin: if external { builtin(function.name) } else { None },
        entry: function.entry,
    };
    if let Some(Entity::Function(index)) = names.get(function.name) {
        let index = *index as usize;
        let known = &signatures[index];
        if (&known.returns, &known.params) != (&signature.returns, &signature.params) {
            return Err(Refusal::new(function.at, format!("'{}' was declared with another signature", function.name)));
        }
        if !external {
            signatures[index] = signature;
        }
        return Ok(index);
    }
    let index = module.functions.len();
    names.declare(function.name, Entity::Function(index as u32), function.at)?;
    signatures.push(signature);
    module.functions.push(Function {
        name: function.name.to_owned(),
        entry: function.entry,
        external,
        line: function.at.line,
        directives: directives(function)?,
        ..Function::default()
    });
    Ok(index)
}

fn formals(variables: &[Variable<'_>]) -> Lowered<Vec<Formal>> {
    variables
        .iter()
        .map(|variable| {
            let register = variable.space == Space::Reg;
            let layout = data::layout(variable, false)?;
            Ok(Formal { ty: layout.ty, register, size: layout.size, align: layout.align })
        })
        .collect()
}

fn builtin(name: &str) -> Option<Builtin> {
    match name {
        "vprintf" => Some(Builtin::Vprintf),
        "__assertfail" => Some(Builtin::AssertFail),
        "malloc" => Some(Builtin::Malloc),
        "free" => Some(Builtin::Free),
        _ => None,
    }
}

fn directives(function: &ptx::Function<'_>) -> Lowered<Directives> {
    let mut directives = Directives::default();
    for directive in &function.directives {
        let mut values = [1; 3];
        if directive.values.len() > 3 {
            return Err(Refusal::new(directive.at, format!("'.{}' takes at most three numbers", directive.name)));
        }
        for (slot, value) in values.iter_mut().zip(&directive.values) {
            *slot = u32::try_from(*value)
                .map_err(|_| Refusal::new(directive.at, format!("{value} is too large for '.{}'", directive.name)))?;
        }
        match directive.name {
            "maxntid" => directives.max_threads = Some(values),
            "reqntid" => directives.required_threads = Some(values),
            "minnctapersm" => directives.min_blocks = Some(values[0]),
            "maxnreg" => directives.max_registers = Some(values[0]),
            "maxnctapersm" | "noreturn" => {}
            name => return Err(Refusal::new(directive.at, format!("'.{name}' is not supported"))),
        }
    }
    Ok(directives)
}
