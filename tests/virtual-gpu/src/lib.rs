//! A virtual GPU: CUDA's driver interface over an interpreter of PTX.
//!
//! Data flows one way: `driver` takes calls, [`lower`] turns the text that [`ptx`] parsed into a [`program`],
//! [`exec`] runs it on [`memory`], strict where hardware is lenient, and counts ([`counters`]) what a profiler would.

pub mod counters;
pub mod device;
mod driver;
pub mod exec;
pub mod fault;
mod library;
pub mod lower;
pub mod memory;
pub mod program;
pub mod ptx;
pub mod report;
pub mod rerun;

pub use library::{library_folder, library_folder_of};
