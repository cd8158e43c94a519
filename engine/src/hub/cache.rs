//! The cache as all programs of the hub share it:
//!
//! ```text
//! models--OWNER--NAME/ or datasets--OWNER--NAME/
//!   refs/REVISION                the commit that it was
//!   snapshots/COMMIT/FILE        a link to
//!   blobs/ETAG                   the file; ETAG.incomplete while it comes
//!   .listings/COMMIT.json        ours: what the hub said of the commit, for when there is no network
//! .locks/models--OWNER--NAME/ETAG.lock
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};

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
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Keeps what a revision is, and what the hub says of that commit.
    pub fn keep(&self, revision: &str, commit: &str, listing: &str) -> io::Result<()> {
        replace(&self.listing(commit), listing)?;
        if is_commit(revision) { Ok(()) } else { replace(&self.folder.join("refs").join(revision), commit) }
    }

    /// What the hub said of a commit.
    pub fn kept(&self, commit: &str) -> Option<Vec<u8>> {
        fs::read(self.listing(commit)).ok()
    }

    fn listing(&self, commit: &str) -> PathBuf {
        self.folder.join(".listings").join(format!("{commit}.json"))
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

/// Writes a small file, in place of what differs. No sync: what a power cut takes is asked for again.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|kept| kept == text) {
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
