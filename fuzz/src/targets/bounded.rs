//! Memory that is counted: libFuzzer sees what a process has resident, and looks once a second; here a single allocation that
//! is too much ends the process with its size, touched or not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs with at most `bytes` more of the heap than there is in use now.
pub fn within<T>(bytes: usize, run: impl FnOnce() -> T) -> T {
    MOST.store(LIVE.load(Relaxed) + bytes, Relaxed);
    let result = run();
    MOST.store(usize::MAX, Relaxed);
    result
}

fn charge(bytes: usize) {
    if LIVE.fetch_add(bytes, Relaxed) + bytes > MOST.load(Relaxed) {
        MOST.store(usize::MAX, Relaxed);
        eprintln!("\nover the target's memory: {bytes} bytes at once, {} together", LIVE.load(Relaxed));
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator with what came in; beside it numbers are counted.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        charge(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}
