//! What can go wrong in training, whatever part it comes from.

/// The result of engine calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure that names its culprit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From an operation or a device.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// From a model folder, a weight file or an adapter.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// From text or tokens.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// From the hub.
    #[error(transparent)]
    Hub(#[from] crate::hub::Error),
    /// From pruning.
    #[error(transparent)]
    Prune(#[from] crate::prune::Error),
    /// From the optimizer.
    #[error(transparent)]
    Optim(#[from] crate::optim::Error),
    /// Training that left the finite numbers.
    #[error("step {step}: {what}. A smaller learning rate, or --clip, usually helps")]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// What is not finite, and the first tensor at fault.
        what: String,
    },
    /// A weight that became larger than its element type holds.
    #[error("{tensor}: {reason}; {remedy}")]
    Overflow {
        /// The weight.
        tensor: String,
        /// The entry, and what it becomes.
        reason: String,
        /// What helps.
        remedy: &'static str,
    },
    /// A configuration that cannot be run; says what would be right.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// True where a loss, a gradient or a trained value is an infinity or a NaN.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Error::Diverged { .. } | Error::Optim(crate::optim::Error::NonFinite { .. }))
    }

    /// A configuration error.
    pub fn config(message: impl Into<String>) -> Error {
        Error::Config(message.into())
    }
}
