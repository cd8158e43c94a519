//! Gradients of an adapter inside a weight: of W + s·M⊙(B·A) and of W⊙(B·A).
//!
//! With G = dyᵀ·x `[out, in]`, the gradient that W's entries would have,
//!
//! | | W + s·M⊙(B·A) | W⊙(B·A) |
//! |---|---|---|
//! | dB | s·(M⊙G)·Aᵀ | (W⊙G)·Aᵀ |
//! | dA | s·Bᵀ·(M⊙G) | Bᵀ·(W⊙G) |
//!
//! (Zimmer et al. 2023, "PERP"; the chain rule on [`weight::Adapted`](crate::weight::Adapted).) G is formed a tile at a time
//! and projected onto A and B at once: no `[out, in]` matrix is ever held.

mod cpu;
#[cfg(test)]
mod tests;

use super::cuda;
use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Result, expect_activations, expect_buffer, expect_dtype, expect_len};
use crate::simd::Isa;
use crate::weight::{Adapted, WeightRef};

/// dA and dB of the adapter in `weight`, added to f32 buffers `[rank, in]` and `[out, rank]`, from x `[n, in]` and
/// dy `[n, out]`.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn adapted_gradients(
    device: &Device,
    x: &Buffer,
    dy: &Buffer,
    n: usize,
    weight: Adapted<'_>,
    d_a: &mut Buffer,
    d_b: &mut Buffer,
) -> Result<()> {
    const OP: &str = "adapted_gradients";
    let Adapted { weight: frozen, rank, .. } = weight;
    let shape = cuda::Shape { n, cols: frozen.cols(), rows: frozen.rows() };
    weight.check(OP)?;
    expect_len(OP, "x", x.len(), n * shape.cols)?;
    expect_activations(OP, "x", x)?;
    expect_len(OP, "dy", dy.len(), n * shape.rows)?;
    expect_dtype(OP, "dy", dy.dtype(), x.dtype())?;
    expect_buffer(OP, "dA", d_a, DType::F32, rank * shape.cols)?;
    expect_buffer(OP, "dB", d_b, DType::F32, shape.rows * rank)?;
    let (work_len, flops) = match device.backend() {
        // G, what becomes of it, and both projections.
        Backend::Cpu => (cpu::work_len(shape, rank), shape.rows * shape.cols * (2 * n + 1 + 4 * rank)),
        Backend::Cuda => {
            (cuda::adapted::parts_len(x.dtype(), shape, rank), cuda::adapted::gradient_flops(x.dtype(), shape, rank))
        }
    };
    let mut work = device.alloc(Category::Workspace, DType::F32, work_len)?;
    let gradients = d_a.size_bytes() + d_b.size_bytes();
    let cost = Cost::new(
        OP,
        flops,
        x.size_bytes() + dy.size_bytes() + WeightRef::Adapted(weight).size_bytes() + gradients,
        gradients,
    );
    if device.gpu().is_some() {
        return device.launch(cost, |gpu| cuda::adapted::gradients(gpu, shape, (x, dy), weight, (d_a, d_b), &mut work));
    }
    device.run(cost, || {
        cpu::gradients(Isa::best(), shape, (x.f32(), dy.f32()), weight, (d_a.f32_mut(), d_b.f32_mut()), work.f32_mut());
    });
    Ok(())
}
