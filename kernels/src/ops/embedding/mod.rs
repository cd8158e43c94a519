//! Embeddings: rows of a table, by token or by position.
//!
//! Tokens: `y_n = E[token_n]`. Positions: `y_n += P[offset + n mod T]` (OPT's table starts two rows late). Backward adds each
//! row's gradient to the table's row; several tokens may share one.

mod cpu;
mod cuda;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Error, Result, expect_activations, expect_dtype, expect_len, expect_rows};
use crate::simd::Isa;
use crate::weight::WeightRef;

/// y `[N, D]` from a table `[V, D]`, in the device's compute type.
///
/// # Errors
/// A token that the table does not have, on a GPU a packed sparse table, or no memory.
pub fn lookup(device: &Device, tokens: &[u32], table: WeightRef<'_>) -> Result<Buffer> {
    const OP: &str = "embedding";
    check_tokens(OP, tokens, table.rows())?;
    let cols = table.cols();
    check_table(OP, table)?;
    let mut y = device.alloc(Category::Activations, device.compute_dtype(), tokens.len() * cols)?;
    let row_bytes = table.size_bytes() / table.rows().max(1);
    let cost = Cost::new(OP, 0, tokens.len() * (row_bytes + 4), y.size_bytes());
    let on_gpu = device.backend() == Backend::Cuda;
    let ids = on_gpu.then(|| device.alloc(Category::Workspace, DType::U32, tokens.len())).transpose()?;
    if let (Some(_), Some(mut ids)) = (device.gpu(), ids) {
        let entries = cuda::entries(OP, table)?;
        device.launch(cost, |gpu| cuda::lookup(gpu, tokens, entries, &mut ids, &mut y))?;
        return Ok(y);
    }
    device.run(cost, || cpu::lookup(Isa::best(), tokens, table, y.f32_mut()));
    Ok(y)
}

/// y_n += P[offset + n mod `tokens`], in place.
///
/// # Errors
/// More positions than the table has, lengths or element types that do not fit, or on a GPU a packed sparse table.
pub fn add_positions(y: &mut Buffer, table: WeightRef<'_>, tokens: usize, offset: usize) -> Result<()> {
    const OP: &str = "position_embedding";
    let cols = table.cols();
    let rows = expect_rows(OP, "y", y.len(), cols)?;
    expect_activations(OP, "y", y)?;
    check_table(OP, table)?;
    check_positions(OP, tokens, offset, table.rows())?;
    let device = y.device().clone();
    let table_bytes = table.size_bytes() / table.rows().max(1) * tokens;
    let cost = Cost::new(OP, y.len(), y.size_bytes() + table_bytes, y.size_bytes());
    if device.gpu().is_some() {
        let entries = cuda::entries(OP, table)?;
        let positions = cuda::Positions { rows, cols, tokens, offset };
        return device.launch(cost, |gpu| cuda::add_positions(gpu, entries, positions, y));
    }
    device.run(cost, || cpu::add_positions(Isa::best(), table, tokens, offset, y.f32_mut()));
    Ok(())
}

/// `dE[token_n] += dy_n`, into an f32 `[V, D]`.
///
/// # Errors
/// A token that the table does not have, or lengths or element types that do not fit.
pub fn lookup_gradient(dy: &Buffer, tokens: &[u32], d_table: &mut Buffer) -> Result<()> {
    const OP: &str = "embedding_gradient";
    if tokens.is_empty() {
        return expect_len(OP, "dy", dy.len(), 0);
    }
    let cols = dy.len() / tokens.len();
    expect_len(OP, "dy", dy.len(), tokens.len() * cols)?;
    check_tokens(OP, tokens, expect_rows(OP, "d_table", d_table.len(), cols)?)?;
    check_gradient_types(OP, dy, d_table)?;
    let device = dy.device().clone();
    let cost = Cost::new(OP, dy.len(), 2 * dy.size_bytes() + tokens.len() * 4, dy.size_bytes());
    let on_gpu = device.backend() == Backend::Cuda;
    let segments = on_gpu.then(|| cuda::Segments::alloc(&device, tokens.len())).transpose()?;
    if let (Some(_), Some(mut segments)) = (device.gpu(), segments) {
        return device.launch(cost, |gpu| cuda::lookup_gradient(gpu, dy, tokens, &mut segments, d_table));
    }
    device.run(cost, || {
        cpu::add_rows(Isa::best(), dy.f32(), (tokens.len(), cols), |n| tokens[n] as usize, d_table.f32_mut());
    });
    Ok(())
}

/// dP[offset + n mod `tokens`] += dy_n, into an f32 `[positions, D]` whose rows have `cols` features.
///
/// # Errors
/// More positions than the table has, or lengths or element types that do not fit.
pub fn position_gradient(dy: &Buffer, cols: usize, tokens: usize, offset: usize, d_table: &mut Buffer) -> Result<()> {
    const OP: &str = "position_embedding_gradient";
    let n = expect_rows(OP, "dy", dy.len(), cols)?;
    check_positions(OP, tokens, offset, expect_rows(OP, "d_table", d_table.len(), cols)?)?;
    check_gradient_types(OP, dy, d_table)?;
    let device = dy.device().clone();
    let cost = Cost::new(OP, dy.len(), 2 * dy.size_bytes(), dy.size_bytes());
    if device.gpu().is_some() {
        let positions = cuda::Positions { rows: n, cols, tokens, offset };
        return device.launch(cost, |gpu| cuda::position_gradient(gpu, dy, positions, d_table));
    }
    device.run(cost, || {
        cpu::add_rows(Isa::best(), dy.f32(), (n, cols), |n| offset + n % tokens, d_table.f32_mut());
    });
    Ok(())
}

/// What [`lookup_gradient`] uploads to a GPU for `tokens`: of each segment of equal tokens that token and its first and last place
/// among the rows, u32 `[N, 4]` with empty segments behind, and the rows, those of a token together and in their order, u32 `[N]`.
pub fn segments(tokens: &[u32]) -> (Vec<[u32; 4]>, Vec<u32>) {
    let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
    order.sort_by_key(|row| tokens[*row as usize]);
    let mut table: Vec<[u32; 4]> = Vec::with_capacity(tokens.len());
    let mut first = 0;
    for rows in order.chunk_by(|a, b| tokens[*a as usize] == tokens[*b as usize]) {
        let end = first + rows.len() as u32;
        table.push([tokens[rows[0] as usize], first, end, 0]);
        first = end;
    }
    table.resize(tokens.len(), [0; 4]);
    (table, order)
}

fn check_table(op: &'static str, table: WeightRef<'_>) -> Result<()> {
    if let WeightRef::Trainable { value, rows, cols, .. } = table {
        expect_len(op, "table", value.len(), rows * cols)?;
        expect_dtype(op, "table", value.dtype(), DType::F32)?;
    }
    if let WeightRef::Adapted(adapted) = table {
        adapted.check_on_cpu(op)?;
    }
    expect_rows(op, "table", table.rows() * table.cols(), table.cols()).map(drop)
}

fn check_gradient_types(op: &'static str, dy: &Buffer, d_table: &Buffer) -> Result<()> {
    expect_activations(op, "dy", dy)?;
    expect_dtype(op, "d_table", d_table.dtype(), DType::F32)
}

fn check_tokens(op: &'static str, tokens: &[u32], rows: usize) -> Result<()> {
    match tokens.iter().find(|token| **token as usize >= rows) {
        None => Ok(()),
        Some(token) => {
            let reason = format!("token {token} is outside the vocabulary of {rows}: the tokenizer is another model's");
            Err(Error::Domain { op, reason })
        }
    }
}

fn check_positions(op: &'static str, tokens: usize, offset: usize, rows: usize) -> Result<()> {
    if tokens == 0 || offset + tokens > rows {
        let most = rows.saturating_sub(offset);
        let reason = format!("sequences of {tokens} tokens, but the model has positions for 1 to {most}");
        return Err(Error::Domain { op, reason });
    }
    Ok(())
}
