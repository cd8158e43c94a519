//! Text on its way to tokens: what names it, where its tokens are kept.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use engine::checkpoint::Tokenizer;
use engine::data::{self, Corpus, Joining, Origin, TokenCache, TokenStream};
use engine::evaluate::Protocol;
use engine::hub::Use;

use crate::error::Failure;
use crate::fetch;
use crate::progress::Console;
use crate::tables;

/// Where tokens are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenCacheChoice {
    /// Nowhere.
    Off,
    /// In this folder.
    Folder(PathBuf),
}

impl FromStr for TokenCacheChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenCacheChoice, String> {
        match text {
            "" => Err("expected a folder, or off".into()),
            "off" => Ok(TokenCacheChoice::Off),
            folder => Ok(TokenCacheChoice::Folder(folder.into())),
        }
    }
}

/// How text becomes tokens.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub struct TextArgs {
    /// Keep the tokens of texts in this folder, so that a text is tokenised once; off: in a temporary file, for this run
    /// [default: perp-engine/tokens in XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_parser = |s: &str| s.parse::<TokenCacheChoice>(), value_name = "DIR|off")]
    token_cache: Option<TokenCacheChoice>,
    /// Of a hub's data set take the first N files of its split; 0: all.
    #[arg(long, default_value_t = 1, value_name = "N")]
    shards: usize,
}

impl TextArgs {
    fn cache(&self) -> TokenCache {
        match &self.token_cache {
            Some(TokenCacheChoice::Off) => TokenCache::off(),
            Some(TokenCacheChoice::Folder(folder)) => TokenCache::at(folder),
            None => {
                default_cache().map_or_else(TokenCache::off, |folder| TokenCache::at(folder.join("perp-engine/tokens")))
            }
        }
    }
}

/// The user's cache folder, by the XDG base directory specification, which ignores relative paths.
fn default_cache() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
}

/// What a perplexity is measured on.
#[derive(Clone, Debug, Default)]
pub struct EvalText {
    /// Its files; none where nothing is measured.
    pub files: Vec<PathBuf>,
    /// The protocol that names them, where one does.
    pub protocol: Option<Protocol>,
}

impl EvalText {
    /// The most windows where no flag says it: the protocol's, or else `default`; 0 for all.
    pub fn windows(&self, default: usize) -> usize {
        self.protocol.map_or(default, |protocol| protocol.windows().unwrap_or(0))
    }
}

/// Finds texts and tokenises them.
pub struct Texts<'a> {
    console: &'a Console,
    cache: TokenCache,
    shards: Option<usize>,
}

impl<'a> Texts<'a> {
    pub fn new(console: &'a Console, args: &TextArgs) -> Texts<'a> {
        Texts { console, cache: args.cache(), shards: Some(args.shards).filter(|shards| *shards > 0) }
    }

    /// The files that arguments name, for a use: paths, patterns among them, and data sets of the hub, which are fetched.
    pub fn files(&self, named: &[PathBuf], wanted: Use) -> Result<Vec<PathBuf>, Failure> {
        let mut files = Vec::new();
        for path in named {
            match fetch::data_id(path) {
                Some(id) => files.extend(fetch::data(self.console, &id, wanted, self.shards)?),
                None => files.extend(data::expand_patterns(&[path])?),
            }
        }
        Ok(files)
    }

    /// What `--eval` names: texts, or a protocol.
    pub fn evaluation(&self, named: &[PathBuf]) -> Result<EvalText, Failure> {
        let Some(protocol) = named.iter().find_map(|path| Protocol::named(path)) else {
            return Ok(EvalText { files: self.files(named, Use::Test)?, protocol: None });
        };
        if named.len() > 1 {
            return Err(Failure::usage(format!(
                "--eval {} stands alone: it is a text and how it is measured",
                protocol.name()
            )));
        }
        let files = fetch::data(self.console, &protocol.data(), Use::Test, None)?;
        Ok(EvalText { files, protocol: Some(protocol) })
    }

    /// The tokens of documents, packed end to end; `what` they are for.
    pub fn stream(&self, tokenizer: &Tokenizer, files: &[PathBuf], what: &str) -> Result<TokenStream, Failure> {
        self.tokens(tokenizer, Corpus { files: files.to_vec(), joining: None }, what)
    }

    /// The tokens of an evaluation text; fails where they are fewer than one window.
    pub fn evaluation_tokens(
        &self,
        tokenizer: &Tokenizer,
        text: &EvalText,
        seq_len: usize,
    ) -> Result<TokenStream, Failure> {
        let joining = text.protocol.map_or(Joining::PARAGRAPHS, Protocol::joining);
        let corpus = Corpus { files: text.files.clone(), joining: Some(joining) };
        let stream = self.tokens(tokenizer, corpus, "evaluation")?;
        let _fits = data::windows(stream.tokens(), seq_len)?;
        Ok(stream)
    }

    fn tokens(&self, tokenizer: &Tokenizer, corpus: Corpus, what: &str) -> Result<TokenStream, Failure> {
        let total = data::read_documents(&corpus.files)?.total_bytes();
        let task = Mutex::new(self.console.task("tokenise", total));
        let found = self.cache.tokens(&corpus, tokenizer, |progress| {
            let message = format!("{} tokens", progress.tokens);
            task.lock().expect("no panic while locked").update(progress.file_bytes, &message);
        })?;
        if let Some((path, reason)) = &found.damaged {
            self.console.warn(&format!("{}: {reason}; made anew", path.display()));
        }
        if let Origin::NotKept(error) = &found.origin {
            self.console.warn(&format!("the tokens are not kept: {error}; --token-cache names another folder, or off"));
        }
        let cached = if matches!(found.origin, Origin::Cached) { ", kept from before," } else { "" };
        let count = tables::count(found.stream.tokens().len());
        task.into_inner().expect("no panic while locked").finish(&format!("{count} {what} tokens{cached}"));
        Ok(found.stream)
    }
}
