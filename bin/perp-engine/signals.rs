//! Ctrl-C and SIGTERM: in training the step in progress ends first; a second one, and any at another time, ends the program
//! at once, for then there is nothing to save.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::Failure;

/// The signals of this process.
pub struct Signals {
    /// The last one that came, 0 for none.
    received: Arc<AtomicUsize>,
    at_once: Arc<AtomicBool>,
}

impl Signals {
    /// Takes charge of them.
    pub fn install() -> Result<Signals, Failure> {
        let signals = Signals { received: Arc::new(AtomicUsize::new(0)), at_once: Arc::new(AtomicBool::new(true)) };
        for signal in [SIGINT, SIGTERM] {
            // They run in this order.
            flag::register_conditional_shutdown(signal, 128 + signal, signals.at_once.clone())
                .and_then(|_| flag::register_usize(signal, signals.received.clone(), signal as usize))
                .and_then(|_| flag::register(signal, signals.at_once.clone()))
                .map_err(|e| Failure::failed(format!("signals cannot be handled: {e}")))?;
        }
        Ok(signals)
    }

    /// Runs what asks [`received`](Self::received) often enough.
    pub fn deferred<T>(&self, run: impl FnOnce() -> T) -> T {
        self.at_once.store(false, Ordering::SeqCst);
        let result = run();
        self.at_once.store(true, Ordering::SeqCst);
        result
    }

    /// The signal that came, if one did.
    pub fn received(&self) -> Option<u8> {
        Some(self.received.load(Ordering::SeqCst) as u8).filter(|signal| *signal > 0)
    }
}

/// As people know it.
pub fn name(signal: u8) -> &'static str {
    if i32::from(signal) == SIGINT { "Ctrl-C" } else { "SIGTERM" }
}
