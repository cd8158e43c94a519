//! Rotary position embedding (Su et al. 2021), in the layout of Hugging Face models: feature i of a head is paired with
//! feature i + d/2, where d is the number of rotated features; features past d pass through.
//!
//! For position t and pair i with angle θ = t·f_i: (a, b) → m·(a·cos θ − b·sin θ, b·cos θ + a·sin θ). The factor m is 1 but
//! for scalings that also scale attention. The map is a rotation times m, so its transpose, which backward needs, is the
//! rotation by −θ times m.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Backend, Buffer, Category, Cost, Device};
use crate::error::{Error, Result, expect_activations, expect_rows};
use crate::simd::Isa;

/// m·cos θ and m·sin θ for every position and pair, in the order in which the device's activations are read.
#[derive(Debug)]
pub struct RotaryTable {
    /// f32: on the CPU `[d/2, positions]`, on a GPU `[positions, d/2]`.
    cos: Buffer,
    /// As `cos`.
    sin: Buffer,
    pairs: usize,
}

impl RotaryTable {
    /// The table for positions 0 to `positions` − 1 and the pairs' frequencies, computed in f64. `factor` is m.
    ///
    /// # Errors
    /// No memory.
    pub fn new(device: &Device, positions: usize, frequencies: &[f64], factor: f64) -> Result<RotaryTable> {
        // transformers rounds frequency and angle to f32 before the cosine; so do we, to agree with it far out.
        let angle = |pair: usize, position: usize| f64::from(position as f32 * frequencies[pair] as f32);
        let pairs = frequencies.len();
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            let value = |pair, position| (of(angle(pair, position)) * factor) as f32;
            let places = 0..pairs * positions;
            match device.backend() {
                Backend::Cpu => places.map(|at| value(at / positions, at % positions)).collect(),
                Backend::Cuda => places.map(|at| value(at % pairs, at / pairs)).collect(),
            }
        };
        Ok(RotaryTable {
            cos: device.upload(Category::Weights, &table(f64::cos))?,
            sin: device.upload(Category::Weights, &table(f64::sin))?,
            pairs,
        })
    }

    /// Positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.pairs.max(1)
    }
}

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By θ: the function.
    Forward,
    /// By −θ: the gradient's way back.
    Backward,
}

/// Rotates the heads of `x` `[B·T, H·head_dim]` in place; row n has position n mod `tokens`.
///
/// # Errors
/// Lengths or element types that do not fit, sequences of no tokens, more rotated features than a head has, or more positions than the table covers.
pub fn rotate(
    x: &mut Buffer,
    table: &RotaryTable,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    direction: Direction,
) -> Result<()> {
    const OP: &str = "rotary";
    let width = heads * head_dim;
    let rows = expect_rows(OP, "x", x.len(), width)?;
    expect_activations(OP, "x", x)?;
    if 2 * table.pairs > head_dim {
        let reason = format!("{} features cannot rotate in heads of {head_dim}", 2 * table.pairs);
        return Err(Error::Domain { op: OP, reason });
    }
    if tokens == 0 || tokens > table.positions() {
        let reason = format!("sequences of {tokens} tokens, but positions for 1 to {}", table.positions());
        return Err(Error::Domain { op: OP, reason });
    }
    let device = x.device().clone();
    let tables = 2 * tokens * table.pairs * 4;
    let cost = Cost::new(OP, 6 * x.len() / head_dim * table.pairs, x.size_bytes() + tables, x.size_bytes());
    if device.gpu().is_some() {
        let shape = cuda::Shape { rows, tokens, heads, head_dim };
        return device.launch(cost, |gpu| cuda::rotate(gpu, x, table, shape, direction));
    }
    device.run(cost, || {
        let shape = cpu::Shape { tokens, heads, head_dim, pairs: table.pairs };
        cpu::rotate(Isa::best(), x.f32_mut(), table.cos.f32(), table.sin.f32(), shape, direction);
    });
    Ok(())
}
