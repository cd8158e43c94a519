//! Models and data sets of the Hugging Face hub: only the files that are needed, in the cache that all programs of the hub share.
//!
//! The hub's own crate resumes nothing, compares no checksum, and knows no HF_HUB_OFFLINE, so the requests are ours; the cache
//! (`cache`) is laid out as there, and what another program fetched is found.

mod cache;
#[doc(hidden)] // for fuzzing
pub mod conversion;
mod download;
mod error;
mod http;
mod id;
mod listing;
mod repo;
mod select;
mod settings;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use self::cache::Kind;
use self::conversion::BOT;
use self::repo::Repo;

pub use error::{Error, Result};
pub use id::{DataId, DataPart, ModelId};
pub use select::Use;
pub use settings::Settings;

/// What happens on the way.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A file comes.
    Progress {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes that are here.
        done: u64,
        /// All of them.
        size: u64,
    },
    /// Another process fetches the file, and is waited for.
    Shared {
        /// Its name in the repository.
        file: &'a str,
    },
    /// A try failed, and the next comes after a pause.
    Pause {
        /// What failed.
        error: &'a Error,
        /// How long.
        pause: Duration,
    },
    /// The hub cannot be reached, and what the cache has is taken.
    Unreachable {
        /// What failed.
        error: &'a Error,
    },
    /// The model's `main` has no safetensors, and all of it is taken from a pull request that offers them.
    Converted {
        /// The pull request, `refs/pr/N`.
        revision: &'a str,
        /// Who opened it.
        author: &'a str,
    },
}

/// What hears of them.
pub type OnEvent<'a> = dyn Fn(Event<'_>) + 'a;

/// The files of a data set that were taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    /// Where they are, in the order of their names.
    pub files: Vec<PathBuf>,
    /// How many there are of the kind.
    pub of: usize,
}

/// Where the hub keeps the Parquet files that it makes of data sets in other forms.
const CONVERTED: &str = "refs/convert/parquet";

/// The hub.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// A hub of these settings.
    pub fn new(settings: Settings) -> Hub {
        Hub { settings }
    }

    /// The folder of a model: its configuration, tokenizer and, where they are wanted, its weights in safetensors. Of a model
    /// whose `main` has weights in `.bin` alone, all is taken from the newest open pull request of the hub's conversion bot, if
    /// it has opened one.
    ///
    /// # Errors
    /// Whatever of [`Error`] stands in the way.
    pub fn model(&self, id: &ModelId, weights: bool, on_event: &OnEvent<'_>) -> Result<PathBuf> {
        let repo = Repo::new(&self.settings, Kind::Model, id.to_string(), &id.repo, &id.revision, on_event);
        let source = repo.source()?;
        let none = match repo.model(&source, weights) {
            Err(none @ Error::NoSafetensors { .. }) => none,
            other => return other,
        };
        let Some(revision) = repo.converted(&source)? else { return Err(none) };
        let id = ModelId { repo: id.repo.clone(), revision };
        on_event(Event::Converted { revision: &id.revision, author: BOT });
        let repo = Repo::new(&self.settings, Kind::Model, id.to_string(), &id.repo, &id.revision, on_event);
        match repo.source_after(&source).and_then(|source| repo.model(&source, weights)) {
            Err(Error::NoRevision { .. } | Error::NoSafetensors { .. }) => Err(none),
            other => other,
        }
    }

    /// The files of a data set's split, from the first; `shards` of them, or all. Files that the id names are all taken.
    /// Of a data set without files of text the Parquet files that the hub made of it are taken.
    ///
    /// # Errors
    /// Whatever of [`Error`] stands in the way.
    pub fn data(&self, id: &DataId, wanted: Use, shards: Option<usize>, on_event: &OnEvent<'_>) -> Result<DataFiles> {
        let at = |revision: &str| {
            let repo = Repo::new(&self.settings, Kind::Data, id.to_string(), &id.repo, revision, on_event);
            repo.data(&id.part, wanted, shards)
        };
        match at(&id.revision) {
            Err(no_text @ Error::NoText { .. }) if id.revision == id::MAIN => match at(CONVERTED) {
                Err(Error::NoRevision { .. } | Error::NoText { .. }) => Err(no_text),
                other => other,
            },
            other => other,
        }
    }
}
