//! The LM head with its cross-entropy. The formulas stand in [`kernels::ops::head_loss`].
//!
//! This is where backward begins: logits exist for a few tokens at a time, so the gradients of the hidden states and of the
//! head are taken in the same pass that computes the loss, and nothing is saved. The losses stay on the device until they
//! are asked for.

use kernels::ops::head_loss::{self as op, RowLosses};

use super::Var;
use crate::error::Result;
use crate::model::{Head, Lora};
use crate::tensor::Tensor;

/// A loss, and the gradient to start a tape's backward pass with.
#[derive(Debug)]
pub struct Loss {
    /// Of each row; 0 without a target.
    pub rows: RowLosses,
    /// scale · d sum / d hidden, where something upstream trains.
    pub gradient: Option<Tensor>,
}

/// The loss of `targets` given the head's input, and the gradients of `scale` times it. The head's trainable tensors
/// accumulate theirs.
///
/// # Errors
/// A target outside the vocabulary, shapes that do not fit, or no memory.
pub fn head_loss(head: &Head, hidden: &Var, targets: &[u32], scale: f32) -> Result<Loss> {
    let lora = head.lora.as_ref().map(Lora::values);
    let trained_lora = head.lora.as_ref().filter(|lora| lora.is_trainable());
    let trained_weight = head.weight.param().filter(|param| param.is_trainable());
    let mut d_lora = match trained_lora {
        Some(lora) => Some((lora.a.take_grad()?, lora.b.take_grad()?)),
        None => None,
    };
    let mut d_weight = trained_weight.map(|param| param.take_grad()).transpose()?;
    let losses = head.weight.with_ref(|weight| {
        let wanted = op::Wanted {
            scale,
            hidden: hidden.needs_grad(),
            lora: d_lora.as_mut().map(|(a, b)| (a, b)),
            weight: d_weight.as_mut(),
        };
        let head = op::Head { weight, lora: lora.as_ref().map(|lora| lora.borrow()) };
        op::loss_and_gradients(hidden.tensor().buffer(), head, targets, wanted)
    })?;
    if let Some((lora, (d_a, d_b))) = trained_lora.zip(d_lora) {
        lora.a.put_grad(d_a);
        lora.b.put_grad(d_b);
    }
    if let Some((param, d_weight)) = trained_weight.zip(d_weight) {
        param.put_grad(d_weight);
    }
    let (rows, cols) = (hidden.tensor().rows(), hidden.tensor().cols());
    Ok(Loss { rows: losses.rows, gradient: losses.d_hidden.map(|gradient| Tensor::new(gradient, rows, cols)) })
}

/// The loss of each row of the head's input; rows without a target have loss 0.
///
/// # Errors
/// As [`head_loss`].
pub fn head_loss_values(head: &Head, hidden: &Tensor, targets: &[u32]) -> Result<RowLosses> {
    let lora = head.lora.as_ref().map(Lora::values);
    let values = head.weight.with_ref(|weight| {
        let head = op::Head { weight, lora: lora.as_ref().map(|lora| lora.borrow()) };
        op::loss(hidden.buffer(), head, targets)
    })?;
    Ok(values)
}
