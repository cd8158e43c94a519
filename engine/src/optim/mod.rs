//! Optimizers and learning-rate schedules.

mod adamw;
mod schedule;

pub(crate) use adamw::KeptStep;
pub use adamw::{AdamW, AdamWConfig, ParamStep, PendingStep, StepReport};
pub use schedule::LinearSchedule;

/// The result of optimizer calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From an operation or a device.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// A gradient holds an infinity or a NaN; the step was not taken.
    #[error(
        "step {step}: the gradient of {tensor} is not finite; the parameters are as step {} left them. \
         A smaller learning rate, or --clip, usually helps", step - 1
    )]
    NonFinite {
        /// The step, from 1.
        step: usize,
        /// The first tensor at fault.
        tensor: String,
    },
    /// A step over another number of tensors than the optimizer was made for.
    #[error("the optimizer was made for {expected} tensors and got {got}: a step takes all of them, in the same order")]
    TensorCount {
        /// Tensors that the optimizer was made for.
        expected: usize,
        /// Tensors of the step.
        got: usize,
    },
    /// A tensor of another length than the optimizer was made for.
    #[error("{tensor}: the optimizer was made for {expected} elements, and its {what} has {got}")]
    TensorLength {
        /// The tensor's name.
        tensor: String,
        /// Its value or its gradient.
        what: &'static str,
        /// Elements that the optimizer was made for.
        expected: usize,
        /// Elements found.
        got: usize,
    },
    /// A warm-up that is no share of the steps.
    #[error("a warm-up of {0} is outside [0, 1]: it is the share of the steps over which the learning rate rises")]
    Warmup(f64),
}
