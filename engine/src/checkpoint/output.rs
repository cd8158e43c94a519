//! A folder that appears complete or not at all.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Disk, SystemDisk, create_folders, parent_of, sync_folder};
use super::error::{Error, Result, io};
use super::weight_file;

/// A folder under construction. Everything is written to a hidden folder beside the wanted one; [`OutputFolder::commit`]
/// syncs it and renames it. Dropped before that, it takes everything it wrote away again.
#[derive(Debug)]
pub struct OutputFolder {
    disk: Arc<dyn Disk>,
    target: PathBuf,
    partial: PathBuf,
    /// Parents that did not exist, innermost first: they go too if nothing is committed.
    made_parents: Vec<PathBuf>,
    committed: bool,
}

impl OutputFolder {
    /// Checks that `target` can be created: it must not exist, or be an empty folder, and a folder can be made where it will
    /// be; nothing stays of the trial. To be called before a long run, whose results would have nowhere to go.
    ///
    /// # Errors
    /// [`Error::Output`] if there is something at `target`; in particular a source model is never written over.
    /// [`Error::Io`] where nothing can be created.
    pub fn check(target: impl AsRef<Path>) -> Result<()> {
        let target = target.as_ref();
        OutputFolder::check_free(target)?;
        let above = parent_of(target).ancestors().map(or_here).find(|path| path.exists()).unwrap_or(Path::new("."));
        let trial = above.join(partial_name(target));
        match SystemDisk.create_folder(&trial) {
            Ok(()) => SystemDisk.remove_folder(&trial).map_err(io("remove", &trial)),
            // Left by a killed process that had this one's id.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(io("create", target)(e)),
        }
    }

    fn check_free(target: &Path) -> Result<()> {
        let refuse = |reason: &str| Err(Error::Output { path: target.into(), reason: reason.into() });
        if target.file_name().is_none() {
            return refuse("is not the name of a folder; name a new folder");
        }
        match fs::symlink_metadata(target) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io("open", target)(e)),
            Ok(kind) if !kind.is_dir() => refuse("exists and is not a folder; name a new folder"),
            Ok(_) => match fs::read_dir(target).map_err(io("read", target))?.next() {
                None => Ok(()),
                Some(_) if target.join("config.json").exists() => {
                    refuse("holds a model already, and models are never written over; name a new folder")
                }
                Some(_) => refuse("exists and is not empty; name a new folder, or empty this one"),
            },
        }
    }

    /// Starts a folder that will appear at `target`. Missing parents are made.
    ///
    /// # Errors
    /// As [`OutputFolder::check`], and [`Error::Io`] where nothing can be created.
    pub fn create(target: impl AsRef<Path>) -> Result<OutputFolder> {
        OutputFolder::create_on(disk::system(), target)
    }

    /// The same on any disk.
    ///
    /// # Errors
    /// As [`OutputFolder::create`].
    pub fn create_on(disk: Arc<dyn Disk>, target: impl AsRef<Path>) -> Result<OutputFolder> {
        let target = target.as_ref();
        OutputFolder::check_free(target)?;
        let parent = parent_of(target);
        let partial = parent.join(partial_name(target));
        let (made_parents, made) = create_folders(&*disk, parent);
        // From here on Drop cleans up, whatever fails.
        let folder = OutputFolder { disk, target: target.into(), partial, made_parents, committed: false };
        made?;
        if folder.partial.exists() {
            // Left by a killed process that had this one's id.
            folder.disk.remove_all(&folder.partial).map_err(io("remove", &folder.partial))?;
        }
        folder.disk.create_folder(&folder.partial).map_err(io("create", &folder.partial))?;
        Ok(folder)
    }

    /// What its files are written on.
    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Where its files lie until it is committed.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Where it will appear.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// A folder inside, made if need be.
    pub(super) fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let path = self.partial.join(name);
        if !path.is_dir() {
            self.disk.create_folder(&path).map_err(io("create", &path))?;
        }
        Ok(path)
    }

    /// What is in it, as [`folder_hash`] says it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn hash(&self) -> Result<String> {
        folder_hash(&self.partial)
    }

    /// Syncs the folder and renames it to its target.
    ///
    /// # Errors
    /// [`Error::Output`] if something appeared at the target meanwhile, [`Error::Io`] if the system refuses; then nothing
    /// is left behind.
    pub fn commit(mut self) -> Result<()> {
        OutputFolder::check_free(&self.target)?;
        sync_tree(self.disk(), &self.partial)?;
        if self.target.exists() {
            // Checked to be empty. Not every system renames over an empty folder.
            self.disk.remove_folder(&self.target).map_err(io("replace", &self.target))?;
        }
        self.disk.rename(&self.partial, &self.target).map_err(io("create", &self.target))?;
        self.committed = true;
        sync_folder(self.disk(), parent_of(&self.target))
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here, and the error that led here is the one to report.
            let _ = self.disk.remove_all(&self.partial);
            for parent in &self.made_parents {
                let _ = self.disk.remove_folder(parent); // only if empty
            }
        }
    }
}

/// What a written folder is, as BLAKE3 of all its files, in the order of their paths: of each the length of its path below the folder,
/// that path, the length of its bytes, and these; lengths are u64.
///
/// # Errors
/// [`Error::Io`]; [`Error::Missing`] for what is neither a file nor a folder.
pub fn folder_hash(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    let mut left = vec![(folder.to_path_buf(), String::new())];
    while let Some((at, below)) = left.pop() {
        for entry in fs::read_dir(&at).map_err(io("read", &at))? {
            let entry = entry.map_err(io("read", &at))?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                left.push((entry.path(), format!("{name}/")));
            } else {
                files.push((name, entry.path()));
            }
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, path) in files {
        let bytes = weight_file::map(&path)?;
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update_rayon(&bytes);
    }
    Ok(hasher.finalize().to_string())
}

/// What a file is, as BLAKE3 of its bytes.
///
/// # Errors
/// [`Error::Io`]; [`Error::Missing`] for what is no file.
pub fn file_hash(path: &Path) -> Result<String> {
    Ok(blake3::Hasher::new().update_rayon(&weight_file::map(path)?).finalize().to_string())
}

/// The hidden folder beside `target`. It has a name: that is checked first.
fn partial_name(target: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".partial-{}", std::process::id()));
    name
}

/// The empty path as what it means.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn sync_tree(disk: &dyn Disk, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(io("read", folder))? {
        let path = entry.map_err(io("read", folder))?.path();
        if path.is_dir() {
            sync_tree(disk, &path)?;
        }
    }
    sync_folder(disk, folder)
}
