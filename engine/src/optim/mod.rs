//! Optimizers and learning-rate schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWConfig, ParamStep, StepReport};
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
}
