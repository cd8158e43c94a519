//! Rotary position embedding. The formula stands in [`kernels::ops::rotary`]. Its gradient is the rotation back; nothing
//! is saved.

use std::sync::Arc;

use kernels::ops::rotary::{Direction, RotaryTable, rotate};

use super::{Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

/// Rotates the heads of x `[B·T, H·head_dim]`, in x's place where nobody else holds it.
///
/// # Errors
/// More positions than the table has, or no memory.
pub fn rotary(
    tape: &mut Tape,
    x: Var,
    table: &Arc<RotaryTable>,
    seq_len: usize,
    heads: usize,
    head_dim: usize,
) -> Result<Var> {
    let needed = tape.needs_grad(&[&x], &[]);
    let (rows, cols, node) = (x.tensor().rows(), x.tensor().cols(), x.node);
    let mut y = x.into_tensor().into_buffer()?;
    rotate(&mut y, table, seq_len, heads, head_dim, Direction::Forward)?;
    let y = Tensor::new(y, rows, cols);
    if !needed {
        return Ok(Var::constant(y));
    }
    let table = table.clone();
    Ok(tape.record_nodes(y, vec![node], move |_, dy| {
        let mut dx = dy.into_buffer()?;
        rotate(&mut dx, &table, seq_len, heads, head_dim, Direction::Backward)?;
        Ok(vec![Some(Tensor::new(dx, rows, cols))])
    }))
}
