//! What the user sees while something takes long: bars on a terminal, plain lines elsewhere, nothing with --quiet.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use engine::retrain::StepRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::tell;
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
            tell(line);
        }
    }

    /// A line that --quiet does not silence: something is not as it should be, and the work goes on.
    pub fn warn(&self, line: &str) {
        tell(&format!("warning: {line}"));
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
        if let Some(line) = self.due(Instant::now(), done, message) {
            tell(&line);
        }
    }

    /// The plain line, where it is time for one.
    fn due(&mut self, now: Instant, done: u64, message: &str) -> Option<String> {
        if !self.lines || now - self.last < LINE_EVERY {
            return None;
        }
        self.last = now;
        let elapsed = (now - self.start).as_secs_f64();
        let since = done.saturating_sub(self.done_before).max(1);
        let left = elapsed / since as f64 * self.total.saturating_sub(done) as f64;
        Some(format!("{:>10} {done}/{} {} eta {} {message}", self.name, self.total, clock(elapsed), clock(left)))
    }

    /// A line of its own, above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.lines => tell(line),
            None => {}
        }
    }

    /// The task is over; `message` is its result.
    pub fn finish(self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.lines || self.bar.is_some() {
            tell(&format!("{:>10} {message} in {}", self.name, clock(self.start.elapsed().as_secs_f64())));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> StepRecord {
        StepRecord { step: 30, loss: 4.25549, lr: 5e-4, grad_norm: 1.5, tokens: 2048, seconds: 0.8 }
    }

    #[test]
    fn a_step_tells_loss_learning_rate_speed_and_memory() {
        assert_eq!(step(&record(), 3 << 29), "loss 4.255 lr 5.0e-4 2560 tok/s 1.50 GiB");
    }

    #[test]
    fn a_plain_line_tells_what_is_left_and_comes_every_ten_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let begun = |quiet| {
            let mut task = Console { quiet, terminal: false }.task("retrain", 120);
            (task.start, task.last) = (start, start);
            task
        };
        let mut task = begun(false);
        let said = step(&record(), 3 << 29);
        assert_eq!(task.due(at(9), 29, &said), None);
        // 80 s for 30 steps: 90 take four minutes more.
        let line = "   retrain 30/120 1m20s eta 4m00s loss 4.255 lr 5.0e-4 2560 tok/s 1.50 GiB";
        assert_eq!(task.due(at(80), 30, &said).as_deref(), Some(line));
        assert_eq!(task.due(at(89), 33, &said), None);
        assert!(task.due(at(90), 33, &said).is_some());

        // A run that goes on after step 20 has done 10 steps in these 80 s.
        let mut task = begun(false);
        task.begin_at(20);
        let line = task.due(at(80), 30, "").unwrap();
        assert_eq!(line, "   retrain 30/120 1m20s eta 12m00s ");
        assert_eq!(begun(true).due(at(80), 30, &said), None);
    }
}
