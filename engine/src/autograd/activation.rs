//! Activation functions. The formulas stand in [`kernels::ops::activation`].
//!
//! ReLU saves one bit an element, the others their input, the gate both of its inputs.

use kernels::ops::activation::{self as op, Activation};

use super::{Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

/// f(x), element by element. ReLU overwrites x where nobody else holds it.
///
/// # Errors
/// No memory.
pub fn activation(tape: &mut Tape, kind: Activation, x: Var) -> Result<Var> {
    let needed = tape.needs_grad(&[&x], &[]);
    let (rows, cols) = (x.tensor().rows(), x.tensor().cols());
    if kind == Activation::Relu {
        let node = x.node;
        let (y, signs) = op::relu(x.into_tensor().into_buffer()?, needed)?;
        let y = Tensor::new(y, rows, cols);
        return Ok(match signs {
            None => Var::constant(y),
            Some(signs) => tape.record_nodes(y, vec![node], move |_, dy| {
                let dx = op::relu_backward(dy.into_buffer()?, &signs)?;
                Ok(vec![Some(Tensor::new(dx, rows, cols))])
            }),
        });
    }
    let y = Tensor::new(op::forward(kind, x.tensor().buffer())?, rows, cols);
    if !needed {
        return Ok(Var::constant(y));
    }
    let saved = x.tensor().clone();
    Ok(tape.record(y, &[&x], move |_, dy| {
        let dx = op::backward(kind, dy.into_buffer()?, saved.buffer())?;
        Ok(vec![Some(Tensor::new(dx, rows, cols))])
    }))
}

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
