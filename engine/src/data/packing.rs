//! How documents fill the sequences that training takes.

use std::fmt;
use std::str::FromStr;

use super::error::{Error, Result};
use super::stream::{TokenStream, windows};

/// How documents fill sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// End to end, cut into sequences of one length; the tail is dropped.
    Pack,
    /// Each in a sequence of its own: what is longer is cut off, what is shorter is padded, and pads have no loss.
    Pad,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Packing::Pack => "pack",
            Packing::Pad => "pad",
        })
    }
}

impl FromStr for Packing {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Packing, String> {
        match text {
            "pack" => Ok(Packing::Pack),
            "pad" => Ok(Packing::Pad),
            _ => Err("expected pack (documents end to end) or pad (a document a sequence)".into()),
        }
    }
}

/// The sequences of a text.
#[derive(Clone, Debug)]
pub struct Windows {
    stream: TokenStream,
    packing: Packing,
    length: usize,
    /// The documents that are long enough to predict something, where not all are.
    documents: Option<Vec<usize>>,
    count: usize,
}

impl Windows {
    /// Sequences of `length` tokens; under [`Packing::Pad`] of up to so many, of every document with a token to predict.
    ///
    /// # Errors
    /// [`Error::TooShort`] if there is not one, [`Error::WindowLength`] if they would predict nothing.
    pub fn new(stream: TokenStream, packing: Packing, length: usize) -> Result<Windows> {
        let (count, documents) = match packing {
            Packing::Pack => (windows(stream.tokens(), length)?.len(), None),
            Packing::Pad => {
                if length < 2 {
                    return Err(Error::WindowLength(length));
                }
                let fits = |index: &usize| stream.document(*index).len() >= 2;
                let all = 0..stream.documents();
                let documents = (!all.clone().all(|index| fits(&index))).then(|| all.filter(fits).collect::<Vec<_>>());
                let count = documents.as_ref().map_or(stream.documents(), Vec::len);
                if count == 0 {
                    return Err(Error::TooShort { tokens: stream.tokens().len(), window: 2 });
                }
                (count, documents)
            }
        };
        Ok(Windows { stream, packing, length, documents, count })
    }

    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The text.
    pub fn stream(&self) -> &TokenStream {
        &self.stream
    }

    /// How they are filled.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// The tokens of a sequence, without pads: at least two, at most the length.
    ///
    /// # Panics
    /// If `index` is not below [`Windows::count`].
    pub fn tokens(&self, index: usize) -> &[u32] {
        match self.packing {
            Packing::Pack => &self.stream.tokens()[index * self.length..][..self.length],
            Packing::Pad => {
                let document = self.documents.as_ref().map_or(index, |documents| documents[index]);
                let tokens = self.stream.document(document);
                &tokens[..tokens.len().min(self.length)]
            }
        }
    }
}
