//! A module after lowering: functions of decoded instructions, variables, and how names tie them together.
//!
//! The lowerer resolves every register, label and type; what only the loader knows (addresses of globals, the layout
//! of a kernel's shared memory, where the frames of called functions lie) stays a [`Symbol`] and becomes an immediate
//! when a kernel is linked.

mod forms;
mod instruction;
mod kinds;
mod types;
mod visit;

use std::sync::Arc;

pub use forms::*;
pub use instruction::*;
pub use kinds::*;
pub use types::*;
pub use visit::Operand;

/// Parameter-space addresses from here on are parameters of calls (per thread); below, those of the kernel.
pub const CALL_PARAMS: u64 = 0x1_0000;

/// What an address operand names. Symbols are listed per function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The thing.
    pub what: SymbolKind,
    /// Bytes added.
    pub offset: i64,
    /// `generic(name)`: the address is converted to generic (initialisers; never in instructions).
    pub generic: bool,
}

/// Things with addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// A `.global` or `.const` variable: index into [`Module::globals`].
    Global(u32),
    /// A `.shared` variable: index into [`Module::shared`].
    Shared(u32),
    /// Bytes into this function's local frame.
    Local(u32),
    /// Bytes into this function's frame of call parameters (its own formals, and arguments of its calls).
    Frame(u32),
    /// Bytes into the kernel's parameters.
    KernelParam(u32),
    /// A function: index into [`Module::functions`].
    Function(u32),
}

/// A `.global` or `.const` variable.
#[derive(Clone, Debug, PartialEq)]
pub struct Global {
    /// Name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// [`Space::Global`] or [`Space::Const`].
    pub space: Space,
    /// Defined elsewhere (`.extern`): linking fails unless someone gives an address.
    pub external: bool,
    /// First bytes; the rest is zero (PTX zero-initialises both spaces).
    pub init: Vec<u8>,
    /// Addresses within the initialiser.
    pub relocations: Vec<Relocation>,
}

/// An address in an initialiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relocation {
    /// Where in the variable.
    pub at: u64,
    /// Bytes written there (8, or 1 for `mask(address)`).
    pub size: u8,
    /// Right shift of the address before the low `size` bytes are written (`mask()`).
    pub shift: u8,
    /// Which address.
    pub symbol: Symbol,
}

/// A `.shared` variable.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Name.
    pub name: String,
    /// Bytes; 0 for the dynamic array (`.extern .shared`).
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// `.extern`: begins where static shared memory ends.
    pub dynamic: bool,
}

/// A formal parameter or a return value.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name.
    pub name: String,
    /// Where: for entries `Arg::Param` within the kernel's parameters; for functions a register or a place in the frame.
    pub place: Arg,
    /// Alignment in bytes.
    pub align: u32,
}

/// Names of the registers, by file: for messages, and their number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers {
    /// 32-bit file.
    pub r32: Vec<Box<str>>,
    /// 64-bit file.
    pub r64: Vec<Box<str>>,
    /// Predicates.
    pub pred: Vec<Box<str>>,
}

/// Performance directives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Directives {
    /// `.maxntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// `.maxnreg`.
    pub max_registers: Option<u32>,
}

/// A function: `.entry` or `.func`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// Name.
    pub name: String,
    /// Whether it is a kernel.
    pub entry: bool,
    /// A declaration without body; calling it is a fault.
    pub external: bool,
    /// Line of its definition.
    pub line: u32,
    /// Formal parameters.
    pub params: Vec<Param>,
    /// Return values (`.func` only).
    pub returns: Vec<Param>,
    /// Bytes of the kernel's parameters (entries).
    pub param_bytes: u32,
    /// Instructions; running past the end is `ret`.
    pub code: Vec<Instruction>,
    /// Symbols that operands refer to.
    pub symbols: Vec<Symbol>,
    /// Registers.
    pub registers: Registers,
    /// Bytes of local variables.
    pub local_bytes: u32,
    /// Alignment of the local frame.
    pub local_align: u32,
    /// Bytes of `.param` variables in the body and of a `.func`'s formals.
    pub frame_bytes: u32,
    /// Performance directives.
    pub directives: Directives,
}

/// A module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// PTX version, major and minor.
    pub version: (u32, u32),
    /// Target architecture: 80 for sm_80.
    pub target: u32,
    /// Functions, entries included.
    pub functions: Vec<Function>,
    /// Variables in global and constant memory.
    pub globals: Vec<Global>,
    /// Variables in shared memory, of all functions.
    pub shared: Vec<Shared>,
    /// Source files, by `.file`; [`Loc::file`] indexes it.
    pub files: Vec<String>,
    /// The text.
    pub source: Arc<str>,
}

impl Module {
    /// Index of the kernel or function of this name.
    pub fn function(&self, name: &str) -> Option<usize> {
        self.functions.iter().position(|f| f.name == name)
    }

    /// A line of the text, from 1, without its indentation.
    pub fn line(&self, line: u32) -> &str {
        self.source.lines().nth((line as usize).saturating_sub(1)).unwrap_or("").trim()
    }
}
