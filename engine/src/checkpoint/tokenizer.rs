//! Tokenizers: read from a model folder, or trained.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::error::{Error, Result};
use super::files::{CONFIG_LIMIT, TOKENIZER_LIMIT, read_json_object, read_limited, write_json, write_synced};
use super::output::OutputFolder;
use super::pieces::{self, Placed};
use crate::guard;

/// Text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// What stands, or will stand, in tokenizer_config.json.
    config: Value,
}

impl Tokenizer {
    /// The tokenizer of a model folder: tokenizer.json, or else vocab.json and merges.txt (byte-level BPE, as GPT-2's
    /// and OPT's), which take their special tokens from tokenizer_config.json, special_tokens_map.json and
    /// added_tokens.json. Truncation and padding that a file asks for are switched off: a document is never cut.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`Error::Json`] naming the file; [`Error::Missing`] listing what was looked for.
    pub fn from_folder(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let file = |name: &str| path.join(name);
        let config_file = file("tokenizer_config.json");
        let config = if config_file.is_file() {
            read_json_object(&config_file, CONFIG_LIMIT)?
        } else {
            Value::Object(Map::new())
        };
        let json = file("tokenizer.json");
        let inner = if json.is_file() {
            let bytes = read_limited(&json, TOKENIZER_LIMIT)?;
            check_growth(&json, &bytes)?;
            let read = || {
                let mut inner = Inner::from_bytes(&bytes)?;
                inner.with_truncation(None)?;
                inner.with_padding(None);
                Ok(inner)
            };
            guarded(read).map_err(|e| bad(&json, &*e))?
        } else if file("vocab.json").is_file() && file("merges.txt").is_file() {
            from_vocab_and_merges(path, &config)?
        } else {
            let mut reason = "no tokenizer: looked for tokenizer.json, and for vocab.json with merges.txt".to_owned();
            if file("tokenizer.model").is_file() {
                reason += "; there is only tokenizer.model: load it with transformers' fast tokenizer and save it";
            }
            return Err(Error::Missing { path: path.into(), reason });
        };
        Ok(Tokenizer { inner, config })
    }

    /// The ids of a text, with the special tokens that the tokenizer adds: for OPT and Llama, BOS in front.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > LONG
            && let Some(around) = self.around()?
        {
            return self.encode_long(text, around);
        }
        self.ids(text, true)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, special)).map_err(|e| Error::Tokenize(one_line(&*e)))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text [piece by piece](pieces), between those that stand around any.
    fn encode_long(&self, text: &str, around: Around) -> Result<Vec<u32>> {
        let mut ids = around.before;
        pieces::encode(text, pieces::CUT, &mut ids, |part| {
            let encoding = guarded(|| self.inner.encode(part, false)).map_err(|e| Error::Tokenize(one_line(&*e)))?;
            let places = encoding.get_ids().iter().zip(encoding.get_offsets());
            Ok(places.map(|(&id, &(start, end))| Placed { id, start, end }).collect())
        })?;
        ids.extend(around.after);
        Ok(ids)
    }

    /// The special tokens that the tokenizer adds to a text; none where it does more to it.
    fn around(&self) -> Result<Option<Around>> {
        let (with, without) = (self.ids("a", true)?, self.ids("a", false)?);
        if without.is_empty() {
            return Ok(None);
        }
        let first = with.windows(without.len()).position(|ids| ids == without);
        Ok(first.map(|first| Around { before: with[..first].to_vec(), after: with[first + without.len()..].to_vec() }))
    }

    /// The text of ids, special tokens included.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|e| Error::Tokenize(one_line(&*e)))
    }

    /// Its number of tokens, special ones included. A model's embedding may be larger, never smaller.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of its tokenizer.json.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| Error::Tokenize(one_line(&*e)))
    }

    /// Writes tokenizer.json and tokenizer_config.json. The same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, out: &OutputFolder) -> Result<()> {
        write_synced(out.disk(), &out.path().join("tokenizer.json"), self.to_json()?.as_bytes())?;
        write_json(out.disk(), &out.path().join("tokenizer_config.json"), &self.config)
    }
}

/// Ids that stand around every text.
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

/// Texts of more bytes are tokenised piece by piece.
const LONG: usize = 2 * pieces::CUT.piece;

type Cause = dyn std::error::Error + Send + Sync;

/// How many times longer a tokenizer may make a text before it cuts it: SentencePiece's makes three bytes of a space.
const MOST_GROWTH: u64 = 1024;

/// Refuses a normalizer that makes a short text a long one: its replacements are few bytes for few.
fn check_growth(path: &Path, bytes: &[u8]) -> Result<()> {
    // What is no JSON is told by who reads all of it.
    let Ok(json) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return Ok(()) };
    let growth = json.get("normalizer").map_or(1, growth);
    if growth > MOST_GROWTH {
        let reason = format!(
            "its normalizer could make a text {growth} times as long, and no more than {MOST_GROWTH} is sensible"
        );
        return Err(Error::Tokenizer { path: path.into(), reason });
    }
    Ok(())
}

/// The most bytes that a normalizer makes of one.
fn growth(normalizer: &Value) -> u64 {
    if let Some(all) = normalizer["normalizers"].as_array() {
        return all.iter().map(growth).fold(1, u64::saturating_mul);
    }
    let len = |value: &Value| value.as_str().map_or(0, str::len) as u64;
    match normalizer["type"].as_str() {
        // An expression may match nothing at all, before each byte; so does the empty string.
        Some("Replace") => match len(&normalizer["pattern"]["String"]) {
            0 => 1 + len(&normalizer["content"]),
            pattern => len(&normalizer["content"]).div_ceil(pattern).max(1),
        },
        Some("Prepend") => 1 + len(&normalizer["prepend"]),
        _ => 1,
    }
}

/// Calls the tokenizer library, which panics on some files that it reads without complaint. What a panic could leave
/// half-changed is a cache of the library's, of whole entries.
fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, Box<Cause>>) -> std::result::Result<T, Box<Cause>> {
    guard::guarded(run)
        .unwrap_or_else(|| Err("the tokenizer library broke down over it: the file contradicts itself".into()))
}

fn one_line(error: &Cause) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn bad(path: &Path, error: &Cause) -> Error {
    Error::Tokenizer { path: path.into(), reason: format!("is not a valid tokenizer: {}", one_line(error)) }
}

/// Byte-level BPE around a model: every byte has a symbol, so nothing is ever unknown.
fn byte_level(bpe: BPE, add_prefix_space: bool) -> Inner {
    let mut inner = Inner::new(bpe);
    let byte_level = ByteLevel::new(add_prefix_space, false, true);
    inner.with_pre_tokenizer(Some(byte_level));
    inner.with_post_processor(Some(byte_level));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    inner
}

/// Puts `bos` in front of every text.
fn prepend(inner: &mut Inner, bos: &str) -> std::result::Result<(), String> {
    let id = inner.token_to_id(bos).ok_or_else(|| format!("its bos_token {bos:?} is not in the vocabulary"))?;
    let template = TemplateProcessing::builder()
        .try_single(vec![bos.to_owned(), "$A".into()])
        .and_then(|builder| builder.try_pair(vec![bos.to_owned(), "$A".into(), "$B:1".into()]))
        .map_err(|e| e.to_string())?
        .special_tokens(vec![(bos.to_owned(), id)])
        .build()
        .map_err(|e| e.to_string())?;
    inner.with_post_processor(Some(template));
    Ok(())
}

fn from_vocab_and_merges(folder: &Path, config: &Value) -> Result<Inner> {
    let vocab_file = folder.join("vocab.json");
    let merges_file = folder.join("merges.txt");
    let vocab: HashMap<String, u32> = serde_json::from_slice(&read_limited(&vocab_file, TOKENIZER_LIMIT)?)
        .map_err(|e| Error::Json { path: vocab_file, reason: format!("must map tokens to ids: {e}") })?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), read_merges(&merges_file)?)
        .build()
        .map_err(|e| bad(&merges_file, &*e))?;
    let mut inner = byte_level(bpe, config["add_prefix_space"].as_bool().unwrap_or(false));
    let map_file = folder.join("special_tokens_map.json");
    let map = if map_file.is_file() { read_json_object(&map_file, CONFIG_LIMIT)? } else { Value::Null };
    add_extra_tokens(&mut inner, folder)?;
    for role in ROLES {
        if let Some(token) = special_token(&config[role]).or_else(|| special_token(&map[role])) {
            inner.add_special_tokens(&[token]);
        }
    }
    if config["add_bos_token"].as_bool().unwrap_or(false) {
        let fail = |reason: String| Error::Tokenizer { path: folder.join("tokenizer_config.json"), reason };
        let bos = special_token(&config["bos_token"]).or_else(|| special_token(&map["bos_token"]));
        let bos = bos.ok_or_else(|| fail("has add_bos_token but names no bos_token".into()))?;
        prepend(&mut inner, &bos.content).map_err(fail)?;
    }
    Ok(inner)
}

/// The single special tokens of a tokenizer_config.json, in the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// merges.txt: a line a merge, two symbols and a space between; the first line may be a `#version`.
fn read_merges(path: &Path) -> Result<Vec<(String, String)>> {
    let fail = |reason: String| Error::Tokenizer { path: path.into(), reason };
    let bytes = read_limited(path, TOKENIZER_LIMIT)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| fail(format!("is not UTF-8 at byte {}", e.valid_up_to())))?;
    let mut merges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => merges.push((a.into(), b.into())),
            _ => return Err(fail(format!("line {}: {line:?} is not two symbols with a space between", number + 1))),
        }
    }
    Ok(merges)
}

/// added_tokens.json: tokens beyond the vocabulary, with the ids that they must get.
fn add_extra_tokens(inner: &mut Inner, folder: &Path) -> Result<()> {
    let path = folder.join("added_tokens.json");
    if !path.is_file() {
        return Ok(());
    }
    let tokens: HashMap<String, u32> = serde_json::from_slice(&read_limited(&path, CONFIG_LIMIT)?)
        .map_err(|e| Error::Json { path: path.clone(), reason: format!("must map tokens to ids: {e}") })?;
    let mut tokens: Vec<(u32, String)> = tokens.into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort();
    for (id, token) in tokens {
        inner.add_special_tokens(&[AddedToken::from(token.clone(), true)]);
        if inner.token_to_id(&token) != Some(id) {
            let reason =
                format!("token {token:?} has id {id}, but the vocabulary leaves a gap before it or has it already");
            return Err(Error::Tokenizer { path, reason });
        }
    }
    Ok(())
}

/// A special token as the files spell it: a string, or an object with `content` and how it takes up spaces.
fn special_token(value: &Value) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value["content"].as_str())?;
    let flag = |name: &str| value[name].as_bool().unwrap_or(false);
    Some(
        AddedToken::from(content, true)
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(flag("normalized")),
    )
}

/// What [`train_bpe`] makes.
#[derive(Clone, Debug, Default)]
pub struct BpeSettings {
    /// The number of tokens: special tokens, the 256 bytes, and merges up to this size. Text with too few different
    /// words yields fewer.
    pub vocab_size: usize,
    /// Special tokens, which get the ids 0, 1, ….
    pub special_tokens: Vec<String>,
    /// The special token that stands before every text, if any does.
    pub bos: Option<String>,
    /// The special token that ends a text, for generation.
    pub eos: Option<String>,
    /// The special token that fills a batch.
    pub pad: Option<String>,
}

impl BpeSettings {
    fn check(&self) -> std::result::Result<(), String> {
        let least = self.special_tokens.len() + BYTES;
        if self.vocab_size > MOST_TOKENS {
            return Err(format!("a vocabulary of {} is too large; at most {MOST_TOKENS} tokens are", self.vocab_size));
        }
        if self.vocab_size < least {
            let special = self.special_tokens.len();
            return Err(format!(
                "a vocabulary of {} has no room for 256 bytes and {special} special tokens; it takes {least} at least",
                self.vocab_size
            ));
        }
        for (i, token) in self.special_tokens.iter().enumerate() {
            if token.is_empty() || self.special_tokens[..i].contains(token) {
                return Err(format!("special token {token:?} is empty or there twice"));
            }
        }
        for token in [&self.bos, &self.eos, &self.pad].into_iter().flatten() {
            if !self.special_tokens.contains(token) {
                return Err(format!("{token:?} must be one of the special tokens"));
            }
        }
        Ok(())
    }

    /// The file by which transformers' AutoTokenizer finds its way: without the class it would guess one from the
    /// model's type, which may add tokens of its own.
    fn tokenizer_config(&self) -> Value {
        let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        for (role, token) in [("bos_token", &self.bos), ("eos_token", &self.eos), ("pad_token", &self.pad)] {
            if let Some(token) = token {
                config[role] = token.clone().into();
            }
        }
        config
    }
}

/// The largest vocabulary: eight times those of today's models.
const MOST_TOKENS: usize = 1 << 21;

/// Symbols that a byte-level vocabulary starts from.
const BYTES: usize = 256;

/// Trains a byte-level BPE tokenizer (the kind of GPT-2 and OPT) on texts. The same texts in any order, and the same
/// settings, give the same tokenizer.
///
/// # Errors
/// [`Error::BpeTraining`] for settings that contradict themselves.
pub fn train_bpe<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    settings: &BpeSettings,
) -> Result<Tokenizer> {
    settings.check().map_err(Error::BpeTraining)?;
    let fail = |e: Box<Cause>| Error::BpeTraining(one_line(&*e));
    let mut inner = byte_level(BPE::default(), false);
    let special = settings.special_tokens.iter().map(|token| AddedToken::from(token.clone(), true)).collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(settings.vocab_size)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .show_progress(false)
        .build();
    inner.train(&mut TrainerWrapper::from(trainer), texts).map_err(fail)?;
    if let Some(bos) = &settings.bos {
        prepend(&mut inner, bos).map_err(Error::BpeTraining)?;
    }
    Ok(Tokenizer { inner, config: settings.tokenizer_config() })
}
