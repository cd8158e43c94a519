//! Small files that users write: flags, sweeps, sparsities of layers.

use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::path::Path;

/// The most bytes of such a file; a sparsity for every matrix of 4,096 layers takes about two million.
const LIMIT: u64 = 8 << 20;

/// A regular file of at most [`LIMIT`] bytes: opening a pipe would wait forever, and a device never ends.
pub fn read_text(path: &Path) -> Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(LIMIT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LIMIT {
        return Err(Error::other(format!("it has more than {LIMIT} bytes, which no such file needs")));
    }
    Ok(text)
}
