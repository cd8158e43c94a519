//! Textbook programs, compiled by NVRTC from the sources in `programs/`, against plain Rust.

mod algorithms;
mod gpu;
mod groups;
mod language;
mod numbers;
mod objects;
mod orders;
mod printing;
mod products;
mod rows;
mod sharing;
mod signals;
mod tensor;
