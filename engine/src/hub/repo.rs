//! A repository that is asked for: what it has at a revision, and which files of it come.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::{self, Kind, LISTING_LIMIT, RepoCache, is_commit, is_inside};
use super::conversion::{self, BOT, Page};
use super::error::{Error, Result};
use super::http::{Failed, Http, one_line};
use super::id::{DataPart, MAIN};
use super::listing::Listing;
use super::select::{self, Nothing, Use, Weights};
use super::settings::Settings;
use super::{DataFiles, Event, OnEvent, download};

/// A repository at a revision.
pub struct Repo<'a> {
    http: Http<'a>,
    cache: RepoCache,
    repo: &'a str,
    revision: &'a str,
}

/// A commit's files, and whether those that are not here can come.
pub struct Source {
    listing: Listing,
    /// False where the files are those that the cache happens to have.
    complete: bool,
    reach: Reach,
}

#[derive(Clone)]
enum Reach {
    Online,
    /// The setting forbids it.
    Offline,
    /// This hub did not answer, for this reason.
    Unreachable {
        endpoint: String,
        reason: String,
    },
}

/// The most bytes of a weight index; a model of 10,000 tensors has about a million.
const INDEX_LIMIT: u64 = 64 << 20;
/// The most pages of pull requests that are asked for. The bot has a few of a model, and they fit on the first.
const PAGES: usize = 50;

impl<'a> Repo<'a> {
    /// `id` is what was asked for, for messages.
    pub fn new(
        settings: &'a Settings,
        kind: Kind,
        id: String,
        repo: &'a str,
        revision: &'a str,
        on_event: &'a OnEvent<'a>,
    ) -> Repo<'a> {
        let cache = RepoCache::new(&settings.cache, kind, repo);
        Repo { http: Http::new(settings, kind, id, repo, revision, on_event), cache, repo, revision }
    }

    /// See [`Hub::model`](super::Hub::model).
    pub fn model(&self, source: &Source, weights: bool) -> Result<PathBuf> {
        let files = &source.listing.files;
        let has = |name: &str| files.iter().any(|file| file == name);
        if !has("config.json") {
            return Err(self.missing(
                source,
                "its config.json is",
                "has no config.json; is it a model of transformers?".into(),
            ));
        }
        // Weights that are not there are told before anything large comes.
        let kind = if weights { Weights::of(files) } else { None };
        if weights && kind.is_none() {
            return Err(match select::other_weights(files) {
                Some(other) if source.complete => self.no_safetensors(source, other),
                _ => self.missing(source, "its weights are", "has no model.safetensors; is it a model?".into()),
            });
        }
        for name in select::small_files(files) {
            self.file(source, name)?;
        }
        if let Some(kind) = kind {
            let path = self.file(source, kind.file())?;
            if kind == Weights::Shards {
                self.shards(source, &path)?;
            }
        }
        Ok(self.cache.snapshot(&source.listing.commit))
    }

    fn shards(&self, source: &Source, index: &Path) -> Result<()> {
        let name = Weights::Shards.file();
        let bytes = cache::read(index, INDEX_LIMIT).map_err(|source| self.unread(index, source))?;
        let shards = select::shards(&bytes).ok_or_else(|| self.content(format!("its {name} names no shards")))?;
        let absent = |shard: &&String| source.complete && !source.listing.files.contains(shard);
        if let Some(absent) = shards.iter().find(absent) {
            return Err(self.content(format!("its {name} names {}, which it has not", absent.escape_debug())));
        }
        shards.iter().try_for_each(|shard| self.file(source, shard).map(drop))
    }

    /// The revision of the pull request in which the hub's conversion bot offers the safetensors that this has none of, if it
    /// does: its newest that is open. Where the hub is not asked or does not answer, the one that was found last.
    pub fn converted(&self, source: &Source) -> Result<Option<String>> {
        if !self.is_convertible(source) {
            return Ok(None);
        }
        if !matches!(source.reach, Reach::Online) {
            let kept = self.cache.conversion();
            return kept.map(Some).ok_or_else(|| self.absent(&source.reach, "its weights in safetensors are"));
        }
        let found = match self.conversion() {
            Ok(found) => found.map(conversion::revision),
            // A hub that is in trouble may have one.
            Err(error @ (Error::Unreachable { .. } | Error::TooMany { .. } | Error::Status { .. })) => {
                return Err(error);
            }
            // A mirror need not have discussions, and an owner may have closed them to all.
            Err(_) => return Ok(None),
        };
        self.cache.keep_conversion(found.as_deref()).map_err(|source| self.unkept(source))?;
        Ok(found)
    }

    /// Whether the bot is asked for it: it converts PyTorch's weights at `main`, and who names a revision wants that.
    fn is_convertible(&self, source: &Source) -> bool {
        self.revision == MAIN && source.listing.files.iter().any(|file| file.ends_with(".bin"))
    }

    /// The number of the bot's newest pull request that is open.
    fn conversion(&self) -> Result<Option<u64>> {
        let mut newest: Option<u64> = None;
        for page in 0..PAGES {
            let page = self.ask(&self.http.conversions_url(page), Page::parse)?;
            newest = newest.max(page.newest());
            if !page.has_next() {
                break;
            }
        }
        Ok(newest)
    }

    /// See [`Hub::data`](super::Hub::data).
    pub fn data(&self, part: &DataPart, wanted: Use, shards: Option<usize>) -> Result<DataFiles> {
        let source = self.source()?;
        let found = match select::data_files(&source.listing, part, wanted) {
            Ok(found) => found,
            Err(Nothing::NoText) if source.complete => return Err(Error::NoText { id: self.http.id().into() }),
            Err(Nothing::NoText) => return Err(self.missing(&source, "its files are", String::new())),
            Err(Nothing::Missing(reason)) => return Err(self.missing(&source, "its files are", reason)),
        };
        let of = if source.complete { found.len() } else { select::total(&found) };
        let wanted = match part {
            DataPart::Files(_) => found.len(),
            DataPart::Split { .. } => shards.unwrap_or(of).min(of),
        };
        let taken = &found[..wanted.min(found.len())];
        if !source.complete
            && (taken.len() < wanted || matches!(part, DataPart::Split { .. }) && !select::are_first(taken))
        {
            return Err(self.missing(&source, "some of its files are", String::new()));
        }
        let files = taken.iter().map(|name| self.file(&source, name)).collect::<Result<_>>()?;
        Ok(DataFiles { files, of })
    }

    /// Asks the cache alone where nothing else may be asked, or a commit is named, which never changes; otherwise the hub, and
    /// the cache where the hub cannot be reached.
    pub fn source(&self) -> Result<Source> {
        if self.http.settings().offline {
            return self.known(&Reach::Offline);
        }
        // What cannot be read of it is asked for again.
        if is_commit(self.revision)
            && let Ok(Some(source @ Source { complete: true, .. })) = self.cached(&Reach::Online)
        {
            return Ok(source);
        }
        match self.listing() {
            Ok(listing) => Ok(Source { listing, complete: true, reach: Reach::Online }),
            Err(Error::Unreachable { id, endpoint, reason }) => {
                let reach = Reach::Unreachable { endpoint: endpoint.clone(), reason: reason.clone() };
                let error = Error::Unreachable { id, endpoint, reason };
                let Some(source) = self.cached(&reach)? else { return Err(error) };
                self.http.tell(Event::Unreachable { error: &error });
                Ok(source)
            }
            Err(error) => Err(error),
        }
    }

    /// The same after another revision's, without asking a hub again that did not answer then.
    pub fn source_after(&self, other: &Source) -> Result<Source> {
        match &other.reach {
            Reach::Online => self.source(),
            reach => self.known(reach),
        }
    }

    /// What the cache alone is asked for.
    fn known(&self, reach: &Reach) -> Result<Source> {
        self.cached(reach)?.ok_or_else(|| self.absent(reach, "it is"))
    }

    /// What the cache knows of the revision: what the hub said of it, or else the files that another program fetched.
    fn cached(&self, reach: &Reach) -> Result<Option<Source>> {
        let Some(commit) = self.cache.commit(self.revision) else { return Ok(None) };
        let kept = self.cache.kept(&commit).map_err(|source| self.unread(&self.cache.listing(&commit), source))?;
        let kept = kept.and_then(|kept| Listing::parse(&kept).ok());
        let reach = reach.clone();
        if let Some((listing, _)) = kept.filter(|(listing, _)| listing.commit == commit) {
            return Ok(Some(Source { listing, complete: true, reach }));
        }
        let files = self.cache.files(&commit);
        let listing = Listing { commit, files, configs: Vec::new() };
        Ok((!listing.files.is_empty()).then_some(Source { listing, complete: false, reach }))
    }

    /// What the hub has of the revision.
    fn listing(&self) -> Result<Listing> {
        let url = self.http.info_url();
        let (listing, kept) = self.ask(&url, Listing::parse)?;
        if !is_commit(&listing.commit) {
            return Err(self.http.odd(&url, "its sha is no commit"));
        }
        self.cache.keep(self.revision, &listing.commit, &kept).map_err(|source| self.unkept(source))?;
        Ok(listing)
    }

    /// What the API answers.
    fn ask<T>(&self, url: &str, parse: impl Fn(&[u8]) -> serde_json::Result<T>) -> Result<T> {
        self.http.retried(|| {
            let mut response = self.http.get(url, 0)?;
            let body = response.body_mut().with_config().limit(LISTING_LIMIT).read_to_vec();
            let body = body.map_err(|error| Failed {
                error: self.http.odd(url, one_line(&error.to_string())),
                retry: Some(Duration::ZERO),
            })?;
            parse(&body).map_err(|error| self.http.odd(url, one_line(&error.to_string())).into())
        })
    }

    /// One file of a commit.
    fn file(&self, source: &Source, name: &str) -> Result<PathBuf> {
        let commit = &source.listing.commit;
        if !is_inside(name) {
            return Err(self.content(format!("names a file \"{}\", which leaves its folder", name.escape_debug())));
        }
        let path = self.cache.snapshot(commit).join(name);
        match &source.reach {
            _ if path.is_file() => Ok(path),
            Reach::Online => download::file(&self.http, &self.cache, commit, name),
            reach => Err(self.absent(reach, format!("{name} is"))),
        }
    }

    /// The error of what a listing does not have: that it is not there, or, of a cache that may have but a part, not here.
    fn missing(&self, source: &Source, what: &str, reason: String) -> Error {
        if source.complete { self.content(reason) } else { self.absent(&source.reach, what) }
    }

    /// The error of what the cache does not have, and what keeps it from coming.
    fn absent(&self, reach: &Reach, what: impl Into<String>) -> Error {
        let id = self.http.id().into();
        match reach {
            Reach::Unreachable { endpoint, reason } => {
                Error::Unreachable { id, endpoint: endpoint.clone(), reason: reason.clone() }
            }
            _ => Error::Offline { id, what: what.into(), cache: self.http.settings().cache.clone() },
        }
    }

    /// The error of weights in another form alone.
    fn no_safetensors(&self, source: &Source, other: &str) -> Error {
        let looked = match self.is_convertible(source) {
            true => format!(", and no open pull request of {BOT} that converts them"),
            false => String::new(),
        };
        let (id, repo, file) = (self.http.id().into(), self.repo.into(), other.escape_debug().to_string());
        Error::NoSafetensors { id, repo, file, looked }
    }

    /// The error of a file that is here and cannot be read. A link's file is what is to be removed.
    fn unread(&self, path: &Path, source: io::Error) -> Error {
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        Error::Unread { id: self.http.id().into(), path, source }
    }

    /// The error of what the cache does not take.
    fn unkept(&self, source: io::Error) -> Error {
        Error::Io { id: self.http.id().into(), path: self.http.settings().cache.clone(), source }
    }

    fn content(&self, reason: impl Into<String>) -> Error {
        Error::Content { id: self.http.id().into(), reason: reason.into() }
    }
}
