//! Tokens, packed end to end, and the windows cut from them.

use std::slice::ChunksExact;
use std::sync::Mutex;

use rayon::prelude::*;

use super::documents::Document;
use super::error::{Error, Result};
use crate::checkpoint::Tokenizer;

/// BLAKE3 of tokens: what text a run trained on, whatever its files are called.
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

/// The training text: every document's tokens, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStream {
    /// The ids.
    pub tokens: Vec<u32>,
}

/// Text handed to the threads at once, in bytes: enough for each to have several documents, little beside a model.
const BATCH_BYTES: usize = 16 << 20;

impl TokenStream {
    /// Tokenises documents and packs them end to end, each with the special tokens that the tokenizer adds (BOS in
    /// front, for the models that have it). Documents without text add nothing. Threads share the work document by
    /// document, so the tokens are those of one thread. `progress` is called after each document, from any thread.
    ///
    /// # Errors
    /// The documents' own errors, and [`Error::Tokenizer`].
    pub fn build(
        documents: impl IntoIterator<Item = Result<Document>>,
        tokenizer: &Tokenizer,
        progress: impl Fn(Progress) + Sync,
    ) -> Result<TokenStream> {
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
        let mut tokens = Vec::new();
        let mut flush = |batch: &mut Vec<Document>| -> Result<()> {
            let encoded: Vec<Vec<u32>> = batch.par_iter().map(encode).collect::<Result<_>>()?;
            tokens.reserve(encoded.iter().map(Vec::len).sum());
            encoded.iter().for_each(|ids| tokens.extend_from_slice(ids));
            batch.clear();
            Ok(())
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for document in documents {
            let document = document?;
            bytes += document.text.len();
            batch.push(document);
            if bytes >= BATCH_BYTES {
                flush(&mut batch)?;
                bytes = 0;
            }
        }
        flush(&mut batch)?;
        Ok(TokenStream { tokens })
    }

    /// The number of whole windows of `length` tokens; at least one.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn window_count(&self, length: usize) -> Result<usize> {
        windows(&self.tokens, length).map(|windows| windows.len())
    }

    /// Window `index` of `length` tokens.
    ///
    /// # Panics
    /// If `index` is not below [`TokenStream::window_count`].
    pub fn window(&self, index: usize, length: usize) -> &[u32] {
        &self.tokens[index * length..][..length]
    }
}

/// The tokens of an evaluation corpus: its documents joined by two newlines and tokenised once, as perplexity on
/// WikiText is defined.
///
/// # Errors
/// The documents' own errors, and [`Error::Tokenizer`].
pub fn evaluation_tokens(
    documents: impl IntoIterator<Item = Result<Document>>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let mut joined: Option<Document> = None;
    for document in documents {
        let document = document?;
        match &mut joined {
            None => joined = Some(document),
            Some(joined) => {
                joined.text += "\n\n";
                joined.text += &document.text;
            }
        }
    }
    encode(tokenizer, &joined.ok_or(Error::NoFiles)?)
}

pub(crate) fn encode(tokenizer: &Tokenizer, document: &Document) -> Result<Vec<u32>> {
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
