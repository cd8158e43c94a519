//! Text on its way to tokens: what names it, where its tokens are kept.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use engine::checkpoint::Tokenizer;
use engine::data::{self, Corpus, Origin, TokenCache, TokenStream};

use crate::error::Failure;
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

/// Finds texts and tokenises them.
pub struct Texts<'a> {
    console: &'a Console,
    cache: TokenCache,
}

impl<'a> Texts<'a> {
    pub fn new(console: &'a Console, args: &TextArgs) -> Texts<'a> {
        Texts { console, cache: args.cache() }
    }

    /// The files that arguments name: paths, and patterns among them.
    pub fn files(&self, named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
        Ok(data::expand_patterns(named)?)
    }

    /// The tokens of documents, packed end to end; `what` they are for.
    pub fn stream(&self, tokenizer: &Tokenizer, files: &[PathBuf], what: &str) -> Result<TokenStream, Failure> {
        self.tokens(tokenizer, Corpus { files: files.to_vec(), joined: false }, what)
    }

    /// The tokens of an evaluation text; fails where they are fewer than one window.
    pub fn evaluation_tokens(
        &self,
        tokenizer: &Tokenizer,
        files: &[PathBuf],
        seq_len: usize,
    ) -> Result<TokenStream, Failure> {
        let corpus = Corpus { files: files.to_vec(), joined: true };
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
