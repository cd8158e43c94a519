//! Causal attention with grouped key/value heads. The formulas stand in [`kernels::ops::attention`].
//!
//! Saves q, k, v, the output and one number a query and head; the probabilities are computed again.

use kernels::ops::attention::{self as op, Attention};

use super::{Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

/// out `[B·T, H·hd]` from q `[B·T, H·hd]` and k, v `[B·T, Hkv·hd]`.
///
/// # Errors
/// Shapes that do not fit, or no memory.
pub fn attention(tape: &mut Tape, q: Var, k: Var, v: Var, shape: &Attention) -> Result<Var> {
    let (out, lse) = op::forward(shape, q.tensor().buffer(), k.tensor().buffer(), v.tensor().buffer())?;
    let out = Tensor::new(out, q.tensor().rows(), q.tensor().cols());
    if !tape.needs_grad(&[&q, &k, &v], &[]) {
        return Ok(Var::constant(out));
    }
    let (saved_out, shape) = (out.clone(), *shape);
    let wanted = [&q, &k, &v].map(Var::needs_grad);
    let inputs = [q, k, v];
    let saved = inputs.clone().map(Var::into_tensor);
    Ok(tape.record(out, &inputs.each_ref(), move |_, d_out| {
        let [q, k, v] = saved;
        let gradients =
            op::backward(&shape, d_out.into_buffer()?, q.buffer(), k.buffer(), v.buffer(), saved_out.buffer(), &lse)?;
        let gradient = |of: &Tensor, buffer| Tensor::new(buffer, of.rows(), of.cols());
        let all = [gradient(&q, gradients.dq), gradient(&k, gradients.dk), gradient(&v, gradients.dv)];
        Ok(all.into_iter().zip(wanted).map(|(gradient, wanted)| wanted.then_some(gradient)).collect())
    }))
}
