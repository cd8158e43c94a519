//! Files of our own that carry checksums: inputs are sealed with the right one, or nothing but the checksum would be tried.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use engine::checkpoint::{RunCheckpoint, Tokenizer};
use engine::data::{Corpus, TokenCache};
use engine::retrain::{RunState, records};

use super::bounded::within;
use super::scratch;
use super::tokenizers::SMALL;

const MEMORY: usize = 64 << 20;

/// Where a checkpoint's checksum stands, and its digits; docs/checkpoints.md.
const CHECKSUM: std::ops::Range<usize> = 37..101;

/// A checkpoint of a run, and what the run says in it of itself.
pub fn checkpoint(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if let Some(place) = bytes.get_mut(CHECKSUM) {
        place.fill(b'0');
        let checksum = blake3::hash(&bytes).to_hex();
        bytes[CHECKSUM].copy_from_slice(checksum.as_bytes());
    }
    let path = scratch::file("step-00000001.safetensors", &bytes);
    within(MEMORY, || {
        let Ok(checkpoint) = RunCheckpoint::open(path) else { return };
        let _ = RunState::read(&checkpoint).map(|state| state.differences(&serde_json::Map::new()));
        let _ = records(&checkpoint);
    });
}

/// A text, its tokenizer, and the file in which a cache keeps its tokens.
struct Cached {
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache: TokenCache,
    file: PathBuf,
    whole: Vec<u8>,
}

fn cached() -> &'static Cached {
    static CACHED: OnceLock<Cached> = OnceLock::new();
    CACHED.get_or_init(|| {
        scratch::fixed("tokenizer.json", SMALL);
        let text = scratch::fixed("text.jsonl", b"{\"text\":\"abba\"}\n{\"text\":\"b\"}\n");
        let tokenizer = Tokenizer::from_folder(scratch::folder()).expect("a small tokenizer");
        let corpus = Corpus { files: vec![text], joining: None };
        let folder = scratch::folder().join("tokens");
        let cache = TokenCache::at(&folder);
        cache.tokens(&corpus, &tokenizer, |_| {}).expect("a short text");
        let file = fs::read_dir(folder).expect("its folder").next().expect("one file").expect("its name").path();
        let whole = fs::read(&file).expect("its bytes");
        Cached { corpus, tokenizer, cache, file, whole }
    })
}

/// A file of the token cache. Whatever it holds, the tokens that come out are of one piece.
pub fn token_file(bytes: &[u8]) {
    let cached = cached();
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 128 {
        bytes[32..64].copy_from_slice(&cached.whole[32..64]);
        let tokens = u64::from_ne_bytes(bytes[16..24].try_into().expect("eight bytes"));
        let end = usize::try_from(tokens).ok().and_then(|tokens| tokens.checked_mul(4)?.checked_add(128));
        if let Some(end) = end.filter(|end| *end <= bytes.len()) {
            let sum = blake3::hash(&bytes[128..end]);
            bytes[64..96].copy_from_slice(sum.as_bytes());
            let ends = end.next_multiple_of(8).min(bytes.len());
            let sum = *blake3::Hasher::new().update(&bytes[..96]).update(&bytes[ends..]).finalize().as_bytes();
            bytes[96..128].copy_from_slice(&sum);
        }
    }
    fs::write(&cached.file, &bytes).expect("there is room for the input");
    within(MEMORY, || {
        let tokenized = cached.cache.tokens(&cached.corpus, &cached.tokenizer, |_| {}).expect("a short text");
        let stream = tokenized.stream;
        let all: usize = (0..stream.documents()).map(|index| stream.document(index).len()).sum();
        assert_eq!(all, stream.tokens().len());
        if tokenized.damaged.is_some() {
            assert_eq!(fs::read(&cached.file).expect("it was made anew"), cached.whole);
        }
    });
}
