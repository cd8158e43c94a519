//! Text from a model, token by token.
//!
//! Each token is a forward pass over all before it: nothing is kept between tokens, so a text of T tokens costs T passes of up to
//! T tokens. Of the last position alone the head is computed.

mod sampling;
mod text;

use std::ops::ControlFlow;

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

/// Goes on from `tokens` for at most `count` tokens, one at a time: `on_token` hears of each and says whether it was the last.
/// Ends where the model's context is full. Returns how many came.
///
/// # Errors
/// As [`next_logits`], logits that are not finite, and those of `on_token`.
pub fn generate<E: From<Error>>(
    model: &dyn Model,
    tokens: &mut Vec<u32>,
    count: usize,
    sampler: &mut Sampler,
    on_token: &mut dyn FnMut(u32) -> std::result::Result<ControlFlow<()>, E>,
) -> std::result::Result<usize, E> {
    let context = model.info().context;
    for made in 0..count {
        if tokens.len() >= context {
            return Ok(made);
        }
        let token = sampler.choose(&next_logits(model, tokens)?)?;
        tokens.push(token);
        if on_token(token)?.is_break() {
            return Ok(made + 1);
        }
    }
    Ok(count)
}
