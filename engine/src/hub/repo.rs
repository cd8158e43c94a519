//! A repository that is asked for: what it has at a revision, and which files of it come.

use std::path::PathBuf;
use std::time::Duration;

use super::cache::{Kind, RepoCache, is_commit, is_inside};
use super::error::{Error, Result};
use super::http::{Failed, Http, one_line};
use super::id::DataPart;
use super::listing::Listing;
use super::select::{self, Nothing, Use, Weights};
use super::settings::Settings;
use super::{DataFiles, Event, OnEvent, download};

/// A repository at a revision.
pub struct Repo<'a> {
    http: Http<'a>,
    cache: RepoCache,
    revision: &'a str,
}

/// A commit's files, and whether those that are not here can come.
struct Source {
    listing: Listing,
    /// False where the files are those that the cache happens to have.
    complete: bool,
    reach: Reach,
}

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

/// The longest answer of the API: a data set of some hundred thousand files.
const LISTING_LIMIT: u64 = 64 << 20;

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
        Repo { http: Http::new(settings, kind, id, repo, revision, on_event), cache, revision }
    }

    /// See [`Hub::model`](super::Hub::model).
    pub fn model(&self, weights: bool) -> Result<PathBuf> {
        let source = self.source()?;
        let files = &source.listing.files;
        let has = |name: &str| files.iter().any(|file| file == name);
        if !has("config.json") {
            return Err(self.missing(
                &source,
                "its config.json is",
                "has no config.json; is it a model of transformers?".into(),
            ));
        }
        // Weights that are not there are told before anything large comes.
        let kind = if weights { Weights::of(files) } else { None };
        if weights && kind.is_none() {
            let reason = select::no_weights(files);
            return Err(self.missing(&source, "its weights are", reason));
        }
        for name in select::small_files(files) {
            self.file(&source, name)?;
        }
        if let Some(kind) = kind {
            let path = self.file(&source, kind.file())?;
            if kind == Weights::Shards {
                self.shards(&source, &path)?;
            }
        }
        Ok(self.cache.snapshot(&source.listing.commit))
    }

    fn shards(&self, source: &Source, index: &std::path::Path) -> Result<()> {
        let name = Weights::Shards.file();
        let read = std::fs::read(index);
        let bytes = read.map_err(|source| Error::Io { id: self.http.id().into(), path: index.into(), source })?;
        let shards = select::shards(&bytes).ok_or_else(|| self.content(format!("its {name} names no shards")))?;
        let absent = |shard: &&String| source.complete && !source.listing.files.contains(shard);
        if let Some(absent) = shards.iter().find(absent) {
            return Err(self.content(format!("its {name} names {}, which it has not", absent.escape_debug())));
        }
        shards.iter().try_for_each(|shard| self.file(source, shard).map(drop))
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
    fn source(&self) -> Result<Source> {
        let settings = self.http.settings();
        if settings.offline {
            return self.cached(Reach::Offline).ok_or_else(|| self.offline("it is"));
        }
        if is_commit(self.revision)
            && let Some(source @ Source { complete: true, .. }) = self.cached(Reach::Online)
        {
            return Ok(source);
        }
        match self.listing() {
            Ok(listing) => Ok(Source { listing, complete: true, reach: Reach::Online }),
            Err(Error::Unreachable { id, endpoint, reason }) => {
                let reach = Reach::Unreachable { endpoint: endpoint.clone(), reason: reason.clone() };
                let error = Error::Unreachable { id, endpoint, reason };
                let Some(source) = self.cached(reach) else { return Err(error) };
                self.http.tell(Event::Unreachable { error: &error });
                Ok(source)
            }
            Err(error) => Err(error),
        }
    }

    /// What the cache knows of the revision: what the hub said of it, or else the files that another program fetched.
    fn cached(&self, reach: Reach) -> Option<Source> {
        let commit = self.cache.commit(self.revision)?;
        let kept = self.cache.kept(&commit).and_then(|kept| Listing::parse(&kept).ok());
        if let Some((listing, _)) = kept.filter(|(listing, _)| listing.commit == commit) {
            return Some(Source { listing, complete: true, reach });
        }
        let files = self.cache.files(&commit);
        let listing = Listing { commit, files, configs: Vec::new() };
        (!listing.files.is_empty()).then_some(Source { listing, complete: false, reach })
    }

    /// What the hub has of the revision.
    fn listing(&self) -> Result<Listing> {
        let url = self.http.info_url();
        let (listing, kept) = self.http.retried(|| {
            let mut response = self.http.get(&url, 0)?;
            let body = response.body_mut().with_config().limit(LISTING_LIMIT).read_to_vec();
            let body = body.map_err(|error| Failed {
                error: self.http.odd(&url, one_line(&error.to_string())),
                retry: Some(Duration::ZERO),
            })?;
            Listing::parse(&body).map_err(|error| self.http.odd(&url, one_line(&error.to_string())).into())
        })?;
        if !is_commit(&listing.commit) {
            return Err(self.http.odd(&url, "its sha is no commit"));
        }
        let keep = |source| Error::Io { id: self.http.id().into(), path: self.http.settings().cache.clone(), source };
        self.cache.keep(self.revision, &listing.commit, &kept).map_err(keep)?;
        Ok(listing)
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
            Reach::Offline => Err(self.offline(format!("{name} is"))),
            Reach::Unreachable { endpoint, reason } => Err(self.unreachable(endpoint, reason)),
        }
    }

    /// The error of what a listing does not have: that it is not there, or, of a cache that may have but a part, not here.
    fn missing(&self, source: &Source, what: &str, reason: String) -> Error {
        match &source.reach {
            _ if source.complete => self.content(reason),
            Reach::Unreachable { endpoint, reason } => self.unreachable(endpoint, reason),
            _ => self.offline(what),
        }
    }

    fn unreachable(&self, endpoint: &str, reason: &str) -> Error {
        Error::Unreachable { id: self.http.id().into(), endpoint: endpoint.into(), reason: reason.into() }
    }

    fn offline(&self, what: impl Into<String>) -> Error {
        let cache = self.http.settings().cache.clone();
        Error::Offline { id: self.http.id().into(), what: what.into(), cache }
    }

    fn content(&self, reason: impl Into<String>) -> Error {
        Error::Content { id: self.http.id().into(), reason: reason.into() }
    }
}
