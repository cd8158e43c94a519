//! y = a + b: residual connections. Both inputs get the output's gradient.

use kernels::Device;
use kernels::ops::add as op;

use super::{Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

/// a + b, in the place of whichever nobody else holds.
///
/// # Errors
/// Shapes that differ, or no memory.
pub fn add(tape: &mut Tape, a: Var, b: Var) -> Result<Var> {
    let needed = tape.needs_grad(&[&a, &b], &[]);
    let nodes = [a.node, b.node];
    let y = sum(a.into_tensor(), b.into_tensor())?;
    if !needed {
        return Ok(Var::constant(y));
    }
    Ok(tape.record_nodes(y, nodes.to_vec(), move |_: &Device, dy| {
        Ok(vec![nodes[0].map(|_| dy.clone()), nodes[1].map(|_| dy.clone())])
    }))
}

/// a + b in the place of whichever nobody else holds; a copy where both are held.
pub(super) fn sum(a: Tensor, b: Tensor) -> Result<Tensor> {
    let (into, from) = if a.is_unique() { (a, b) } else { (b, a) };
    let (rows, cols) = (into.rows(), into.cols());
    let mut buffer = into.into_buffer()?;
    op::add_assign(&mut buffer, from.buffer())?;
    Ok(Tensor::new(buffer, rows, cols))
}
