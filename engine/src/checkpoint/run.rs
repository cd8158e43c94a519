//! Checkpoints of a training run: files that appear complete or not at all, and prove that they are what was written.
//!
//! A checkpoint is one safetensors file whose metadata carry a checksum over the whole file and what the run says of
//! itself, as JSON; docs/checkpoints.md describes it byte by byte. The checksum stands at a fixed place, so that nothing
//! in a file is believed before the file is known to be intact.

use std::fs::{self, TryLockError};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::disk::{self, Disk, DiskFile, Open, create_folders, sync_folder};
use super::error::{Error, Result, io};
use super::files::{CONFIG_LIMIT, read_json_object, replace_file_on};
use super::tensor_info::TensorInfo;
use super::weight_file;
use super::write::{NewTensor, lay_out, write_tensors};

/// What a file begins with, after the eight bytes of the header's length.
const OPENING: &str = r#"{"__metadata__":{"checksum":""#;
/// The first byte of the checksum.
const CHECKSUM_AT: usize = 8 + OPENING.len();
/// Its hexadecimal digits.
const CHECKSUM_LEN: usize = 2 * blake3::OUT_LEN;
/// What stands in its place while it is computed.
const NO_CHECKSUM: [u8; CHECKSUM_LEN] = [b'0'; CHECKSUM_LEN];
/// What the run ends in.
const RESULT: &str = "result.json";
/// The format that this version writes, and the only one it reads.
const FORMAT: &str = "1";

/// Bytes of the lock: the id of the process that holds it, and spaces, which take the place of a longer one's digits.
const HOLDER: usize = 20;

/// The folder of a run's checkpoints, held by this process alone.
#[derive(Debug)]
pub struct RunFolder {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// The system frees the lock when the process is gone, however it went.
    _lock: Box<dyn DiskFile>,
}

/// What [`RunFolder::newest`] finds.
#[derive(Debug)]
pub struct Newest<T> {
    /// The newest that is intact, if there is one.
    pub intact: Option<T>,
    /// Those that are newer, or all, and what is wrong with each: the newest first.
    pub damaged: Vec<(PathBuf, Error)>,
}

impl RunFolder {
    /// Takes the folder for this process, makes it if need be, and clears away what a killed process left half-written.
    ///
    /// # Errors
    /// [`Error::Output`] where another process holds it or it is no folder, [`Error::Io`] where it cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<RunFolder> {
        RunFolder::open_on(disk::system(), path)
    }

    /// The same on any disk.
    ///
    /// # Errors
    /// As [`RunFolder::open`].
    pub fn open_on(disk: Arc<dyn Disk>, path: impl AsRef<Path>) -> Result<RunFolder> {
        let path = path.as_ref();
        let refuse = |reason: String| Err(Error::Output { path: path.into(), reason });
        if path.exists() && !path.is_dir() {
            return refuse("is not a folder, and checkpoints need one; name another".into());
        }
        create_folders(&*disk, path).1?;
        let file = path.join("lock");
        let mut lock = disk.open(&file, Open::Kept).map_err(io("create", &file))?;
        match lock.as_file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.as_file().take(HOLDER as u64).read_to_string(&mut holder); // it only helps to find the process
                let holder = holder.trim();
                let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
                return refuse(format!(
                    "another run{holder} keeps its checkpoints here; wait for it, or name another folder"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", &file)(error)),
        }
        // Who holds it is told to others; a disk too full for that will be noticed by the first checkpoint.
        let _ = write!(lock, "{:<HOLDER$}", std::process::id());
        let folder = RunFolder { disk, path: path.into(), _lock: lock };
        let is_left = |name: &str| {
            name.starts_with(".step-") && name.ends_with(".partial") || name.starts_with(".result.json.partial-")
        };
        for left in folder.names(is_left)? {
            folder.disk.remove_file(&left).map_err(io("remove", &left))?;
        }
        // A run that was killed may have renamed a checkpoint and not synced it: what this run goes on from is to stay.
        sync_folder(&*folder.disk, path)?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its checkpoints with their numbers, the newest first; not yet examined.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let number = |name: &str| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok();
        let mut found: Vec<(u64, PathBuf)> = self
            .names(|name| number(name).is_some())?
            .into_iter()
            .filter_map(|path| Some((number(path.file_name()?.to_str()?)?, path)))
            .collect();
        found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        Ok(found)
    }

    /// The newest checkpoint that `read` reads, and what is torn or altered of those that are newer.
    ///
    /// # Errors
    /// Any error of `read` but [`Error::Run`] and [`Error::WeightFile`], which say that the file is at fault; [`Error::Io`].
    pub fn newest<T>(
        &self,
        mut read: impl FnMut(PathBuf) -> crate::error::Result<T>,
    ) -> crate::error::Result<Newest<T>> {
        let mut damaged = Vec::new();
        for (_, path) in self.checkpoints()? {
            match read(path.clone()) {
                Ok(read) => return Ok(Newest { intact: Some(read), damaged }),
                Err(crate::error::Error::Checkpoint(error @ (Error::Run { .. } | Error::WeightFile { .. }))) => {
                    damaged.push((path, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Newest { intact: None, damaged })
    }

    /// Writes checkpoint `number` of what a run says of itself and its tensors: beside, synced, renamed, and the folder
    /// synced, so that a power cut at any moment leaves the one before or this one.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses, such as a full disk; or a tensor that cannot be read. What was there is
    /// untouched then, and nothing else is left.
    pub fn save(&self, number: u64, run: &Value, tensors: Vec<NewTensor>) -> Result<PathBuf> {
        let path = self.path.join(format!("step-{number:08}.safetensors"));
        let beside = self.path.join(format!(".step-{number:08}.partial"));
        let written = write_file(&*self.disk, &beside, run, tensors)
            .and_then(|()| self.disk.rename(&beside, &path).map_err(io("create", &path)))
            .and_then(|()| sync_folder(&*self.disk, &self.path));
        if written.is_err() {
            let _ = self.disk.remove_file(&beside); // the error that led here is the one to report
        }
        written.map(|()| path)
    }

    /// Removes all checkpoints but the newest `keep`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep_newest(&self, keep: usize) -> Result<()> {
        for (_, old) in self.checkpoints()?.into_iter().skip(keep) {
            self.disk.remove_file(&old).map_err(io("remove", &old))?;
        }
        Ok(())
    }

    /// Renames a damaged checkpoint, so that it is not taken for the newest again; it stays for whoever wants to see it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_aside(&self, path: &Path) -> Result<()> {
        self.disk.rename(path, &path.with_extension("safetensors.damaged")).map_err(io("rename", path))
    }

    /// Writes down what the run ends in: what [`RunFolder::result`] gives to whoever comes later. To be called when all of it is written
    /// but for the last rename, so that a result that is there is always told of.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_result(&self, result: &Value) -> Result<()> {
        replace_file_on(&*self.disk, &self.result_file(), format!("{result:#}\n").as_bytes())
    }

    /// The file for what the run ends in.
    pub fn result_file(&self) -> PathBuf {
        self.path.join(RESULT)
    }

    /// What the run ends in, where it was about to.
    ///
    /// # Errors
    /// [`Error::Json`] for what no run wrote, [`Error::Io`].
    pub fn result(&self) -> Result<Option<Value>> {
        if !RunFolder::has_result(&self.path) {
            return Ok(None);
        }
        read_json_object(&self.result_file(), CONFIG_LIMIT).map(Some)
    }

    /// Whether there is such a result in a folder, which need not be held for that.
    pub fn has_result(folder: impl AsRef<Path>) -> bool {
        folder.as_ref().join(RESULT).symlink_metadata().is_ok()
    }

    /// Forgets what another run ended in.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_result(&self) -> Result<()> {
        let path = self.result_file();
        if !RunFolder::has_result(&self.path) {
            return Ok(());
        }
        self.disk.remove_file(&path).map_err(io("remove", &path))
    }

    fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io("read", &self.path))? {
            let entry = entry.map_err(io("read", &self.path))?;
            if entry.file_name().to_str().is_some_and(&wanted) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

fn write_file(disk: &dyn Disk, path: &Path, run: &Value, mut tensors: Vec<NewTensor>) -> Result<()> {
    let mut header = Map::from_iter([(
        "__metadata__".to_string(),
        json!({"checksum": str::from_utf8(&NO_CHECKSUM).expect("digits"), "format": FORMAT, "run": run.to_string()}),
    )]);
    for (name, entry) in lay_out(&mut tensors)? {
        let bad = |reason: String| Error::BadTensor { tensor: name.clone(), reason };
        let entry = serde_json::to_value(&entry).map_err(|e| bad(e.to_string()))?;
        if header.insert(name.clone(), entry).is_some() {
            return Err(bad("it is there twice".into()));
        }
    }
    let header = Value::Object(header).to_string();
    debug_assert!(header.starts_with(OPENING), "keys keep their order");
    let mut hasher = blake3::Hasher::new();
    let mut file = BufWriter::with_capacity(1 << 20, disk.open(path, Open::Emptied).map_err(io("create", path))?);
    write_tensors(&header, tensors, &mut |bytes| {
        hasher.update_rayon(bytes);
        file.write_all(bytes).map_err(io("write", path))
    })?;
    let mut file = file.into_inner().map_err(|e| io("write", path)(e.into_error()))?;
    file.seek(SeekFrom::Start(CHECKSUM_AT as u64))
        .and_then(|_| file.write_all(hasher.finalize().to_hex().as_bytes()))
        .map_err(io("write", path))?;
    file.sync().map_err(io("sync", path))
}

/// An intact checkpoint of a run.
#[derive(Debug)]
pub struct RunCheckpoint {
    path: PathBuf,
    run: Value,
    tensors: Vec<TensorInfo>,
}

impl RunCheckpoint {
    /// Opens a checkpoint whose every byte is as it was written.
    ///
    /// # Errors
    /// [`Error::Run`] for a file that is torn, altered, or of another format; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<RunCheckpoint> {
        let path = path.as_ref();
        let bad = |reason: &str| Error::Run { path: path.into(), reason: reason.into() };
        let map = weight_file::map(path)?;
        if map.len() < CHECKSUM_AT + CHECKSUM_LEN {
            return Err(bad(&format!("is torn: it has only {} bytes", map.len())));
        }
        let (before, rest) = map.split_at(CHECKSUM_AT);
        let (checksum, after) = rest.split_at(CHECKSUM_LEN);
        let mut hasher = blake3::Hasher::new();
        hasher.update(before).update(&NO_CHECKSUM).update_rayon(after);
        if hasher.finalize().to_hex().as_bytes() != checksum {
            return Err(bad("is torn or altered: its checksum is not that of its bytes"));
        }
        let length = u64::from_le_bytes(before[..8].try_into().expect("eight bytes")) as usize;
        let header: Value = map
            .get(8..length.saturating_add(8))
            .and_then(|header| serde_json::from_slice(header).ok())
            .ok_or_else(|| bad("has no header"))?;
        let metadata = |key: &str| header["__metadata__"][key].as_str();
        if metadata("format") != Some(FORMAT) {
            let format = metadata("format").unwrap_or("unknown");
            return Err(bad(&format!("has the format {format}; this version reads format {FORMAT}")));
        }
        let run = metadata("run").and_then(|run| serde_json::from_str(run).ok());
        let run = run.ok_or_else(|| bad("does not say what run it is of"))?;
        Ok(RunCheckpoint { path: path.into(), run, tensors: weight_file::list(path, map)? })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the run says of itself.
    pub fn run(&self) -> &Value {
        &self.run
    }

    /// A tensor's element type as safetensors spells it, its shape, and its bytes.
    pub fn find(&self, name: &str) -> Option<(String, &[usize], &[u8])> {
        let info = self.tensors.iter().find(|info| info.name() == name)?;
        Some((info.dtype_name(), info.shape(), info.stored_bytes()))
    }

    /// The bytes of a tensor that must be there with this element type and shape.
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn bytes(&self, name: &str, element: &str, shape: &[usize]) -> Result<&[u8]> {
        let bad = |reason: String| Error::Run { path: self.path.clone(), reason };
        match self.find(name) {
            None => Err(bad(format!("has no tensor {name}: it is of another run"))),
            Some((got, at, bytes)) if got == element && at == shape => Ok(bytes),
            Some((got, at, _)) => Err(bad(format!(
                "{name} is {got} {at:?}, and this run needs {element} {shape:?}: it is of another run"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &RunFolder, number: u64) -> PathBuf {
        let tensors = vec![
            NewTensor::f32("value.a", [2], &[1.0, -2.5]),
            NewTensor::f64("steps", [1, 3], vec![1.0, 2.0, f64::from(number as u32)]),
        ];
        folder.save(number, &json!({"step": number}), tensors).unwrap()
    }

    #[test]
    fn what_is_read_is_what_was_written_and_any_safetensors_reader_reads_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path().join("new/run")).unwrap();
        let path = write(&folder, 7);
        assert!(path.ends_with("step-00000007.safetensors"));
        let checkpoint = RunCheckpoint::open(&path).unwrap();
        assert_eq!(checkpoint.run(), &json!({"step": 7}));
        assert_eq!(checkpoint.bytes("value.a", "F32", &[2]).unwrap(), bytemuck::cast_slice::<f32, u8>(&[1.0, -2.5]));
        assert_eq!(checkpoint.bytes("steps", "F64", &[1, 3]).unwrap()[16..], 7f64.to_le_bytes());
        for (name, element, shape) in [("value.b", "F32", &[2][..]), ("value.a", "F32", &[1]), ("value.a", "U64", &[2])]
        {
            let error = checkpoint.bytes(name, element, shape).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("another run"), "{error}");
        }
        let bytes = fs::read(&path).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 2);
    }

    #[test]
    fn every_altered_byte_and_every_truncation_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path()).unwrap();
        let path = write(&folder, 1);
        let bytes = fs::read(&path).unwrap();
        let refused = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let error = RunCheckpoint::open(&path).expect_err(what).to_string();
            assert!(error.contains("step-00000001.safetensors: is torn"), "{what}: {error}");
        };
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1 << (at % 8);
            refused(&altered, &format!("byte {at}"));
            refused(&bytes[..at], &format!("{at} bytes"));
        }
        refused(&[&bytes[..], &[0]].concat(), "one byte more");
    }

    #[test]
    fn the_newest_are_kept_and_only_checkpoints_count() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path()).unwrap();
        fs::write(dir.path().join("step-x.safetensors"), "").unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        // Numbers, not names, are compared.
        for number in [9, 123_456_789, 10] {
            write(&folder, number);
        }
        folder.keep_newest(2).unwrap();
        let numbers = || folder.checkpoints().unwrap().into_iter().map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!(numbers(), [123_456_789, 10]);
        folder.set_aside(&folder.checkpoints().unwrap()[0].1).unwrap();
        assert_eq!(numbers(), [10]);
        assert!(
            dir.path().join("step-123456789.safetensors.damaged").exists() && dir.path().join("notes.txt").exists()
        );
    }

    #[test]
    fn a_folder_is_held_by_one_and_what_was_half_written_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".step-00000003.partial"), "half").unwrap();
        let folder = RunFolder::open(dir.path()).unwrap();
        assert!(!dir.path().join(".step-00000003.partial").exists());
        let error = RunFolder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("another run (process {})", std::process::id())), "{error}");
        drop(folder);
        RunFolder::open(dir.path()).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(RunFolder::open(&file).unwrap_err().to_string().contains("is not a folder"));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_the_others_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path()).unwrap();
        let good = write(&folder, 1);
        let wrong = NewTensor::new("value.a", kernels::DType::F32, [2], || Ok(vec![0; 4].into()));
        let error = folder.save(2, &json!({}), vec![wrong]).unwrap_err().to_string();
        assert!(error.contains("value.a"), "{error}");
        assert_eq!(folder.checkpoints().unwrap(), [(1, good.clone())]);
        RunCheckpoint::open(&good).unwrap();
        assert!(!dir.path().join(".step-00000002.partial").exists());
    }

    #[test]
    fn an_intact_file_of_another_format_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path()).unwrap();
        let path = write(&folder, 1);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(12).position(|part| part == b"\"format\":\"1\"").unwrap();
        bytes[at + 10] = b'9';
        bytes[CHECKSUM_AT..][..CHECKSUM_LEN].copy_from_slice(&NO_CHECKSUM);
        let checksum = blake3::hash(&bytes).to_hex();
        bytes[CHECKSUM_AT..][..CHECKSUM_LEN].copy_from_slice(checksum.as_bytes());
        fs::write(&path, bytes).unwrap();
        let error = RunCheckpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains("has the format 9; this version reads format 1"), "{error}");
    }
}
