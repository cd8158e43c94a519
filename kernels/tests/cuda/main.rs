//! The Cuda device and its kernels, against the f64 references.
//!
//! The tests whose names hold `gpu` need one, and are ignored where `cargo test` is not asked for them:
//!
//! ```text
//! cargo test --release --workspace --test cuda -- --ignored gpu_ --test-threads 1      # on a machine with a GPU
//! ```
//!
//! Everywhere else `emulated` runs them: it starts this program again with the virtual GPU's `libcuda.so` on the library
//! path, and holds what that GPU counted against the least that an operation must move.

mod activation;
mod adamw;
mod add;
mod attention;
mod bias_gradient;
mod device;
mod embedding;
mod emulated;
mod grad_norm;
mod head_loss;
mod layer_norm;
mod linear;
mod pack;
mod pack_two_four;
mod rms_norm;
mod rotary;
mod select;
mod support;
mod traffic;
