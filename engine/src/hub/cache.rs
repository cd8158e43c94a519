//! The cache as all programs of the hub share it:
//!
//! ```text
//! models--OWNER--NAME/ or datasets--OWNER--NAME/
//!   refs/REVISION                the commit that it was
//!   snapshots/COMMIT/FILE        a link to
//!   blobs/ETAG                   the file; ETAG.incomplete while it comes
//!   .listings/COMMIT.json        ours: what the hub said of the commit, for when there is no network
//!   .listings/conversion         ours: the pull request that safetensors were taken from where main has none
//! .locks/models--OWNER--NAME/ETAG.lock
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::conversion;

/// What kind of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Model,
    Data,
}

impl Kind {
    /// In addresses of the API and names of folders.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Data => "datasets",
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Data => "data set",
        }
    }
}

/// The most bytes of what the API says of a commit: a data set of some hundred thousand files.
pub const LISTING_LIMIT: u64 = 64 << 20;
/// The most bytes of a file that names a commit or a revision.
const LINE_LIMIT: u64 = 1 << 10;

/// A repository's place in the cache.
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub fn new(cache: &Path, kind: Kind, repo: &str) -> RepoCache {
        let name = format!("{}--{}", kind.plural(), repo.replace('/', "--"));
        RepoCache { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The commit that a revision was when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        self.line(&self.folder.join("refs").join(revision)).filter(|commit| is_commit(commit))
    }

    /// Keeps what a revision is, and what the hub says of that commit.
    pub fn keep(&self, revision: &str, commit: &str, listing: &str) -> io::Result<()> {
        replace(&self.listing(commit), listing)?;
        if is_commit(revision) { Ok(()) } else { replace(&self.folder.join("refs").join(revision), commit) }
    }

    /// What the hub said of a commit, if that was kept.
    pub fn kept(&self, commit: &str) -> io::Result<Option<Vec<u8>>> {
        match read(&self.listing(commit), LISTING_LIMIT) {
            Ok(kept) => Ok(Some(kept)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where that is kept.
    pub fn listing(&self, commit: &str) -> PathBuf {
        self.folder.join(".listings").join(format!("{commit}.json"))
    }

    /// The revision of the pull request that a model's safetensors were last found in, where its main has none.
    pub fn conversion(&self) -> Option<String> {
        self.line(&self.conversion_file()).filter(|revision| conversion::is_revision(revision))
    }

    /// Keeps that, or that there is none.
    pub fn keep_conversion(&self, revision: Option<&str>) -> io::Result<()> {
        let path = self.conversion_file();
        match revision {
            Some(revision) => replace(&path, revision),
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn conversion_file(&self) -> PathBuf {
        self.folder.join(".listings/conversion")
    }

    /// What a file of one line holds; none where it cannot be read.
    fn line(&self, path: &Path) -> Option<String> {
        let text = String::from_utf8(read(path, LINE_LIMIT).ok()?).ok()?;
        Some(text.trim().to_string())
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// A commit's files that are there.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let (mut files, mut folders) = (Vec::new(), vec![String::new()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(self.snapshot(commit).join(&folder)).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                // A folder is no link, and a link may hang: what it points to decides.
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(name),
                    _ if entry.path().is_file() => files.push(name),
                    _ => {}
                }
            }
        }
        files.sort();
        files
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no one else fetches this file; `waits` hears of it where someone does.
    pub fn lock(&self, etag: &str, waits: impl FnOnce()) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        fs::create_dir_all(self.folder.join("blobs"))?;
        let lock =
            File::options().create(true).write(true).truncate(false).open(self.locks.join(format!("{etag}.lock")))?;
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => waits(),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        lock.lock()?;
        Ok(lock)
    }

    /// Puts a blob into a commit's folder under its name. Whoever does it holds the blob's lock.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(name);
        fs::create_dir_all(path.parent().expect("it is in snapshots"))?;
        // Who had the lock before may have put it there, and be reading it.
        if path.is_file() {
            return Ok(());
        }
        let _ = fs::remove_file(&path); // a link that leads nowhere
        #[cfg(unix)]
        {
            let up = "../".repeat(2 + name.split('/').count() - 1);
            match std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()), // another run's
                other => other,
            }
        }
        #[cfg(not(unix))]
        fs::copy(self.blob(etag), &path).map(|_| ())
    }
}

/// The bytes of a regular file of at most `limit` bytes. Anything else is an error: opening a pipe would wait forever.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Writes a small file, in place of what differs. No sync: what a power cut takes is asked for again.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if read(path, text.len() as u64).is_ok_and(|kept| kept == text.as_bytes()) {
        return Ok(());
    }
    let folder = path.parent().expect("it is in a repository's folder");
    fs::create_dir_all(folder)?;
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut beside, text.as_bytes())?;
    beside.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Forty hexadecimal digits.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a name from the hub stays inside the folder that it is put in.
pub fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(|c: char| c == '\\' || c == ':' || c.is_control())
        && name.split('/').all(|part| !part.is_empty())
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}
