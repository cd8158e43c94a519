//! Tokenizers.

use engine::checkpoint::Tokenizer;

use super::bounded::within;
use super::scratch;

const MEMORY: usize = 256 << 20;

/// A tokenizer of two letters.
pub const SMALL: &[u8] = include_bytes!("tokenizer.json");

/// Letters, spaces, and what normalizers and splitters look at.
const TEXT: &str = "Ab ba, it's 12 \u{e9}\u{301}\u{2581}\u{fb01} \u{4f60}\u{597d}\u{1f600}\r\n\tabba </s>";

fn encode() {
    within(MEMORY, || {
        let Ok(tokenizer) = Tokenizer::from_folder(scratch::folder()) else { return };
        let Ok(ids) = tokenizer.encode(TEXT) else { return };
        let _ = tokenizer.decode(&ids);
        let _ = tokenizer.to_json();
        let _ = tokenizer.token_id("a");
    });
}

/// tokenizer.json, and a short text through what it makes.
pub fn tokenizer(bytes: &[u8]) {
    scratch::file("tokenizer.json", bytes);
    encode();
}

/// vocab.json, merges.txt and what stands beside them, with a `%` between.
pub fn vocabulary(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == b'%');
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"] {
        match parts.next() {
            Some(part) => drop(scratch::file(name, part)),
            None => drop(std::fs::remove_file(scratch::folder().join(name))),
        }
    }
    encode();
}
