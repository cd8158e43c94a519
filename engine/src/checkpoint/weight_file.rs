//! One safetensors file: mapped, validated, listed.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors};
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::error::{Error, Result, io};
use super::files::open_regular;
use super::packed;
use super::tensor_info::TensorInfo;

/// A mapped weight file.
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    pub(super) map: Arc<Mmap>,
}

/// The 8 bytes before the header that hold its length.
const LENGTH_BYTES: usize = 8;

/// Maps a safetensors file, validates its header against its size, and lists its tensors in the file's order.
pub(super) fn open(path: &Path) -> Result<Vec<TensorInfo>> {
    list(path, map(path)?)
}

/// The same for a packed file, whose metadata must say that it is one, and of a version that this program knows.
pub(super) fn open_packed(path: &Path) -> Result<Vec<TensorInfo>> {
    let map = map(path)?;
    let said = SafeTensors::read_metadata(&map).ok().and_then(|(_, metadata)| metadata.metadata().clone());
    let tensors = list(path, map)?;
    let said = said.as_ref().and_then(|said| said.get("format")).map_or("nothing", String::as_str);
    if said != packed::FORMAT {
        return Err(Error::WeightFile {
            path: path.into(),
            reason: format!(
                "its metadata give its format as {said:?}, where a packed file of this version has {:?}: convert the model anew",
                packed::FORMAT
            ),
        });
    }
    Ok(tensors)
}

/// Maps a file for reading.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = open_regular(path)?;
    // SAFETY: the mapping is read-only and every use of its bytes is valid for any bytes. What remains is the usual
    // condition of mapped files, that nobody shortens the file while it is in use; weight files are written once.
    unsafe { Mmap::map(&file) }.map_err(io("map", path))
}

/// The same as [`open`] for a file that is mapped.
pub(super) fn list(path: &Path, map: Mmap) -> Result<Vec<TensorInfo>> {
    let bad = |reason: String| Error::WeightFile { path: path.into(), reason };
    if map.len() < LENGTH_BYTES {
        return Err(bad(format!("has only {} bytes: it is truncated; copy or download it again", map.len())));
    }
    let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| bad(explain(&map, &e)))?;
    if let Some(name) = duplicate(&map[LENGTH_BYTES..][..header]) {
        return Err(bad(format!("its header has tensor {name} twice; only one of them can be meant")));
    }
    let start = LENGTH_BYTES + header;
    let file = Arc::new(WeightFile { path: path.into(), map: Arc::new(map) });
    let names = metadata.offset_keys();
    Ok(names
        .into_iter()
        .filter_map(|name| metadata.info(&name).map(|info| TensorInfo::new(name.clone(), info, file.clone(), start)))
        .collect())
}

/// A name that stands twice in a header. The library keeps the last of them and says nothing.
fn duplicate(header: &[u8]) -> Option<String> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Option<String>, A::Error> {
            let (mut seen, mut twice) = (HashSet::new(), None);
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if twice.is_none() && seen.contains(&name) {
                    twice = Some(name);
                } else {
                    seen.insert(name);
                }
            }
            Ok(twice)
        }
    }
    // It is valid JSON, or it would not have come so far.
    serde_json::Deserializer::from_slice(header).deserialize_map(Names).ok().flatten()
}

/// Says in one line what is wrong with a file whose header was refused.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    if bytes.starts_with(b"version https://git-lfs") {
        return "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`".into();
    }
    let length: [u8; LENGTH_BYTES] = bytes[..LENGTH_BYTES].try_into().expect("checked to be there");
    let header = u64::from_le_bytes(length);
    match error {
        SafeTensorError::HeaderTooLarge => {
            format!("is not a safetensors file: its first 8 bytes give its header {header} bytes, more than any has")
        }
        SafeTensorError::InvalidHeaderLength => format!(
            "its header should have {header} bytes, but the file has only {}: \
             it is truncated (copy or download it again) or not a safetensors file",
            bytes.len()
        ),
        SafeTensorError::MetadataIncompleteBuffer => {
            let start = LENGTH_BYTES + header as usize;
            let expected = serde_json::from_slice::<Metadata>(&bytes[LENGTH_BYTES..start]).map_or(0, |m| m.data_len());
            let found = bytes.len() - start;
            let what = if found < expected { "it is truncated" } else { "it has bytes that belong to no tensor" };
            format!("its header describes {expected} bytes of tensors, but {found} follow: {what}; download it again")
        }
        other => format!("is not a valid safetensors file: {other}"),
    }
}
