//! Who is at a run, where several processes share a sweep's folder.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// A run that this process is at: a locked file of the run's name, which goes with it. The lock of a process that was killed goes,
/// too, and leaves a file that anyone may lock.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Claims the run whose report this is, in `running/` of the sweep's folder; nothing where another process is at it.
    ///
    /// # Errors
    /// What the system says of the file. That a file system knows no locks is no error: there a sweep is one process's.
    pub fn take(out: &Path, report: &Path) -> std::io::Result<Option<Claim>> {
        let folder = out.join("running");
        let path = folder.join(report.file_stem().unwrap_or_default());
        // Whoever ends a run removes an empty folder: it may go between the two.
        let lock = loop {
            fs::create_dir_all(&folder)?;
            match File::options().create(true).write(true).truncate(false).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                opened => break opened?,
            }
        };
        match lock.try_lock() {
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(Claim { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What stays is locked by no one, and in no one's way.
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_claimed_once_at_a_time_and_leaves_nothing() {
        let out = tempfile::TempDir::new().unwrap();
        let take = |name: &str| Claim::take(out.path(), &out.path().join("runs").join(name)).unwrap();
        let first = take("lr-1e-3-00000000.json").unwrap();
        assert!(take("lr-1e-3-00000000.json").is_none());
        let other = take("lr-2e-3-00000000.json").unwrap();
        drop(first);
        assert!(take("lr-1e-3-00000000.json").is_some());
        drop(other);
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_no_claim() {
        let out = tempfile::TempDir::new().unwrap();
        fs::create_dir(out.path().join("running")).unwrap();
        fs::write(out.path().join("running/run-00000000"), "").unwrap();
        assert!(Claim::take(out.path(), Path::new("out/runs/run-00000000.json")).unwrap().is_some());
    }
}
