//! Patterns among the names of text files.

use std::path::{Path, PathBuf};

use super::super::error::{Error, Result};

/// Puts the files that a pattern (`*`, `?`, `[…]`, `**`) matches in its place, sorted by name. What is there under its very
/// name is no pattern.
///
/// # Errors
/// [`Error::Pattern`] for a pattern that matches no file, or is none.
pub fn expand_patterns<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut expanded = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        match path.to_str().filter(|text| text.contains(['*', '?', '['])) {
            Some(pattern) if !path.exists() => expanded.extend(matches(pattern)?),
            _ => expanded.push(path.to_path_buf()),
        }
    }
    Ok(expanded)
}

/// glob gives them in the order of their names, folder by folder.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let bad = |reason: String| Error::Pattern { pattern: pattern.into(), reason };
    let found = glob::glob(pattern).map_err(|error| bad(format!("is no pattern: {}", error.msg)))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|error| Error::Io {
            path: error.path().into(),
            source: std::io::Error::from(error.error().kind()),
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(bad("matches no file".into()));
    }
    Ok(files)
}
