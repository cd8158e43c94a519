//! OPT (Zhang et al. 2022): learned positions that start two rows late, LayerNorm before each block (350M: after), ReLU,
//! biases everywhere, the head tied to the embedding.

mod config;
mod network;

pub use config::{OptConfig, builtin};
