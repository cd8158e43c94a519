//! A disk that does what it is asked in a folder of the real one, and writes it down.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine::checkpoint::{Disk, DiskFile, Open, SystemDisk};

use super::file_system::Op;

/// What a run says, for others to rely on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// This checkpoint is written.
    Checkpoint(u64),
    /// It goes on from this checkpoint.
    GoesOn(u64),
    /// The report is written.
    Report,
    /// The model is written.
    Model,
    /// It was over already.
    Over,
}

/// An entry of the log.
#[derive(Clone, Debug)]
pub enum Entry {
    Op(Op),
    Said(Said),
}

/// The disk. Nothing is really synced: what is tested is what was asked.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    log: Arc<Mutex<Vec<Entry>>>,
}

impl Recorder {
    /// On an existing folder.
    pub fn new(root: &Path) -> Recorder {
        Recorder { root: root.into(), log: Arc::default() }
    }

    /// What was asked and said so far.
    pub fn log(&self) -> Vec<Entry> {
        self.log.lock().unwrap().clone()
    }

    pub fn say(&self, said: Said) {
        self.log.lock().unwrap().push(Entry::Said(said));
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or_else(|_| panic!("{} is elsewhere", path.display())).into()
    }

    fn wrote(&self, op: Op) {
        self.log.lock().unwrap().push(Entry::Op(op));
    }
}

impl Disk for Recorder {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_folder(path)?;
        self.wrote(Op::CreateFolder(self.relative(path)));
        Ok(())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let is_new = !path.exists();
        // The real trait object is the system's; its file is shared with this one's.
        let file = SystemDisk.open(path, how)?.as_file().try_clone()?;
        let relative = self.relative(path);
        match (is_new, how) {
            (true, _) => self.wrote(Op::CreateFile(relative.clone())),
            (false, Open::Emptied) => self.wrote(Op::Empty(relative.clone())),
            (false, _) => {}
        }
        Ok(Box::new(Recorded { file, path: relative, log: self.log.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)?;
        self.wrote(Op::Rename(self.relative(from), self.relative(to)));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_file(path)?;
        self.wrote(Op::Remove(self.relative(path)));
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_folder(path)?;
        self.wrote(Op::Remove(self.relative(path)));
        Ok(())
    }

    fn remove_all(&self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { self.remove_all(&entry.path())? } else { self.remove_file(&entry.path())? }
        }
        self.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        assert!(path.is_dir(), "{}", path.display());
        self.wrote(Op::SyncFolder(self.relative(path)));
        Ok(())
    }
}

#[derive(Debug)]
struct Recorded {
    file: File,
    path: PathBuf,
    log: Arc<Mutex<Vec<Entry>>>,
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self.file.stream_position()? as usize;
        let written = self.file.write(bytes)?;
        let op = Op::Write { path: self.path.clone(), at, bytes: bytes[..written].to_vec() };
        self.log.lock().unwrap().push(Entry::Op(op));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Recorded {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl DiskFile for Recorded {
    fn sync(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(Entry::Op(Op::SyncFile(self.path.clone())));
        Ok(())
    }

    fn as_file(&self) -> &File {
        &self.file
    }
}
