//! Text on its way into training and evaluation: files → documents → tokens → windows → batches.
//!
//! * [`read_documents`] reads .txt and .jsonl files, one [`Document`] at a time.
//! * [`TokenStream`] packs documents end to end for training; [`evaluation_tokens`] joins them for evaluation.
//! * [`windows`] cuts a stream into windows of one length; [`TrainSampler`] says in which order training takes them.

mod documents;
mod error;
mod sampler;
mod stream;

#[cfg(test)]
mod tests;

pub use documents::{Document, Documents, read_documents};
pub use error::{Error, Result};
pub use sampler::{SamplerPosition, TrainSampler};
pub(crate) use stream::encode;
pub use stream::{Progress, TokenStream, evaluation_tokens, hash, windows};
