//! The syntax tree. Names borrow from the text.

/// A place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in bytes, from 1.
    pub column: u32,
}

/// A whole PTX text.
#[derive(Debug, Clone, Default)]
pub struct Module<'a> {
    /// `.version major.minor`.
    pub version: (u32, u32),
    /// `.target`: the architecture and options such as `debug`.
    pub targets: Vec<&'a str>,
    /// `.address_size`, 64 where none stands.
    pub address_size: u32,
    /// `.file` entries: index and path.
    pub files: Vec<(u32, &'a str)>,
    /// Declarations in the order of the text.
    pub items: Vec<Item<'a>>,
}

/// A declaration of a module.
#[derive(Debug, Clone)]
pub enum Item<'a> {
    /// A variable of module scope.
    Variable(Variable<'a>),
    /// An `.entry` or `.func`.
    Function(Function<'a>),
    /// `.alias name, target`.
    Alias {
        /// The new name.
        name: &'a str,
        /// The function that it stands for.
        target: &'a str,
        /// Where.
        at: Position,
    },
    /// A `.callprototype` of module scope.
    Prototype(Prototype<'a>),
}

/// How a name is seen from other modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Linkage {
    /// Within this module.
    #[default]
    Internal,
    /// `.visible`.
    Visible,
    /// `.extern`.
    Extern,
    /// `.weak`.
    Weak,
    /// `.common`.
    Common,
}

/// Where a variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// `.reg`.
    Reg,
    /// `.const`.
    Const,
    /// `.global`.
    Global,
    /// `.local`.
    Local,
    /// `.param`.
    Param,
    /// `.shared`.
    Shared,
}

/// A declared variable, parameter or register (range).
#[derive(Debug, Clone)]
pub struct Variable<'a> {
    /// How other modules see it.
    pub linkage: Linkage,
    /// Its state space.
    pub space: Space,
    /// `.align`.
    pub align: Option<u64>,
    /// Elements of a `.v2` or `.v4`, else 1.
    pub vector: u8,
    /// The element's type without its dot.
    pub ty: &'a str,
    /// Its name, `_` in a prototype.
    pub name: &'a str,
    /// `n` of a range `name<n>`.
    pub range: Option<u64>,
    /// Array dimensions; `None` for `[]`.
    pub dimensions: Vec<Option<u64>>,
    /// The initial value.
    pub init: Option<Init<'a>>,
    /// Where the name stands.
    pub at: Position,
}

/// An initial value.
#[derive(Debug, Clone)]
pub enum Init<'a> {
    /// `{ … }`.
    List(Vec<Init<'a>>),
    /// A number.
    Constant(Constant),
    /// The address of a variable or function.
    Address {
        /// Its name.
        name: &'a str,
        /// Bytes added.
        offset: i64,
        /// `generic(name)`: the generic address, not that within the space.
        generic: bool,
        /// `0xFF00(name)`: the byte that this mask selects.
        mask: Option<u64>,
        /// Where the name stands.
        at: Position,
    },
}

/// A number of the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Constant {
    /// A signed 64-bit integer, `.s64`.
    Signed(i64),
    /// An unsigned 64-bit integer, `.u64`.
    Unsigned(u64),
    /// `0f…`: the bits of a single.
    Single(u32),
    /// A decimal or `0d…`: a double.
    Double(f64),
}

/// An `.entry` or `.func`.
#[derive(Debug, Clone)]
pub struct Function<'a> {
    /// How other modules see it.
    pub linkage: Linkage,
    /// An `.entry`: a kernel.
    pub entry: bool,
    /// Its name.
    pub name: &'a str,
    /// What a `.func` returns.
    pub returns: Vec<Variable<'a>>,
    /// Its parameters.
    pub params: Vec<Variable<'a>>,
    /// `.maxntid` and its kin: name without the dot, values.
    pub directives: Vec<Directive<'a>>,
    /// The statements; a declaration has none.
    pub body: Option<Vec<Statement<'a>>>,
    /// Where the name stands.
    pub at: Position,
}

/// A performance-tuning directive.
#[derive(Debug, Clone)]
pub struct Directive<'a> {
    /// Name without its dot.
    pub name: &'a str,
    /// Its numbers.
    pub values: Vec<u64>,
    /// Where.
    pub at: Position,
}

/// The signature of an indirect call.
#[derive(Debug, Clone)]
pub struct Prototype<'a> {
    /// The label that calls name it by.
    pub name: &'a str,
    /// What the callee returns.
    pub returns: Vec<Variable<'a>>,
    /// What it takes.
    pub params: Vec<Variable<'a>>,
    /// Where.
    pub at: Position,
}

/// A statement of a body.
#[derive(Debug, Clone)]
pub enum Statement<'a> {
    /// `{ … }`: a scope.
    Block(Vec<Statement<'a>>),
    /// `name:`.
    Label(&'a str, Position),
    /// Declarations.
    Variable(Variable<'a>),
    /// An instruction.
    Instruction(Instruction<'a>),
    /// `.loc`: file index, line and column of what follows.
    Location {
        /// Index into the module's files.
        file: u32,
        /// Line of the source.
        line: u32,
        /// Column of the source.
        column: u32,
    },
    /// `name: .branchtargets …` (of `brx.idx`).
    BranchTargets(&'a str, Vec<(&'a str, Position)>, Position),
    /// `name: .calltargets …`.
    CallTargets(&'a str, Vec<(&'a str, Position)>, Position),
    /// `name: .callprototype …`.
    Prototype(Prototype<'a>),
}

/// `@guard opcode.modifiers operands;`
#[derive(Debug, Clone)]
pub struct Instruction<'a> {
    /// Where the opcode stands.
    pub at: Position,
    /// The predicate, and whether it is negated.
    pub guard: Option<Guard<'a>>,
    /// Name up to the first dot.
    pub opcode: &'a str,
    /// Names after the dots.
    pub modifiers: Vec<&'a str>,
    /// Operands in order.
    pub operands: Vec<Operand<'a>>,
}

/// `@p` or `@!p`.
#[derive(Debug, Clone, Copy)]
pub struct Guard<'a> {
    /// The predicate register.
    pub name: &'a str,
    /// `!`.
    pub negated: bool,
    /// Where.
    pub at: Position,
}

/// An operand with its position.
#[derive(Debug, Clone)]
pub struct Operand<'a> {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub kind: OperandKind<'a>,
}

/// The kinds of operand.
#[derive(Debug, Clone)]
pub enum OperandKind<'a> {
    /// A register, variable, function or label; `.x` of a vector or special register; bytes added (`sym+4`, `sym[1]`).
    Name {
        /// The name.
        name: &'a str,
        /// `.x` and its kin.
        member: Option<&'a str>,
        /// A constant added.
        offset: i64,
        /// `name[index]`: an element, counted in elements.
        index: Option<u64>,
    },
    /// `!p`.
    Not(&'a str),
    /// A number.
    Constant(Constant),
    /// `[…]`.
    Address(Address<'a>),
    /// `{ … }`.
    Vector(Vec<Operand<'a>>),
    /// `p|q`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `( … )` of a call.
    List(Vec<Operand<'a>>),
    /// `_`.
    Sink,
}

/// `[base + offset]`.
#[derive(Debug, Clone)]
pub struct Address<'a> {
    /// A register or variable; none for an immediate address.
    pub base: Option<&'a str>,
    /// Bytes added, or the address itself.
    pub offset: i64,
    /// Coordinates of a texture, after a comma.
    pub rest: Vec<Operand<'a>>,
}
