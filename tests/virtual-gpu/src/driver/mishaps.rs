//! Failures on demand: what a program does when a driver does not start, memory is gone, or a GPU falls off the bus.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::job::Failure;
use super::status::Status;

/// What fails, separated by commas: `NAME=STATUS`, a function of the driver, which does nothing then and answers this number of
/// CUDA's; or `NAME:N=STATUS`, its N-th call in this process, from 1, and all later ones. `launch:N=STATUS` is the N-th kernel that
/// runs, alone or in a graph: it does nothing, and its context is lost to that error, as to a fault.
pub const FAIL_VARIABLE: &str = "VIRTUAL_GPU_FAIL";

/// The name under which kernels are counted.
const LAUNCH: &str = "launch";

struct Mishap {
    name: String,
    from: u64,
    status: Status,
    /// How often it was called.
    calls: AtomicU64,
}

impl Mishap {
    /// The entry that this text describes.
    fn parse(text: &str) -> Option<Mishap> {
        let (what, status) = text.split_once('=')?;
        let (name, from) = what.split_once(':').unwrap_or((what, "1"));
        let (from, status) = (from.parse().ok().filter(|from| *from > 0)?, Status(status.parse().ok()?));
        Some(Mishap { name: name.into(), from, status, calls: AtomicU64::new(0) })
    }
}

fn all() -> &'static [Mishap] {
    static ALL: OnceLock<Vec<Mishap>> = OnceLock::new();
    ALL.get_or_init(|| {
        let list = std::env::var(FAIL_VARIABLE).unwrap_or_default();
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let parsed = entries.filter_map(|entry| {
            let mishap = Mishap::parse(entry);
            if mishap.is_none() {
                crate::report::warn(&format!("{FAIL_VARIABLE}: '{entry}' is neither NAME=STATUS nor NAME:N=STATUS"));
            }
            mishap
        });
        parsed.collect()
    })
}

/// What a call of the function `name` is to answer instead of what it does.
pub fn of_call(name: &str) -> Option<Status> {
    let mishap = all().iter().find(|mishap| mishap.name == name)?;
    let call = mishap.calls.fetch_add(1, Relaxed) + 1;
    (call >= mishap.from).then_some(mishap.status)
}

/// Why the kernel that is to run now does not.
pub fn of_launch(kernel: &str) -> Option<Failure> {
    let status = of_call(LAUNCH)?;
    Some(Failure { status, text: format!("kernel {kernel} does not run, as {FAIL_VARIABLE} says"), fault: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_a_call_perhaps_its_number_and_the_answer() {
        let parsed = |text| Mishap::parse(text).map(|mishap| (mishap.name, mishap.from, mishap.status.0));
        assert_eq!(parsed("cuInit=803"), Some(("cuInit".into(), 1, 803)));
        assert_eq!(parsed("launch:57=999"), Some(("launch".into(), 57, 999)));
        for bad in ["", "cuInit", "cuInit=", "cuInit:0=2", "cuInit:x=2", "cuInit:1"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
