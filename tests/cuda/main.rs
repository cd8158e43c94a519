//! Whole runs on a GPU. The tests named `gpu_…` need one; `emulated` runs them all on the virtual GPU.

mod calibrated;
mod emulated;
#[path = "../golden_support/mod.rs"]
mod golden_support;
mod graphs;
mod library;
mod memory;
#[path = "../small_models/mod.rs"]
mod small_models;
mod training;
