//! Tokens → syntax tree, by recursive descent of bounded depth.

mod expression;
mod module;
mod operand;
mod statement;
mod variable;

use super::error::{Error, Refusal};
use super::lexer::{Kind, Token, tokens};
use super::tree::{Module, Position};

type Parsed<T> = Result<T, Refusal>;

/// How deep scopes, expressions and initialisers may nest: far above what compilers write, far below the host's stack.
const DEPTH: u32 = 100;

/// The syntax tree of a PTX text.
///
/// # Errors
/// Text that is not PTX, with line and column.
pub fn parse(source: &str) -> Result<Module<'_>, Error> {
    let parsed = tokens(source).and_then(|tokens| Parser { tokens: &tokens, next: 0, depth: 0 }.module());
    parsed.map_err(|refusal| refusal.quote(source))
}

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
    next: usize,
    depth: u32,
}

impl<'a> Parser<'_, 'a> {
    fn token(&self) -> Token<'a> {
        self.ahead(0)
    }

    /// A token further on; the last one repeats.
    fn ahead(&self, by: usize) -> Token<'a> {
        self.tokens[(self.next + by).min(self.tokens.len() - 1)]
    }

    fn kind(&self) -> Kind<'a> {
        self.token().kind
    }

    fn at(&self) -> Position {
        self.token().at
    }

    fn advance(&mut self) -> Token<'a> {
        let token = self.token();
        self.next += 1;
        token
    }

    fn is(&self, mark: &str) -> bool {
        matches!(self.kind(), Kind::Mark(m) if m == mark)
    }

    fn take(&mut self, mark: &str) -> bool {
        let found = self.is(mark);
        if found {
            self.next += 1;
        }
        found
    }

    fn take_dot(&mut self, name: &str) -> bool {
        let found = self.kind() == Kind::Dot(name);
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, mark: &'static str) -> Parsed<()> {
        if self.take(mark) { Ok(()) } else { Err(self.unexpected(&format!("'{mark}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> Refusal {
        Refusal::new(self.at(), format!("expected {wanted}, found {}", self.kind().describe()))
    }

    fn name(&mut self, what: &str) -> Parsed<&'a str> {
        match self.kind() {
            Kind::Name(name) => {
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    /// A plain unsigned number, as directives take them.
    fn count(&mut self, what: &str) -> Parsed<u64> {
        match self.kind() {
            Kind::Integer(value, _) => {
                self.next += 1;
                Ok(value)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn count32(&mut self, what: &str) -> Parsed<u32> {
        let at = self.at();
        let value = self.count(what)?;
        u32::try_from(value).map_err(|_| Refusal::new(at, format!("{value} is too large for {what}")))
    }

    /// Items between commas.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.take(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Runs `inner` one level deeper.
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= DEPTH {
            return Err(Refusal::new(self.at(), format!("nested more than {DEPTH} deep")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }
}
