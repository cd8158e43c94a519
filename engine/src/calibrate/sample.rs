//! Calibration windows out of a text, as Wanda, SparseGPT and GPTQ take them from C4: a document of those that are long enough
//! at random, and of its tokens a window at a random place.

use rand::Rng;

use crate::data::{Error, Result, TokenStream};
use crate::model::named_rng;

/// `count` windows of `length` tokens, each within one document; documents and places are drawn uniformly, with replacement,
/// from the seed.
///
/// # Errors
/// [`Error::NoWindow`] where every document is shorter than a window; [`Error::WindowLength`].
pub fn sample_windows(stream: &TokenStream, count: usize, length: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
    if length < 2 {
        return Err(Error::WindowLength(length));
    }
    let lengths = || (0..stream.documents()).map(|index| stream.document(index).len());
    let open = lengths().filter(|tokens| *tokens >= length).count();
    if open == 0 {
        let longest = lengths().max().unwrap_or(0);
        return Err(Error::NoWindow { window: length, documents: stream.documents(), longest });
    }
    let mut rng = named_rng(seed, "calibration");
    // The high half of a 128-bit product: uniform up to a bias of n/2⁶⁴.
    let mut below = |n: usize| ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize;
    // Which of the open documents, in the order of drawing; then one pass finds them all.
    let ranks: Vec<usize> = (0..count).map(|_| below(open)).collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|draw| ranks[*draw]);
    let mut documents = vec![0; count];
    let mut rank = 0;
    let mut wanted = order.into_iter().peekable();
    for (index, tokens) in lengths().enumerate() {
        if tokens >= length {
            while let Some(draw) = wanted.next_if(|draw| ranks[*draw] == rank) {
                documents[draw] = index;
            }
            rank += 1;
        }
    }
    let windows = documents.into_iter().map(|index| {
        let tokens = stream.document(index);
        let first = below(tokens.len() - length + 1);
        tokens[first..first + length].to_vec()
    });
    Ok(windows.collect())
}
