//! Tokens as text that can be shown at once: a character may lie in several tokens.

use crate::checkpoint::Tokenizer;
use crate::error::Result;

/// What a decoder puts where bytes are no character.
const REPLACEMENT: char = '\u{fffd}';

/// The most tokens that a character is waited for: UTF-8 has four bytes at most, a token one byte at least.
const WAIT: usize = 4;

/// Text that grows with each token.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens whose text is not all out, behind some that give them their context: decoders treat the first of a text apart.
    tokens: Vec<u32>,
    /// Tokens at the front whose text is out.
    shown: usize,
}

impl<'a> TextStream<'a> {
    /// A stream that goes on from `before`, whose text is out.
    pub fn new(tokenizer: &'a Tokenizer, before: &[u32]) -> TextStream<'a> {
        let tokens = before[before.len().saturating_sub(WAIT)..].to_vec();
        TextStream { tokenizer, shown: tokens.len(), tokens }
    }

    /// The text that `token` adds: nothing while a character is not whole, and then all of it.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let all = self.tokenizer.decode(&self.tokens)?;
        if all.ends_with(REPLACEMENT) && self.tokens.len() - self.shown < WAIT {
            return Ok(String::new());
        }
        self.take(&all)
    }

    /// What is left at the end: a character that never became whole.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn finish(mut self) -> Result<String> {
        let all = self.tokenizer.decode(&self.tokens)?;
        self.take(&all)
    }

    fn take(&mut self, all: &str) -> Result<String> {
        let out = self.tokenizer.decode(&self.tokens[..self.shown])?;
        let new = all.strip_prefix(&out).unwrap_or_else(|| {
            // The decoder made something else of what is out: what both begin with stays.
            let same: usize = all.chars().zip(out.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
            &all[same..]
        });
        let new = new.to_string();
        let context = self.tokens.len().saturating_sub(WAIT);
        self.tokens.drain(..context);
        self.shown = self.tokens.len();
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{BpeSettings, train_bpe};

    #[test]
    fn characters_come_whole_and_all_text_comes() {
        // No merges: a token a byte.
        let settings = BpeSettings { vocab_size: 256, ..BpeSettings::default() };
        let tokenizer = train_bpe(["a"].into_iter(), &settings).unwrap();
        let text = "naïve 🦀 – 日本";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), text.len());
        let mut stream = TextStream::new(&tokenizer, &[]);
        let mut out = String::new();
        for id in &ids {
            let new = stream.push(*id).unwrap();
            assert!(!new.contains(REPLACEMENT), "{new:?}");
            out += &new;
        }
        assert_eq!(out + &stream.finish().unwrap(), text);

        // Half a character at the end is shown for what it is.
        let mut stream = TextStream::new(&tokenizer, &ids[..2]);
        assert_eq!(stream.push(ids[2]).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}
