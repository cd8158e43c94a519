//! Streams as plain Rust: what runs when, and who may touch what.
//!
//! Work waits on its stream until something needs it, so a host that forgets to wait sees the oldest data that a GPU
//! could have shown it. Which work is ordered before which is known from vector clocks alone, whatever order it
//! happened to run in; so two pieces of work that touch the same bytes without an order between them are found every
//! time, not only when they collide.

mod clock;
mod ledger;
mod schedule;

pub use clock::{Clock, StreamId};
pub use ledger::{Access, Conflict, Ledger, Space, Touch};
pub use schedule::{Kind, Next, Schedule, Work};

#[cfg(test)]
mod tests;
