//! Text → tokens.

use super::error::Refusal;
use super::tree::Position;

/// A token and where it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub at: Position,
    pub kind: Kind<'a>,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind<'a> {
    /// A name, `%` and `$` included.
    Name(&'a str),
    /// `.name`, without the dot; `::` parts included.
    Dot(&'a str),
    /// An integer; true where it is unsigned (`U`, or too large for `.s64`).
    Integer(u64, bool),
    /// `0f…`.
    Single(u32),
    /// `0d…` or a decimal fraction.
    Double(f64),
    /// A quoted text.
    Text(&'a str),
    /// Punctuation of one or two characters.
    Mark(&'static str),
    /// The end of the text.
    End,
}

impl Kind<'_> {
    /// How an error names it.
    pub fn describe(&self) -> String {
        match self {
            Kind::Name(name) => format!("'{}'", shorten(name)),
            Kind::Dot(name) => format!("'.{}'", shorten(name)),
            Kind::Integer(value, _) => format!("the number {value}"),
            Kind::Single(bits) => format!("the number 0f{bits:08X}"),
            Kind::Double(value) => format!("the number {value}"),
            Kind::Text(_) => "a quoted text".into(),
            Kind::Mark(mark) => format!("'{mark}'"),
            Kind::End => "the end of the text".into(),
        }
    }
}

/// Hostile names may be megabytes long.
fn shorten(name: &str) -> &str {
    match name.char_indices().nth(64) {
        Some((end, _)) => &name[..end],
        None => name,
    }
}

const MARKS: [&str; 32] = [
    "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "{", "}", "[", "]", "(", ")", ",", ";", ":", "@", "!", "|", "+",
    "-", "*", "/", "%", "<", ">", "=", "&", "^", "~", "?",
];

/// The tokens of a text, the last one [`Kind::End`].
pub(crate) fn tokens(source: &str) -> Result<Vec<Token<'_>>, Refusal> {
    let mut lexer = Lexer { source, bytes: source.as_bytes(), next: 0, line: 1, line_start: 0 };
    let mut tokens = Vec::with_capacity(source.len() / 4);
    loop {
        lexer.skip_blank()?;
        let at = lexer.position();
        let kind = lexer.token(at)?;
        tokens.push(Token { at, kind });
        if kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    bytes: &'a [u8],
    next: usize,
    line: u32,
    line_start: usize,
}

impl<'a> Lexer<'a> {
    fn position(&self) -> Position {
        let column = u32::try_from(self.next - self.line_start).unwrap_or(u32::MAX - 1) + 1;
        Position { line: self.line, column }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.next + ahead).copied().unwrap_or(0)
    }

    fn newline(&mut self) {
        self.line = self.line.saturating_add(1);
        self.line_start = self.next + 1;
    }

    /// Past white space, comments and the NUL that some embedders leave at the end.
    fn skip_blank(&mut self) -> Result<(), Refusal> {
        while self.next < self.bytes.len() {
            match (self.bytes[self.next], self.peek(1)) {
                (b'\n', _) => {
                    self.newline();
                    self.next += 1;
                }
                (b' ' | b'\t' | b'\r' | 0x0b | 0x0c, _) => self.next += 1,
                (0, _) if self.bytes[self.next..].iter().all(|&b| b == 0) => self.next = self.bytes.len(),
                (b'/', b'/') => {
                    while self.next < self.bytes.len() && self.bytes[self.next] != b'\n' {
                        self.next += 1;
                    }
                }
                (b'/', b'*') => self.skip_comment()?,
                _ => break,
            }
        }
        Ok(())
    }

    fn skip_comment(&mut self) -> Result<(), Refusal> {
        let at = self.position();
        self.next += 2;
        while self.next < self.bytes.len() {
            match (self.bytes[self.next], self.peek(1)) {
                (b'*', b'/') => {
                    self.next += 2;
                    return Ok(());
                }
                (b'\n', _) => self.newline(),
                _ => {}
            }
            self.next += 1;
        }
        Err(Refusal::new(at, "this comment has no end"))
    }

    fn token(&mut self, at: Position) -> Result<Kind<'a>, Refusal> {
        if self.next >= self.bytes.len() {
            return Ok(Kind::End);
        }
        let byte = self.bytes[self.next];
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' => Ok(Kind::Name(self.word(0))),
            b'%' if is_word(self.peek(1)) && !self.peek(1).is_ascii_digit() => Ok(Kind::Name(self.word(1))),
            b'.' if is_word(self.peek(1)) => {
                self.next += 1;
                Ok(Kind::Dot(self.qualified()))
            }
            b'0'..=b'9' => self.number(at),
            b'"' => self.text(at),
            _ => match MARKS.iter().find(|mark| self.bytes[self.next..].starts_with(mark.as_bytes())) {
                Some(mark) => {
                    self.next += mark.len();
                    Ok(Kind::Mark(mark))
                }
                None => {
                    let what = self.source.get(self.next..).and_then(|rest| rest.chars().next()).unwrap_or('\u{fffd}');
                    Err(Refusal::new(at, format!("the character {what:?} has no place in PTX")))
                }
            },
        }
    }

    /// A word after `skip` leading bytes that belong to it.
    fn word(&mut self, skip: usize) -> &'a str {
        let start = self.next;
        self.next += skip;
        while is_word(self.peek(0)) {
            self.next += 1;
        }
        &self.source[start..self.next]
    }

    /// A word whose parts `::` may join.
    fn qualified(&mut self) -> &'a str {
        let start = self.next;
        self.word(0);
        while self.peek(0) == b':' && self.peek(1) == b':' && is_word(self.peek(2)) {
            self.next += 2;
            self.word(0);
        }
        &self.source[start..self.next]
    }

    fn text(&mut self, at: Position) -> Result<Kind<'a>, Refusal> {
        let start = self.next + 1;
        self.next = start;
        while !matches!(self.peek(0), b'"' | b'\n') && self.next < self.bytes.len() {
            self.next += if self.peek(0) == b'\\' && self.peek(1) == b'"' { 2 } else { 1 };
        }
        if self.peek(0) != b'"' {
            return Err(Refusal::new(at, "this quoted text has no end on its line"));
        }
        self.next += 1;
        Ok(Kind::Text(&self.source[start..self.next - 1]))
    }

    fn number(&mut self, at: Position) -> Result<Kind<'a>, Refusal> {
        let radix = match (self.peek(0), self.peek(1)) {
            (b'0', b'f' | b'F') => return self.float_bits(at, 8).map(|bits| Kind::Single(bits as u32)),
            (b'0', b'd' | b'D') => return self.float_bits(at, 16).map(|bits| Kind::Double(f64::from_bits(bits))),
            (b'0', b'x' | b'X') => 16,
            (b'0', b'b' | b'B') => 2,
            _ => return self.decimal(at),
        };
        self.next += 2;
        let word = self.word(0);
        self.integer(at, word, radix)
    }

    fn float_bits(&mut self, at: Position, digits: usize) -> Result<u64, Refusal> {
        self.next += 2;
        let word = self.word(0);
        if word.len() != digits || !word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Refusal::new(at, format!("a floating-point constant of this kind takes {digits} hex digits")));
        }
        u64::from_str_radix(word, 16).map_err(|e| Refusal::new(at, e.to_string()))
    }

    /// A decimal or octal integer, or a decimal fraction.
    fn decimal(&mut self, at: Position) -> Result<Kind<'a>, Refusal> {
        let start = self.next;
        while self.peek(0).is_ascii_digit() {
            self.next += 1;
        }
        let fraction = self.peek(0) == b'.' && (!is_word(self.peek(1)) || self.peek(1).is_ascii_digit());
        let exponent = |l: &Self| {
            matches!(l.peek(0), b'e' | b'E')
                && (l.peek(1).is_ascii_digit() || (matches!(l.peek(1), b'+' | b'-') && l.peek(2).is_ascii_digit()))
        };
        if !fraction && !exponent(self) {
            self.next = start;
            let word = self.word(0);
            let octal = word.len() > 1 && word.starts_with('0') && !matches!(word, "0U" | "0u");
            return self.integer(at, word, if octal { 8 } else { 10 });
        }
        if fraction {
            self.next += 1;
            while self.peek(0).is_ascii_digit() {
                self.next += 1;
            }
        }
        if exponent(self) {
            self.next += 2;
            while self.peek(0).is_ascii_digit() {
                self.next += 1;
            }
        }
        let word = &self.source[start..self.next];
        word.parse().map(Kind::Double).map_err(|_| Refusal::new(at, format!("'{}' is not a number", shorten(word))))
    }

    fn integer(&self, at: Position, word: &str, radix: u32) -> Result<Kind<'a>, Refusal> {
        let digits = word.strip_suffix(['U', 'u']).unwrap_or(word);
        match u64::from_str_radix(digits, radix) {
            Ok(value) => Ok(Kind::Integer(value, digits.len() < word.len() || value > i64::MAX as u64)),
            Err(_) => Err(Refusal::new(at, format!("'{}' is not a 64-bit integer", shorten(word)))),
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}
