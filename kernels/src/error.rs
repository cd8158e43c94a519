//! What can go wrong inside an operation.

use crate::device::{Backend, Buffer, CudaError, DType};

/// The result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure that names the operation and the value at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A dimension does not fit the operation.
    #[error("{op}: {what} has {got} elements, expected {expected}")]
    Length {
        /// The operation.
        op: &'static str,
        /// The operand, by its name in the operation's contract.
        what: &'static str,
        /// Elements that the dimensions ask for.
        expected: usize,
        /// Elements that the operand has.
        got: usize,
    },
    /// The operation is not defined for this element type.
    #[error("{op}: {what} is {got}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The operand.
        what: &'static str,
        /// The type that the operation takes.
        expected: DType,
        /// The type found.
        got: DType,
    },
    /// A dimension or parameter is outside the operation's domain.
    #[error("{op}: {reason}")]
    Domain {
        /// The operation.
        op: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The device has not enough memory left.
    #[error(
        "out of memory: {requested} bytes for {category} asked, {in_use} of {limit} bytes in use; \
         a smaller batch, a shorter sequence or activation checkpointing needs less"
    )]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// The category of the allocation.
        category: &'static str,
        /// Bytes in use when asked.
        in_use: u64,
        /// The device's limit in bytes.
        limit: u64,
    },
    /// The device has no kernel for this.
    #[error("{op}: {what} is not available on {device}; use the CPU")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// The operation itself, or an operand or case of it.
        what: String,
        /// The device's name.
        device: &'static str,
    },
    /// The GPU or its driver failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Checks that an operand has the length its dimensions say.
pub(crate) fn expect_len(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Length { op, what, expected, got }) }
}

/// Checks that an operand has the element type and the length that the operation asks for.
pub(crate) fn expect_buffer(
    op: &'static str,
    what: &'static str,
    got: &Buffer,
    dtype: DType,
    len: usize,
) -> Result<()> {
    expect_dtype(op, what, got.dtype(), dtype)?;
    expect_len(op, what, got.len(), len)
}

/// The number of rows of `cols` features in `len` elements.
pub(crate) fn expect_rows(op: &'static str, what: &'static str, len: usize, cols: usize) -> Result<usize> {
    if cols == 0 {
        return Err(Error::Domain { op, reason: format!("rows of {what} have no features, expected at least one") });
    }
    expect_len(op, what, len, len / cols * cols)?;
    Ok(len / cols)
}

/// Checks that an operand has the element type that the operation takes.
pub(crate) fn expect_dtype(op: &'static str, what: &'static str, got: DType, expected: DType) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::DType { op, what, expected, got }) }
}

/// Checks that activations have an element type that their device computes in: f32 on the CPU, any float on a GPU.
pub(crate) fn expect_activations(op: &'static str, what: &'static str, x: &Buffer) -> Result<()> {
    match (x.device().backend(), x.dtype()) {
        (Backend::Cpu, DType::F32) | (Backend::Cuda, DType::F32 | DType::F16 | DType::BF16) => Ok(()),
        (backend, got) => Err(Error::DType { op, what, expected: backend.compute_dtype(), got }),
    }
}
