//! Tokens, packed end to end, and where its documents lie in them.

use std::fs::File;
use std::slice::ChunksExact;
use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::documents::{Document, TEXT_LIMIT};
use super::error::{Error, Result};
use super::token_file::{Digest, TokenFile, TokenWriter};
use crate::checkpoint::Tokenizer;

/// BLAKE3 of tokens: what text a run was given, whatever its files are called.
pub fn hash(tokens: &[u32]) -> String {
    blake3::Hasher::new().update_rayon(bytemuck::cast_slice(tokens)).finalize().to_string()
}

/// How far tokenising has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents done.
    pub documents: u64,
    /// Bytes of their files.
    pub file_bytes: u64,
    /// Tokens made.
    pub tokens: u64,
}

/// Every document's tokens, one after the other, in a mapped file: of a large corpus memory holds what was looked at last, and
/// the system takes even that where it needs room.
#[derive(Clone, Debug)]
pub struct TokenStream {
    file: Arc<TokenFile>,
}

/// Text handed to the threads at once, in bytes: enough for each to have several documents, little beside a model.
const BATCH_BYTES: usize = 16 << 20;

impl TokenStream {
    /// Tokenises documents and packs them end to end, each with the special tokens that the tokenizer adds (BOS in
    /// front, for the models that have it). Documents without text add nothing. Threads share the work document by
    /// document, so the tokens are those of one thread. `progress` is called after each document, from any thread. The tokens
    /// lie in a file without a name; [`TokenCache`](super::TokenCache) keeps them.
    ///
    /// # Errors
    /// The documents' own errors, [`Error::Tokenizer`], and [`Error::Io`] where there is no room for temporary files.
    pub fn build(
        documents: impl IntoIterator<Item = Result<Document>>,
        tokenizer: &Tokenizer,
        progress: impl Fn(Progress) + Sync,
    ) -> Result<TokenStream> {
        let file = tempfile::tempfile().map_err(in_temp)?;
        write(&file, documents, tokenizer, &Digest::default(), progress)?;
        TokenStream::map(&file, &Digest::default())
    }

    /// What [`write`] has just written.
    pub(super) fn map(file: &File, key: &Digest) -> Result<TokenStream> {
        let opened = TokenFile::open(file, key).map_err(in_temp)?;
        let file = opened.map_err(|what| in_temp(std::io::Error::other(format!("what was written {what}"))))?;
        Ok(TokenStream::of(file))
    }

    pub(super) fn of(file: TokenFile) -> TokenStream {
        TokenStream { file: Arc::new(file) }
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        self.file.tokens()
    }

    /// The number of documents that have tokens.
    pub fn documents(&self) -> usize {
        self.file.ends().len()
    }

    /// The tokens of a document.
    ///
    /// # Panics
    /// If `index` is not below [`TokenStream::documents`].
    pub fn document(&self, index: usize) -> &[u32] {
        &self.tokens()[self.file.document(index)]
    }

    /// [`hash`] of the tokens, known without reading them.
    pub fn hash(&self) -> String {
        blake3::Hash::from_bytes(self.file.tokens_digest()).to_string()
    }
}

fn in_temp(source: std::io::Error) -> Error {
    Error::Io { path: std::env::temp_dir(), source }
}

/// Tokenises documents into a file, in their order.
pub(super) fn write(
    file: &File,
    documents: impl IntoIterator<Item = Result<Document>>,
    tokenizer: &Tokenizer,
    key: &Digest,
    progress: impl Fn(Progress) + Sync,
) -> Result<()> {
    let done = Mutex::new(Progress::default());
    let encode = |document: &Document| -> Result<Vec<u32>> {
        let ids = if document.text.is_empty() { Vec::new() } else { encode(tokenizer, document)? };
        // Called under the lock, so that what it is told only ever grows.
        let mut done = done.lock().expect("the callback does not panic");
        done.documents += 1;
        done.file_bytes += document.file_bytes;
        done.tokens += ids.len() as u64;
        progress(*done);
        Ok(ids)
    };
    let mut out = TokenWriter::new(file).map_err(Error::Tokens)?;
    let mut flush = |batch: &mut Vec<Document>| -> Result<()> {
        let encoded: Vec<Vec<u32>> = batch.par_iter().map(encode).collect::<Result<_>>()?;
        batch.clear();
        encoded.iter().try_for_each(|ids| out.push(ids)).map_err(Error::Tokens)
    };
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for document in documents {
        let document = document?;
        bytes += document.text.len() + size_of::<Document>();
        batch.push(document);
        if bytes >= BATCH_BYTES {
            flush(&mut batch)?;
            bytes = 0;
        }
    }
    flush(&mut batch)?;
    out.finish(key).map_err(Error::Tokens)
}

/// How documents become one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joining {
    /// What stands between them.
    pub separator: &'static str,
    /// The most of them, from the first; all where there is none.
    pub documents: Option<usize>,
}

impl Joining {
    /// All, with two newlines between, as perplexity on WikiText is defined.
    pub const PARAGRAPHS: Joining = Joining { separator: "\n\n", documents: None };
}

/// The documents of an evaluation corpus as one.
///
/// # Errors
/// The documents' own errors, [`Error::NoFiles`] where there are none, [`Error::TooLong`].
pub fn join(documents: impl IntoIterator<Item = Result<Document>>, how: Joining) -> Result<Document> {
    let mut joined: Option<Document> = None;
    let documents = documents.into_iter().take(how.documents.unwrap_or(usize::MAX));
    for document in documents {
        let document = document?;
        match &mut joined {
            None => joined = Some(document),
            Some(joined) => {
                if joined.text.len() + how.separator.len() + document.text.len() > TEXT_LIMIT {
                    return Err(Error::Joined { document: document.source, limit: TEXT_LIMIT });
                }
                joined.text += how.separator;
                joined.text += &document.text;
                joined.file_bytes += document.file_bytes;
            }
        }
    }
    joined.ok_or(Error::NoFiles)
}

fn encode(tokenizer: &Tokenizer, document: &Document) -> Result<Vec<u32>> {
    tokenizer.encode(&document.text).map_err(|cause| Error::Tokenizer { document: document.source.clone(), cause })
}

/// Cuts tokens into ⌊tokens/length⌋ windows of `length`, in order; the tail is dropped.
///
/// # Errors
/// [`Error::TooShort`] if there is not one window, [`Error::WindowLength`] if a window would predict nothing.
pub fn windows(tokens: &[u32], length: usize) -> Result<ChunksExact<'_, u32>> {
    if length < 2 {
        return Err(Error::WindowLength(length));
    }
    if tokens.len() < length {
        return Err(Error::TooShort { tokens: tokens.len(), window: length });
    }
    Ok(tokens.chunks_exact(length))
}
