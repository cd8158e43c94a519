//! The gate of gated activation functions; those without one follow a linear layer (`linear.rs`). The formula stands in
//! [`kernels::ops::activation`]. Saves both inputs.

use kernels::ops::activation as op;

use super::{Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

/// silu(gate)∘up.
///
/// # Errors
/// Shapes that differ, or no memory.
pub fn silu_gate(tape: &mut Tape, gate: Var, up: Var) -> Result<Var> {
    let (rows, cols) = (gate.tensor().rows(), gate.tensor().cols());
    let y = Tensor::new(op::silu_gate(gate.tensor().buffer(), up.tensor().buffer())?, rows, cols);
    if !tape.needs_grad(&[&gate, &up], &[]) {
        return Ok(Var::constant(y));
    }
    let wanted = [gate.needs_grad(), up.needs_grad()];
    let (saved_gate, saved_up) = (gate.tensor().clone(), up.tensor().clone());
    Ok(tape.record(y, &[&gate, &up], move |_, dy| {
        let (d_gate, d_up) = op::silu_gate_backward(dy.into_buffer()?, saved_gate.buffer(), saved_up.buffer())?;
        let gradients = [d_gate, d_up].map(|gradient| Tensor::new(gradient, rows, cols));
        Ok(gradients.into_iter().zip(wanted).map(|(gradient, wanted)| wanted.then_some(gradient)).collect())
    }))
}
