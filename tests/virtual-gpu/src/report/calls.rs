//! Which functions of the driver a program calls, how often, and in which of them it waits for the device.
//!
//! Counted from `cuProfilerStart` to `cuProfilerStop`, the calls of the thread that started. A call waits where it returns only when
//! work of a stream is over, whether it had to or the work was over already: `cuStreamSynchronize`, `cuCtxSynchronize`,
//! `cuEventSynchronize`, copies that block or write pageable memory, `cuMemFree`, `cuMemFreeHost`. Queries do not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

/// The calls of one function.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Calls {
    /// All of them.
    pub count: u64,
    /// Those in which the host waited.
    pub waits: u64,
}

thread_local! {
    static COUNTED: RefCell<Option<BTreeMap<&'static str, Calls>>> = const { RefCell::new(None) };
    /// The call that is running, and whether it has waited.
    static RUNNING: Cell<(&'static str, bool)> = const { Cell::new(("", false)) };
}

/// A function is called.
pub fn begin(name: &'static str) {
    RUNNING.set((name, false));
    COUNTED.with_borrow_mut(|counted| {
        if let Some(counted) = counted {
            counted.entry(name).or_default().count += 1;
        }
    });
}

/// The function that was called last waits for work.
pub fn wait() {
    let (name, waited) = RUNNING.replace((RUNNING.get().0, true));
    if waited || name.contains("Query") {
        return;
    }
    COUNTED.with_borrow_mut(|counted| {
        if let Some(calls) = counted.as_mut().and_then(|counted| counted.get_mut(name)) {
            calls.waits += 1;
        }
    });
}

/// Begins to count.
pub fn start() {
    COUNTED.set(Some(BTreeMap::new()));
}

/// Notes what was counted.
pub fn stop() {
    if let Some(mut counted) = COUNTED.take() {
        counted.remove("cuProfilerStop");
        super::line(&json!({ "calls": counted }));
    }
}
