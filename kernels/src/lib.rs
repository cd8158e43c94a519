//! Devices, and every compute operation of perp-engine.
//!
//! * [`device`] — where numbers live: buffers, the accountant that counts every byte, and the record of what each
//!   kernel costs. The `Meta` device runs the same code and allocates nothing.
//! * [`weight`] — what a frozen weight is: dense, or packed sparse.
//! * [`ops`] — one folder per operation, all its faces in one room.
//! * [`peak`] — what the machine can do at most, to hold times against.
//! * [`strips`], [`spmm`], [`narrow`] and [`simd`] — what the CPU faces are built from: how activations lie in memory, products in
//!   which a zero costs nothing, products of few columns, and vectors.
//!
//! The crate knows nothing of models, tapes or training. Every tensor here is a [`device::Buffer`] plus the dimensions
//! that the operation states; weights are `[out, in]`, row-major. Activations of n tokens and F features are written `[n, F]`;
//! in what order their elements stand is the backend's own: the CPU keeps them in [`strips`].

pub mod device;
pub mod error;
pub mod narrow;
pub mod ops;
pub mod peak;
pub(crate) mod shared;
pub mod simd;
pub mod spmm;
pub mod strips;
pub(crate) mod tile;
pub mod weight;

pub use device::{Backend, Buffer, Category, Cost, DType, Device};
pub use error::{Error, Result};
