//! The CUDA driver API, as programs find it in `libcuda.so`.
//!
//! `api` holds the exported functions and `abi` what C sees of their arguments. A call opens a `session` on the one
//! `state` behind a lock, turns its arguments into a `job` (`resolve`, `launches`), and hands that to a stream of
//! `core`, or to the graph that the stream captures (`capture`, `graph`). Jobs run when someone waits for them, on the
//! `gpu` that they name. What is to fail (`mishaps`) does so before any of that.

mod abi;
mod api;
mod background;
mod capture;
mod core;
mod exports;
mod gpu;
mod graph;
mod guard;
pub(crate) mod job;
mod launches;
mod mishaps;
mod resolve;
mod session;
mod state;
mod status;
mod transfer;
