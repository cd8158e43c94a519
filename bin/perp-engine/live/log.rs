//! `--log`: a line of JSON an event, each in the file before the run goes on.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use engine::checkpoint::replace_file;
use engine::retrain::StepRecord;
use serde_json::{Value, json};

use super::{Event, Listener, Place, now};

/// The most bytes of a log; one of a million steps has about 250 million.
const MOST: u64 = 1 << 30;
/// The most bytes of a line; the longest tells the configuration, with the names of all files.
const LINE: u64 = 8 << 20;

/// The log's file, and which events of the run it has.
pub struct Log {
    file: File,
    known: HashSet<String>,
}

impl Log {
    /// A new log; or with `resumed` what stands in the file up to there, to which the rest is added.
    ///
    /// # Errors
    /// What is no regular file: a pipe would be waited for, and a file take a device's place. One that is too large for a log.
    pub fn open(path: &Path, resumed: Option<Place>) -> io::Result<Log> {
        let there = match std::fs::metadata(path) {
            Ok(kind) if !kind.is_file() => return Err(io::Error::other("it is not a regular file")),
            Ok(kind) if kind.len() > MOST && resumed.is_some() => return Err(too_large("", MOST)),
            other => other.is_ok(),
        };
        let mut known = HashSet::new();
        let mut kept = Vec::new();
        if let Some(resumed) = resumed
            && there
        {
            // It may grow while it is read.
            let mut file = BufReader::new(File::open(path)?.take(MOST));
            let mut line = Vec::new();
            while file.by_ref().take(LINE + 1).read_until(b'\n', &mut line)? > 0 {
                if line.len() as u64 > LINE {
                    return Err(too_large("a line of ", LINE));
                }
                // What was being written when the run was killed is no JSON, and need not be text.
                if let Ok(event) = serde_json::from_slice::<Value>(&line)
                    && place(&event) <= resumed
                    && event["event"] != "end"
                {
                    known.extend(key(&event));
                    kept.extend_from_slice(line.trim_ascii_end());
                    kept.push(b'\n');
                }
                line.clear();
            }
        }
        replace_file(path, &kept).map_err(io::Error::other)?;
        Ok(Log { file: File::options().append(true).open(path)?, known })
    }
}

fn too_large(what: &str, most: u64) -> io::Error {
    io::Error::other(format!("it has {what}more than {most} bytes, which no log of a run has; name another file"))
}

fn place(event: &Value) -> Place {
    let number = |name: &str| event[name].as_u64().unwrap_or(0) as usize;
    Place { cycle: number("cycle"), step: number("step") }
}

/// What tells an event of a run from the others; nothing for those that each start has.
fn key(event: &Value) -> Option<String> {
    let kind = event["event"].as_str().filter(|kind| matches!(*kind, "step" | "eval"))?;
    let Place { cycle, step } = place(event);
    Some(format!("{kind} {} {cycle} {step}", event["name"].as_str().unwrap_or_default()))
}

impl Listener for Log {
    fn hear(&mut self, at: Place, event: &Event<'_>) -> io::Result<()> {
        let Place { cycle, step } = at;
        let mut line = match event {
            Event::Config { command, device, config } => json!({
                "event": "config", "version": env!("CARGO_PKG_VERSION"), "command": command, "device": device,
                "config": config,
            }),
            Event::Step { record: StepRecord { loss, lr, grad_norm, tokens, seconds, .. }, memory_bytes } => json!({
                "event": "step", "loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens": tokens, "seconds": seconds,
                "tokens_per_second": *tokens as f64 / seconds, "memory_bytes": memory_bytes,
            }),
            Event::Eval { name, perplexity } => json!({"event": "eval", "name": name, "perplexity": perplexity}),
            Event::End { status, message } => json!({"event": "end", "status": status, "message": message}),
        };
        line["cycle"] = json!(cycle);
        line["step"] = json!(step);
        line["time"] = json!(now());
        if key(&line).is_some_and(|key| !self.known.insert(key)) {
            return Ok(());
        }
        self.file.write_all(format!("{line}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: usize) -> StepRecord {
        StepRecord { step, loss: 1.0 / step as f64, lr: 1e-3, grad_norm: 2.0, tokens: 64, seconds: 0.5 }
    }

    fn step(log: &mut Log, cycle: usize, step: usize) {
        log.hear(Place { cycle, step }, &Event::Step { record: &record(step), memory_bytes: 7 }).unwrap();
    }

    #[test]
    fn a_resumed_log_has_every_step_once_and_drops_what_was_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let mut log = Log::open(&path, None).unwrap();
        (1..=5).for_each(|n| step(&mut log, 1, n));
        log.hear(Place { cycle: 1, step: 3 }, &Event::Eval { name: "training", perplexity: 9.0 }).unwrap();
        log.file.write_all(b"{\"event\":\"step\",\"cy\xff").unwrap();
        drop(log);

        // The newest checkpoint is of step 3: 4 and 5 come again, and so does the evaluation after 3.
        let mut log = Log::open(&path, Some(Place { cycle: 1, step: 3 })).unwrap();
        log.hear(Place { cycle: 1, step: 3 }, &Event::Eval { name: "training", perplexity: 9.0 }).unwrap();
        (4..=6).for_each(|n| step(&mut log, 1, n));
        step(&mut log, 2, 1);
        let lines: Vec<Value> =
            std::fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<(u64, u64)> = lines
            .iter()
            .filter(|event| event["event"] == "step")
            .map(|event| (event["cycle"].as_u64().unwrap(), event["step"].as_u64().unwrap()))
            .collect();
        assert_eq!(steps, [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 1)]);
        assert_eq!(lines.iter().filter(|event| event["event"] == "eval").count(), 1);
        assert_eq!(lines[0]["tokens_per_second"], 128.0);

        // A run that starts anew starts its log anew.
        drop(Log::open(&path, None).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
