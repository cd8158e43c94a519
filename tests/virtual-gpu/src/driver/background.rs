//! The work that must happen without anyone asking: what a program can see without a call of the driver.
//!
//! A program may wait for its own host function with a lock or a flag that the driver knows nothing of, or watch
//! page-locked memory that a kernel writes. So where a host function is queued, or a kernel with an address of such
//! memory, and nothing has brought it about for a while, a thread of the driver does.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::core::Clock;
use super::session;

/// How long such work may wait for someone to ask for it: enough for a program to queue all it means to before it waits.
const PATIENCE: Duration = Duration::from_millis(200);

/// Sees to it that all that `clock` knows runs, in a while.
pub fn bring_about(clock: Clock) {
    static QUEUE: OnceLock<Option<Sender<(Instant, Clock)>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (sender, receiver) = channel();
        // Without the thread, calls happen when someone waits for them, like all work.
        std::thread::Builder::new().name("virtual GPU".into()).spawn(move || serve(&receiver)).ok().map(|_| sender)
    });
    if let Some(queue) = queue {
        // The thread that receives never ends before the process.
        let _ = queue.send((Instant::now() + PATIENCE, clock));
    }
}

fn serve(queue: &Receiver<(Instant, Clock)>) {
    for (due, clock) in queue {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Ok(mut session) = session::driver() {
            session.run(&clock);
        }
    }
}
