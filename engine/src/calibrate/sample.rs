//! Calibration windows out of documents, as Wanda, SparseGPT and GPTQ take them from C4: a document at random, drawn again while
//! it is shorter than a window, and of its tokens a window at a random place.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rand::Rng;

use crate::checkpoint::Tokenizer;
use crate::data::{Document, Error, Result, encode};
use crate::model::named_rng;

/// Special tokens that a tokenizer may add to a document.
const SPECIAL_TOKENS: usize = 4;

/// `count` windows of `length` tokens, each within one document; documents and places are drawn uniformly, with replacement,
/// from the seed. `progress` hears of windows drawn. Only documents that are drawn are tokenised.
///
/// # Errors
/// The documents' own errors; [`Error::NoWindow`] where every document is shorter than a window; [`Error::WindowLength`];
/// [`Error::Tokenizer`].
pub fn sample_windows(
    documents: impl IntoIterator<Item = Result<Document>>,
    tokenizer: &Tokenizer,
    count: usize,
    length: usize,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    if length < 2 {
        return Err(Error::WindowLength(length));
    }
    // A token takes at least a byte, so most short documents are told without a tokenizer, and are not kept.
    let mut all = 0;
    let mut candidates: Vec<Document> = Vec::new();
    for document in documents {
        let document = document?;
        all += 1;
        if document.text.len() + SPECIAL_TOKENS >= length {
            candidates.push(document);
        }
    }
    let mut rng = named_rng(seed, "calibration");
    // The high half of a 128-bit product: uniform up to a bias of n/2⁶⁴.
    let mut below = |n: usize| ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize;
    let mut open: Vec<usize> = (0..candidates.len()).collect();
    let mut tokens: HashMap<usize, Vec<u32>> = HashMap::new();
    let mut longest = 0;
    let mut windows = Vec::with_capacity(count);
    while windows.len() < count {
        if open.is_empty() {
            return Err(Error::NoWindow { window: length, documents: all, longest });
        }
        let place = below(open.len());
        let index = open[place];
        let ids = match tokens.entry(index) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(encode(tokenizer, &candidates[index])?),
        };
        if ids.len() < length {
            longest = longest.max(ids.len());
            open.swap_remove(place);
            continue;
        }
        let first = below(ids.len() - length + 1);
        windows.push(ids[first..first + length].to_vec());
        progress(windows.len());
    }
    Ok(windows)
}
