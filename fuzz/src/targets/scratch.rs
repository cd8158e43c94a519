//! A folder for parsers that take paths; `tools/fuzz.sh` puts it into memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A file of this target's folder, with these bytes.
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

static FOLDER: Mutex<Option<&'static Path>> = Mutex::new(None);

/// The folder. Whoever sets TMPDIR clears it away: libFuzzer ends the process without a last word.
pub fn folder() -> &'static Path {
    let make = || {
        let folder = tempfile::Builder::new().prefix("fuzz-").tempdir().expect("a temporary folder");
        &*Box::leak(folder.keep().into_boxed_path())
    };
    FOLDER.lock().expect("nothing panics under it").get_or_insert_with(make)
}

/// Removes the folder; the next target gets another.
pub fn clear() {
    if let Some(folder) = FOLDER.lock().expect("nothing panics under it").take() {
        let _ = fs::remove_dir_all(folder); // a temporary one: what stays goes with all of them
    }
}
