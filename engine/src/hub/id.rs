//! Names of models and data sets on the hub.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::data::is_text;

/// The revision where none is named.
pub(super) const MAIN: &str = "main";

/// A model: `OWNER/NAME[@REVISION]`. A bare name is taken for a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    /// `owner/name`.
    pub repo: String,
    /// A branch, a tag, `refs/pr/N` or a commit.
    pub revision: String,
}

/// A data set: `OWNER/NAME[:CONFIG[:SPLIT]][@REVISION]`, or `OWNER/NAME:FILES[@REVISION]`. Behind a name without an owner,
/// as the hub's oldest have it, stands a colon: a bare name is taken for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataId {
    /// `owner/name`, or `name`.
    pub repo: String,
    /// What of it.
    pub part: DataPart,
    /// A branch, a tag, `refs/pr/N` or a commit.
    pub revision: String,
}

/// A part of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataPart {
    /// A split of a configuration.
    Split {
        /// As the data set's card names it, or the folder of its files; the default one where there is none.
        config: Option<String>,
        /// The split; what the text is for decides where there is none.
        split: Option<String>,
    },
    /// A file, or a pattern (`*`, `?`, `[…]`, `**`) among the names of files: what has a slash, is a pattern, or ends as
    /// files of text do.
    Files(String),
}

impl FromStr for ModelId {
    type Err = ();

    fn from_str(text: &str) -> Result<ModelId, ()> {
        let (repo, revision) = revision(text)?;
        let is_id = repo.contains('/') && is_repo(repo);
        if is_id { Ok(ModelId { repo: repo.into(), revision: revision.into() }) } else { Err(()) }
    }
}

impl FromStr for DataId {
    type Err = ();

    fn from_str(text: &str) -> Result<DataId, ()> {
        let (rest, revision) = revision(text)?;
        let (repo, part) = rest.split_once(':').map_or((rest, None), |(repo, part)| (repo, Some(part)));
        // A name that ends as files of text do, and a bare one, are of files that are not there.
        let named = part.is_some() || repo.contains('/') && !is_text(Path::new(repo));
        if !named || !is_repo(repo) {
            return Err(());
        }
        let part = part.map_or(Ok(DataPart::Split { config: None, split: None }), DataPart::from_str)?;
        Ok(DataId { repo: repo.into(), part, revision: revision.into() })
    }
}

impl FromStr for DataPart {
    type Err = ();

    fn from_str(text: &str) -> Result<DataPart, ()> {
        // C:\text.txt is a path, not a file of the data set C.
        if text.contains('\\') {
            return Err(());
        }
        if text.contains(['/', '*', '?', '[']) || is_text(Path::new(text)) {
            return if text.contains(':') { Err(()) } else { Ok(DataPart::Files(text.into())) };
        }
        let (config, split) = text.split_once(':').map_or((text, None), |(config, split)| (config, Some(split)));
        if !is_name(config) || !split.is_none_or(is_name) {
            return Err(());
        }
        Ok(DataPart::Split { config: Some(config.into()), split: split.map(str::to_string) })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        write_revision(f, &self.revision)
    }
}

impl fmt::Display for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        match &self.part {
            DataPart::Split { config, split } => {
                for part in [config, split].into_iter().flatten() {
                    write!(f, ":{part}")?;
                }
            }
            DataPart::Files(files) => {
                write!(f, ":{files}")?;
                // What stands behind the last @ is read as the revision.
                if files.contains('@') {
                    return write!(f, "@{}", self.revision);
                }
            }
        }
        write_revision(f, &self.revision)
    }
}

fn write_revision(f: &mut fmt::Formatter<'_>, revision: &str) -> fmt::Result {
    if revision == MAIN { Ok(()) } else { write!(f, "@{revision}") }
}

fn revision(text: &str) -> Result<(&str, &str), ()> {
    match text.rsplit_once('@') {
        None => Ok((text, MAIN)),
        Some((rest, revision)) if revision.len() <= 128 && revision.split('/').all(is_name) => Ok((rest, revision)),
        Some(_) => Err(()),
    }
}

/// One name, or an owner's and one, as the hub allows them.
fn is_repo(text: &str) -> bool {
    text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(is_name) && !text.contains("--")
}

/// Letters, digits, `-`, `_` and `.`, which does not begin, end or follow itself: it is also the name of a folder.
fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with(['.', '-'])
        && !text.ends_with('.')
        && !text.contains("..")
        && !text.is_empty()
}
