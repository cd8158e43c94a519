//! Embeddings. The formulas stand in [`kernels::ops::embedding`].
//!
//! A frozen table needs no gradient, and tokens have none: then nothing is recorded.

use std::sync::Arc;

use kernels::ops::embedding as op;

use super::{Tape, Var};
use crate::error::Result;
use crate::model::Embedding;
use crate::tensor::Tensor;

/// Rows of the token embedding `[N, D]`.
///
/// # Errors
/// A token outside the vocabulary, or no memory.
pub fn embedding(tape: &mut Tape, table: &Embedding, tokens: &Arc<[u32]>) -> Result<Var> {
    let y = table.weight.with_ref(|weight| op::lookup(tape.device(), tokens, weight))?;
    let y = Tensor::new(y, tokens.len(), table.weight.cols());
    let param = table.weight.param();
    if !tape.needs_grad(&[], &[param.map(Arc::as_ref)]) {
        return Ok(Var::constant(y));
    }
    let (param, tokens) = (param.cloned().expect("only parameters train"), tokens.clone());
    Ok(tape.record(y, &[], move |_, dy| {
        param.accumulate(|d_table| op::lookup_gradient(dy.buffer(), &tokens, d_table))?;
        Ok(Vec::new())
    }))
}

/// x + the position embedding's rows `offset` to `offset + seq_len`, repeated for each sequence; in x's place where nobody
/// else holds it.
///
/// # Errors
/// More positions than the table has, or no memory.
pub fn add_positions(tape: &mut Tape, x: Var, table: &Embedding, seq_len: usize, offset: usize) -> Result<Var> {
    let param = table.weight.param();
    let needed = tape.needs_grad(&[&x], &[param.map(Arc::as_ref)]);
    let (rows, cols, node) = (x.tensor().rows(), x.tensor().cols(), x.node);
    let mut y = x.into_tensor().into_buffer()?;
    table.weight.with_ref(|weight| op::add_positions(&mut y, weight, seq_len, offset))?;
    let y = Tensor::new(y, rows, cols);
    if !needed {
        return Ok(Var::constant(y));
    }
    let param = param.filter(|param| param.is_trainable()).cloned();
    Ok(tape.record_nodes(y, vec![node], move |_, dy| {
        if let Some(param) = param {
            param.accumulate(|d_table| op::position_gradient(dy.buffer(), cols, seq_len, offset, d_table))?;
        }
        Ok(vec![node.map(|_| dy)])
    }))
}
