//! What each kernel costs: floating-point operations and bytes, counted; seconds, measured.

use std::time::Duration;

/// The cost of one launch, from its dimensions alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The kernel's name in profiles.
    pub kernel: &'static str,
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes that must be read at least once.
    pub bytes_read: u64,
    /// Bytes that must be written at least once.
    pub bytes_written: u64,
}

impl Cost {
    /// A cost from operation counts in `usize`.
    pub fn new(kernel: &'static str, flops: usize, bytes_read: usize, bytes_written: usize) -> Cost {
        Cost { kernel, flops: flops as u64, bytes_read: bytes_read as u64, bytes_written: bytes_written as u64 }
    }
}

/// All launches of one kernel name together.
#[derive(Clone, Debug)]
pub struct KernelStats {
    /// The kernel's name.
    pub kernel: &'static str,
    /// How often it ran.
    pub calls: u64,
    /// Floating-point operations of all calls.
    pub flops: u64,
    /// Least bytes read by all calls.
    pub bytes_read: u64,
    /// Least bytes written by all calls.
    pub bytes_written: u64,
    /// Wall seconds of all calls (zero on Meta).
    pub seconds: f64,
}

#[derive(Default)]
pub(super) struct Profile(Vec<KernelStats>);

impl Profile {
    pub(super) fn add(&mut self, cost: Cost, elapsed: Duration) {
        let row = match self.0.iter().position(|row| row.kernel == cost.kernel) {
            Some(at) => &mut self.0[at],
            None => {
                self.0.push(KernelStats {
                    kernel: cost.kernel,
                    calls: 0,
                    flops: 0,
                    bytes_read: 0,
                    bytes_written: 0,
                    seconds: 0.0,
                });
                self.0.last_mut().expect("just pushed")
            }
        };
        row.calls += 1;
        row.flops += cost.flops;
        row.bytes_read += cost.bytes_read;
        row.bytes_written += cost.bytes_written;
        row.seconds += elapsed.as_secs_f64();
    }

    pub(super) fn into_rows(self) -> Vec<KernelStats> {
        self.0
    }
}
