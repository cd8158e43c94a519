//! One file into the cache, whatever happens on the way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::HeaderMap;

use super::Event;
use super::cache::RepoCache;
use super::error::{Error, Result};
use super::http::{Failed, Http, RETRIES, one_line};

/// What the hub says of a file.
struct Facts {
    etag: String,
    size: u64,
}

impl Facts {
    /// Large files are named by their SHA-256, small ones by git's hash of them, which is not computed here.
    fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64).then_some(&self.etag)
    }
}

/// Fetches a file of a commit into the cache. What had come of a large one before a failure, a kill or a power cut is not fetched
/// again.
pub fn file(http: &Http<'_>, cache: &RepoCache, commit: &str, name: &str) -> Result<PathBuf> {
    let path = cache.snapshot(commit).join(name);
    let url = http.file_url(commit, name);
    let facts = http.retried(|| {
        let response = http.head(&url)?;
        facts(response.headers()).ok_or_else(|| http.odd(&url, "it says no ETag or no size").into())
    })?;
    let refused = |path: &Path| {
        let (id, path) = (http.id().to_string(), path.to_path_buf());
        move |source| Error::Io { id, path, source }
    };
    let blob = cache.blob(&facts.etag);
    let _lock = cache.lock(&facts.etag, || http.tell(Event::Shared { file: name })).map_err(refused(&blob))?;
    if !fs::metadata(&blob).is_ok_and(|blob| blob.len() == facts.size) {
        let incomplete = cache.incomplete(&facts.etag);
        fetch(http, &url, name, &facts, &incomplete)?;
        fs::rename(&incomplete, &blob).map_err(refused(&blob))?;
    }
    cache.link(commit, name, &facts.etag).map_err(refused(&path))?;
    Ok(path)
}

/// The file's own checksum and size, which an answer that redirects to a storage says under other names than one that is the file.
fn facts(headers: &HeaderMap) -> Option<Facts> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = header("x-linked-etag").or_else(|| header("etag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    // It becomes the name of a file.
    let sound =
        (1..=128).contains(&etag.len()) && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let size = header("x-linked-size").or_else(|| header("content-length"))?.parse().ok()?;
    sound.then(|| Facts { etag: etag.into(), size })
}

/// A file that is coming.
struct Incoming<'a> {
    http: &'a Http<'a>,
    url: &'a str,
    name: &'a str,
    facts: &'a Facts,
    path: &'a Path,
    file: File,
}

/// Fetches what is missing of a file, and looks whether it is the one that was promised. What does not fit together, such as
/// another program's half of it, comes once more as a whole. So does what an earlier run left of a small file: a power cut may
/// have left zeros in place of what was written, and nothing here would tell.
fn fetch(http: &Http<'_>, url: &str, name: &str, facts: &Facts, path: &Path) -> Result<()> {
    let anew = facts.sha256().is_none();
    let opened = OpenOptions::new().create(true).read(true).write(true).truncate(anew).open(path);
    let file = opened.map_err(|source| Error::Io { id: http.id().into(), path: path.into(), source })?;
    let mut incoming = Incoming { http, url, name, facts, path, file };
    for _ in 0..2 {
        incoming.complete()?;
        if incoming.is_sound().map_err(|source| incoming.refused(source))? {
            return Ok(());
        }
        incoming.file.set_len(0).map_err(|source| incoming.refused(source))?;
    }
    fs::remove_file(path).map_err(|source| incoming.refused(source))?;
    Err(Error::Damaged { id: http.id().into(), file: name.into() })
}

impl Incoming<'_> {
    fn refused(&self, source: io::Error) -> Error {
        Error::Io { id: self.http.id().into(), path: self.path.into(), source }
    }

    fn length(&self) -> Result<u64> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|source| self.refused(source))
    }

    fn tell(&self, done: u64) {
        self.http.tell(Event::Progress { file: self.name, done, size: self.facts.size });
    }

    /// Appends what is missing until it is whole.
    fn complete(&mut self) -> Result<()> {
        let size = self.facts.size;
        if self.length()? > size {
            self.file.set_len(0).map_err(|source| self.refused(source))?;
        }
        let mut fruitless = 0;
        loop {
            let done = self.length()?;
            self.tell(done);
            if done == size {
                return Ok(());
            }
            let (error, wait) = match self.part(done) {
                Ok(()) => continue,
                Err(Part::Local(source)) => return Err(self.refused(source)),
                Err(Part::Remote(Failed { error, retry: None })) => return Err(error),
                Err(Part::Remote(Failed { error, retry: Some(wait) })) => (error, wait),
                Err(Part::Cut(reason)) => {
                    let (id, file) = (self.http.id().into(), self.name.into());
                    (Error::CutOff { id, file, done: self.length()?, size, reason }, Duration::ZERO)
                }
            };
            // A try that brought something is followed by the next; only those that brought nothing are counted.
            if self.length()? > done {
                fruitless = 0;
                continue;
            }
            if fruitless == RETRIES {
                return Err(error);
            }
            self.http.pause(&error, fruitless, wait);
            fruitless += 1;
        }
    }

    /// Appends what one answer brings.
    fn part(&mut self, done: u64) -> std::result::Result<(), Part> {
        let size = self.facts.size;
        let odd = |reason: String| Part::Remote(self.http.odd(self.url, reason).into());
        let mut response = self.http.get(self.url, done).map_err(Part::Remote)?;
        let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let from = match (response.status().as_u16(), range) {
            (206, Some(range)) if range.starts_with(&format!("bytes {done}-")) => done,
            (206, range) => {
                return Err(odd(format!(
                    "bytes from {done} were asked for, and it sends {}",
                    range.unwrap_or("others")
                )));
            }
            // It cannot go on, or has no such bytes.
            (416, _) => {
                self.file.set_len(0).map_err(Part::Local)?;
                return Err(Part::Cut("it refuses to go on".into()));
            }
            _ => 0,
        };
        self.file.set_len(from).map_err(Part::Local)?;
        let mut at = self.file.seek(SeekFrom::Start(from)).map_err(Part::Local)?;
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) if at == size => return Ok(()),
                Ok(0) => return Err(Part::Cut("the connection ends early".into())),
                Ok(read) => read,
                Err(error) => return Err(Part::Cut(one_line(&error.to_string()))),
            };
            if at + read as u64 > size {
                return Err(odd(format!("it sends more than the {size} bytes it says")));
            }
            self.file.write_all(&buffer[..read]).map_err(Part::Local)?;
            at += read as u64;
            self.tell(at);
        }
    }

    /// Of a small file the size is all that is compared.
    fn is_sound(&mut self) -> io::Result<bool> {
        self.file.sync_all()?;
        self.facts.sha256().map_or(Ok(true), |expected| Ok(sha256(&mut self.file)? == expected))
    }
}

/// How a part ended before the file did.
enum Part {
    /// Nothing came.
    Remote(Failed),
    /// It stopped.
    Cut(String),
    /// It could not be kept.
    Local(io::Error),
}

fn sha256(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
