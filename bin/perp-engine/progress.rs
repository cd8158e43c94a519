//! What the user sees while something takes long: bars on a terminal, plain lines elsewhere, nothing with --quiet.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use engine::retrain::StepRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::tables;

/// How often plain lines come.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress is shown.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    quiet: bool,
    terminal: bool,
}

impl Console {
    /// The console of this process.
    pub fn new(quiet: bool) -> Console {
        Console { quiet, terminal: std::io::stderr().is_terminal() }
    }

    /// A line of its own.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    /// A line that --quiet does not silence: something is not as it should be, and the work goes on.
    pub fn warn(&self, line: &str) {
        eprintln!("warning: {line}");
    }

    /// A task of `total` units of work (bytes, windows, steps, layers).
    pub fn task(&self, name: &'static str, total: u64) -> Task {
        let bar = (self.terminal && !self.quiet).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix:>10} {bar:30} {pos}/{len} {elapsed} eta {eta} {msg}");
            bar.set_style(style.expect("the template is valid").progress_chars("━╸ "));
            bar.set_prefix(name);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Task { name, total, done_before: 0, bar, lines: !self.quiet && !self.terminal, start: now, last: now }
    }
}

/// How a training step went, in a few words.
pub fn step(record: &StepRecord, memory_bytes: u64) -> String {
    let StepRecord { loss, lr, tokens, seconds, .. } = record;
    let rate = *tokens as f64 / seconds;
    format!("loss {loss:.3} lr {lr:.1e} {rate:.0} tok/s {}", tables::bytes(memory_bytes))
}

/// One long step of a command.
pub struct Task {
    name: &'static str,
    total: u64,
    done_before: u64,
    bar: Option<ProgressBar>,
    lines: bool,
    start: Instant,
    last: Instant,
}

impl Task {
    /// `done` units were done before it started: they say nothing of its speed.
    pub fn begin_at(&mut self, done: u64) {
        self.done_before = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
    }

    /// `done` units are done; `message` says how it goes.
    pub fn update(&mut self, done: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_string());
        }
        if self.lines && self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            let elapsed = self.start.elapsed().as_secs_f64();
            let since = done.saturating_sub(self.done_before).max(1);
            let left = elapsed / since as f64 * self.total.saturating_sub(done) as f64;
            eprintln!("{:>10} {done}/{} {} eta {} {message}", self.name, self.total, clock(elapsed), clock(left));
        }
    }

    /// A line of its own, above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.lines => eprintln!("{line}"),
            None => {}
        }
    }

    /// The task is over; `message` is its result.
    pub fn finish(self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.lines || self.bar.is_some() {
            eprintln!("{:>10} {message} in {}", self.name, clock(self.start.elapsed().as_secs_f64()));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // An error message must not land on a half-drawn bar.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Seconds as people read them: 0.4s, 12s, 3m05s, 2h10m.
pub fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}
