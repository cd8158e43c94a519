//! What the virtual GPU saw, for people and for programs.
//!
//! Faults and refusals go to stderr as text. With `VIRTUAL_GPU_REPORT=file`, every launch with its counters, every
//! failure, and the calls between `cuProfilerStart` and `cuProfilerStop` ([`calls`]) are also a line of JSON at the end of that
//! file; [`read`] gives them back.

pub mod calls;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use crate::driver::job::Failure;

/// The environment variable that names the file of JSON lines.
pub const REPORT_VARIABLE: &str = "VIRTUAL_GPU_REPORT";

static FILE: OnceLock<Option<Mutex<File>>> = OnceLock::new();

/// Says something on stderr.
pub fn warn(text: &str) {
    // A program without a stderr is no reason to fail.
    let _ = writeln!(io::stderr().lock(), "virtual GPU: {text}");
}

/// Prints what a kernel printed.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Adds a line to the report, if one is kept.
fn line(value: &Value) {
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os(REPORT_VARIABLE).filter(|path| !path.is_empty())?;
        match OpenOptions::new().create(true).append(true).open(&path) {
            Ok(file) => Some(Mutex::new(file)),
            Err(error) => {
                warn(&format!("{REPORT_VARIABLE}: {}: {error}", Path::new(&path).display()));
                None
            }
        }
    });
    if let Some(file) = file {
        // One write, so that lines of several processes don't mix.
        let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{value}\n").as_bytes());
    }
}

/// A launch that ran.
#[derive(Debug, Serialize)]
pub struct Launch<'a, C: Serialize> {
    /// The kernel.
    pub kernel: &'a str,
    /// The device's number.
    pub device: usize,
    /// The stream's handle.
    pub stream: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// What was counted.
    pub counters: &'a C,
}

/// Notes a launch.
pub fn launch<C: Serialize>(launch: &Launch<'_, C>) {
    line(&json!({ "launch": launch }));
}

/// Says what failed, and notes it.
pub fn failure(failure: &Failure) {
    warn(&failure.text);
    line(&json!({
        "failure": {
            "status": failure.status.to_string(),
            "text": failure.text,
            "fault": failure.fault,
        }
    }));
}

/// The lines of a report: objects with the one key `launch`, `failure` or `calls`.
///
/// # Errors
/// Where the file can't be read, or a line is no JSON.
pub fn read(path: &Path) -> io::Result<Vec<Value>> {
    BufReader::new(File::open(path)?)
        .lines()
        .map(|line| serde_json::from_str(&line?).map_err(io::Error::other))
        .collect()
}
