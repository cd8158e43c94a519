//! Text on its way into training and evaluation: files → documents → tokens → sequences → batches.
//!
//! * [`read_documents`] reads text files of several forms, compressed or not, one [`Document`] at a time.
//! * [`TokenStream`] has their tokens end to end, in a mapped file; [`TokenCache`] keeps it for the next run. For evaluation
//!   documents are first joined to one ([`join`]).
//! * [`Windows`] are the sequences that training takes, and [`TrainSampler`] says in which order; [`windows`] are those of
//!   evaluation.

mod cache;
mod documents;
mod error;
mod packing;
mod sampler;
mod stream;
mod token_file;

#[cfg(test)]
mod tests;

pub use cache::{Corpus, Origin, TokenCache, Tokenized};
pub use documents::{Document, Documents, expand_patterns, is_text, read_documents};
pub use error::{Error, Result};
pub use packing::{Packing, Windows};
pub use sampler::{SamplerPosition, TrainSampler, sample};
pub use stream::{Joining, Progress, TokenStream, hash, join, windows};
