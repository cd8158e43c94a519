//! y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ. The gradients stand in [`kernels::ops::linear`].
//!
//! Saves x only where A, B or W train: a frozen weight's gradient is never formed, so its input is not needed.

use std::sync::Arc;

use kernels::ops::linear as op;

use super::{Tape, Var};
use crate::error::Result;
use crate::model::Linear;
use crate::tensor::Tensor;

/// Applies a linear layer to `[n, in]`.
///
/// # Errors
/// Shapes that do not fit, or no memory.
pub fn linear(tape: &mut Tape, layer: &Arc<Linear>, x: &Var) -> Result<Var> {
    let n = x.tensor().rows();
    let forward = {
        let bias = layer.bias.as_ref().map(|bias| bias.value());
        let lora = layer.lora.as_ref().map(|lora| lora.values());
        layer.weight.with_ref(|weight| {
            op::forward(
                tape.device(),
                x.tensor().buffer(),
                n,
                weight,
                bias.as_deref(),
                lora.as_ref().map(|lora| lora.borrow()),
            )
        })?
    };
    let y = Tensor::new(forward.y, n, layer.weight.rows());
    if !tape.needs_grad(&[x], &layer.params()) {
        return Ok(Var::constant(y));
    }
    let lora_trains = layer.lora.as_ref().is_some_and(|lora| lora.is_trainable());
    let saved_x = (lora_trains || layer.weight.is_trainable()).then(|| x.tensor().clone());
    let saved_u = forward.u.filter(|_| lora_trains);
    let (layer, wanted) = (layer.clone(), x.needs_grad());
    Ok(tape.record(y, &[x], move |device, dy| {
        let dy_buffer = dy.buffer();
        if let Some(bias) = layer.bias.as_ref().filter(|bias| bias.is_trainable()) {
            bias.accumulate(|d_bias| op::bias_gradient(device, dy_buffer, n, d_bias))?;
        }
        let lora = layer.lora.as_ref().map(|lora| lora.values());
        let lora_ref = lora.as_ref().map(|lora| lora.borrow());
        layer.weight.with_ref(|weight| {
            let v = match lora_ref {
                Some(lora) if lora_trains || wanted => Some(op::lora_down(device, dy_buffer, n, weight, lora)?),
                _ => None,
            };
            if let (Some(x), Some(u), Some(v), Some(lora)) = (&saved_x, &saved_u, &v, &layer.lora) {
                let (mut d_a, mut d_b) = (lora.a.take_grad()?, lora.b.take_grad()?);
                op::lora_gradients(device, x.buffer(), dy_buffer, n, (u, v), &mut d_a, &mut d_b)?;
                lora.a.put_grad(d_a);
                lora.b.put_grad(d_b);
            }
            if let (Some(x), Some(param)) = (&saved_x, layer.weight.param().filter(|param| param.is_trainable())) {
                param.accumulate(|d_w| op::weight_gradient(device, x.buffer(), dy_buffer, n, d_w))?;
            }
            let dx = if wanted {
                let dx = op::backward_input(device, dy_buffer, n, weight, lora_ref.zip(v.as_ref()))?;
                Some(Tensor::new(dx, n, weight.cols()))
            } else {
                None
            };
            Ok(vec![dx])
        })
    }))
}
