//! PTX text → syntax tree.
//!
//! Nothing here knows what an instruction means: an opcode, its modifiers and its operands are names with positions, and
//! [`crate::lower`] checks and resolves them. The text comes from programs under test and may be anything at all, so every
//! nesting is bounded, every count stays a number until it has been checked, and every refusal says line and column.

mod error;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;
mod tree;

pub use error::Error;
pub(crate) use error::Refusal;
pub use parser::parse;
pub use tree::*;
