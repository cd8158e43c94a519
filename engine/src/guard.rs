//! Libraries that panic on some of the files that they read.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// True while a library runs, whose panics are errors and are not printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a library that may panic; nothing where it did. What it leaves half-changed must not be used again.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                others(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run)).ok();
    GUARDED.set(outer);
    result
}
