//! Text from a model, token by token.
//!
//! Each token is a forward pass over all before it: nothing is kept between tokens, so a text of T tokens costs T passes of up to
//! T tokens. Of the last position alone the head is computed.

mod sampling;
mod text;

use kernels::ops::linear;
use kernels::strips::to_rows;
use kernels::{Backend, Buffer, Category, DType};

use crate::autograd::Tape;
use crate::error::{Error, Result};
use crate::model::{self, Lora, Model, TokenBatch};
pub use sampling::{Sampler, Sampling};
pub use text::TextStream;

/// The logits `[V]` of the token after `tokens`.
///
/// # Errors
/// No tokens, more than the model's context, one outside the vocabulary, or no memory.
pub fn next_logits(model: &dyn Model, tokens: &[u32]) -> Result<Vec<f32>> {
    if tokens.is_empty() {
        return Err(Error::config("there is no token to go on from: give a prompt"));
    }
    let device = model::device_of(model);
    let batch = TokenBatch::new(tokens.to_vec(), tokens.len());
    let hidden = model.forward(&mut Tape::inference(&device), &batch)?;
    let hidden = hidden.tensor();
    let (rows, cols) = (hidden.rows(), hidden.cols());
    let values = read(hidden.buffer())?;
    // On the CPU activations lie in strips of tokens, on a GPU token by token.
    let values = if device.backend() == Backend::Cpu { to_rows(&values, rows, cols) } else { values };
    // In f32 also where activations are bf16: in eight bits of mantissa many tokens would be the likeliest.
    let last = device.upload(Category::Activations, &values[(rows - 1) * cols..])?;
    let head = model.head();
    let lora = head.lora.as_ref().map(Lora::values);
    let logits = head
        .weight
        .with_ref(|weight| linear::forward(&device, &last, 1, weight, None, lora.as_ref().map(|lora| lora.borrow())))?;
    read(&logits.y)
}

/// A buffer of activations as f32.
fn read(buffer: &Buffer) -> Result<Vec<f32>> {
    Ok(match buffer.dtype() {
        DType::BF16 => buffer.read::<half::bf16>()?.iter().map(|x| x.to_f32()).collect(),
        DType::F16 => buffer.read::<half::f16>()?.iter().map(|x| x.to_f32()).collect(),
        _ => buffer.download::<f32>()?,
    })
}

/// A text that a model goes on with, one token at a time.
pub struct Generation<'m> {
    model: &'m dyn Model,
    tokens: Vec<u32>,
    prompt: usize,
    sampler: Sampler,
}

impl<'m> Generation<'m> {
    /// One that goes on from `prompt`.
    pub fn new(model: &'m dyn Model, prompt: &[u32], sampler: Sampler) -> Generation<'m> {
        Generation { model, tokens: prompt.to_vec(), prompt: prompt.len(), sampler }
    }

    /// The next token; nothing where the model's context is full.
    ///
    /// # Errors
    /// As [`next_logits`], and logits that are not finite.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        if self.tokens.len() >= self.model.info().context {
            return Ok(None);
        }
        let token = self.sampler.choose(&next_logits(self.model, &self.tokens)?)?;
        self.tokens.push(token);
        Ok(Some(token))
    }

    /// The tokens that came after the prompt.
    pub fn made(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }
}
