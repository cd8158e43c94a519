//! A folder for parsers that take paths; `tools/fuzz.sh` puts it into memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file of this process's folder, with these bytes.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("there is room for the input");
    path
}

/// A file that stays as it is from one input to the next.
pub fn fixed(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    if path.exists() { path } else { file(name, bytes) }
}

/// The folder. Whoever sets TMPDIR clears it away: libFuzzer ends the process without a last word.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::Builder::new().prefix("fuzz-").tempdir().expect("a temporary folder").keep())
}
