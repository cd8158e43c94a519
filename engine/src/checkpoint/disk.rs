//! What is asked of the file system where nothing may be lost: checkpoints, their lock, written models, reports.
//!
//! It is one small trait, so that a test can write down what is asked in which order and make of it every state that a power
//! cut may leave (tests/power_cut). What only reads needs no such thing.
//!
//! Two rules of POSIX decide what is asked. Bytes are safe once their file was synced; names (of a new, renamed or removed
//! file or folder) once the folder that they stand in was.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Result, io as refused};

/// How a file is opened to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must not be there yet.
    New,
    /// What is there loses its bytes.
    Emptied,
    /// What is there keeps its bytes, and can be read.
    Kept,
}

/// Changes of files and folders.
pub trait Disk: Debug + Send + Sync {
    /// Makes a folder in one that is there.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Opens a file, made if need be.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file or folder another name in the same folder; a file that had it is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with all that is in it.
    fn remove_all(&self, path: &Path) -> io::Result<()>;
    /// Returns when a folder's names are safe.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// A file that is written.
pub trait DiskFile: Write + Seek + Debug + Send {
    /// Returns when the file's bytes are safe.
    fn sync(&self) -> io::Result<()>;
    /// The system's file, to read it and to lock it: what changes nothing.
    fn as_file(&self) -> &File;
}

/// The system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

/// The disk of whoever names none.
pub(super) fn system() -> Arc<dyn Disk> {
    Arc::new(SystemDisk)
}

impl Disk for SystemDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        options.write(true);
        match how {
            Open::New => options.create_new(true),
            Open::Emptied => options.create(true).truncate(true),
            Open::Kept => options.create(true).truncate(false).read(true),
        };
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn remove_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    /// Only Unix lets a folder be opened for that; elsewhere renaming a file orders what came before. Some network file systems
    /// know no such thing and say that the argument is invalid: there is nothing more to ask of them.
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        if !cfg!(unix) {
            return Ok(());
        }
        match File::open(path)?.sync_all() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

impl DiskFile for File {
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn as_file(&self) -> &File {
        self
    }
}

/// Makes a folder and what is missing above it, and syncs the folder that each name stands in: a file is no safer than the path
/// to it. Returns what it made, the innermost first, also where it fails.
pub(super) fn create_folders(disk: &dyn Disk, path: &Path) -> (Vec<PathBuf>, Result<()>) {
    let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    let mut made = Vec::new();
    for folder in missing.into_iter().rev() {
        match disk.create_folder(folder) {
            Ok(()) => made.insert(0, folder.to_path_buf()),
            // Another process made it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return (made, Err(refused("create", folder)(error))),
        }
        if let Err(error) = sync_folder(disk, parent_of(folder)) {
            return (made, Err(error));
        }
    }
    (made, Ok(()))
}

/// Syncs a folder's names.
pub(super) fn sync_folder(disk: &dyn Disk, path: &Path) -> Result<()> {
    disk.sync_folder(path).map_err(refused("sync", path))
}

/// The folder that a name stands in.
pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
