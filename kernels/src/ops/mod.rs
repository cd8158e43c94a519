//! Every operation, one folder each, all its faces in one room:
//!
//! * `mod.rs` — the contract: formula, shapes, element types, errors, cost; checks operands, allocates outputs and
//!   workspace, and hands the kernel to [`Device::run`](crate::Device::run);
//! * `reference.rs` — naive f64 loops, for tests and benchmarks only;
//! * `cpu.rs` — the fast CPU version;
//! * `cuda.rs` — on GPUs, where there are kernels yet: the launch, of what `OP.cu` compiles to in `ptx/`;
//! * `tests.rs` — the CPU version against the reference over odd shapes, and its gradients against finite differences.
//!
//! Gradients of trainable tensors accumulate (+=): several micro-batches add up. Gradients of activations overwrite, or
//! are [added](InputGradient) to what there is.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
mod cuda;
pub mod embedding;
pub mod grad_norm;
pub mod head_loss;
pub mod layer_norm;
pub mod linear;
pub mod pack;
pub mod pack_two_four;
pub mod rms_norm;
pub mod rotary;
pub mod select;
#[cfg(test)]
pub(crate) mod testing;

use crate::device::Buffer;

/// What becomes of the gradient of an operation's input.
#[derive(Clone, Copy, Debug)]
pub enum InputGradient<'a> {
    /// It is not wanted, and not computed.
    Unwanted,
    /// It is returned.
    Alone,
    /// It is returned with this added, what the input's other uses have given: an activation of the input's shape and type.
    AddedTo(&'a Buffer),
}

impl<'a> InputGradient<'a> {
    /// True where it is computed.
    pub fn is_wanted(self) -> bool {
        !matches!(self, InputGradient::Unwanted)
    }

    /// What is added to it.
    fn sum(self) -> Option<&'a Buffer> {
        match self {
            InputGradient::AddedTo(sum) => Some(sum),
            _ => None,
        }
    }
}
