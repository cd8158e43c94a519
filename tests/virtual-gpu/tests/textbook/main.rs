//! Textbook programs, compiled by NVRTC from the sources in `programs/`, against plain Rust.

mod algorithms;
mod gpu;
mod language;
mod numbers;
mod tensor;
