//! Small files: read with a size limit, written with a sync.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::disk::{Disk, Open, SystemDisk, parent_of, sync_folder};
use super::error::{Error, Result, io};

/// The most bytes of a config.json and its like; real ones have a few thousand.
pub(super) const CONFIG_LIMIT: u64 = 8 << 20;
/// The most bytes of a weight index; a model of 10,000 tensors has about a million.
pub(super) const INDEX_LIMIT: u64 = 64 << 20;
/// The most bytes of a tokenizer file; vocabularies of 256k tokens have about 40 million.
pub(super) const TOKENIZER_LIMIT: u64 = 512 << 20;

/// Opens a regular file. Anything else is an error: opening a pipe would wait forever.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(io("open", path))?;
    if !kind.is_file() {
        return Err(Error::Missing { path: path.into(), reason: "is not a regular file".into() });
    }
    File::open(path).map_err(io("open", path))
}

/// The bytes of a regular file of at most `limit` bytes.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.into(), limit });
    }
    Ok(bytes)
}

/// A JSON object from a file. serde_json limits its depth.
pub(super) fn read_json_object(path: &Path, limit: u64) -> Result<Value> {
    let value: Value = serde_json::from_slice(&read_limited(path, limit)?)
        .map_err(|e| Error::Json { path: path.into(), reason: format!("is not valid JSON: {e}") })?;
    if !value.is_object() {
        return Err(Error::Json { path: path.into(), reason: "must hold a JSON object".into() });
    }
    Ok(value)
}

/// Writes and syncs a new file.
pub(super) fn write_synced(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = disk.open(path, Open::New).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync().map_err(io("sync", path))
}

/// Writes and syncs JSON, indented and with a newline at the end, as transformers does.
pub(super) fn write_json(disk: &dyn Disk, path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value always serializes");
    text.push('\n');
    write_synced(disk, path, text.as_bytes())
}

/// Replaces a file, or makes it: written beside, synced, renamed, and the folder synced. A failure leaves what was there.
///
/// # Errors
/// [`Error::Io`] where the system refuses.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file_on(&SystemDisk, path, bytes)
}

/// The same on any disk.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_file_on(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = beside(path);
    if beside.exists() {
        let _ = disk.remove_file(&beside); // left by a killed process that had this one's id
    }
    let written = write_synced(disk, &beside, bytes)
        .and_then(|()| disk.rename(&beside, path).map_err(io("create", path)))
        .and_then(|()| sync_folder(disk, parent_of(path)));
    if written.is_err() {
        let _ = disk.remove_file(&beside);
    }
    written
}

/// Checks that [`replace_file`] could write beside `path`; nothing stays of the trial. To be called before long work.
///
/// # Errors
/// [`Error::Io`] where nothing can be created.
pub fn check_replaceable(path: &Path) -> Result<()> {
    let beside = beside(path);
    SystemDisk.open(&beside, Open::Emptied).map_err(io("create", path))?;
    SystemDisk.remove_file(&beside).map_err(io("remove", &beside))
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}
