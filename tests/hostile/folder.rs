//! The folder that each case starts from, and what can be spoilt in it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_succeeds, program, text};

/// One thing that is done to the folder.
pub enum Spoil {
    /// A file with these bytes in the place of what is there.
    Bytes(&'static str, Vec<u8>),
    /// A file of so many zeros that takes no room on the disk.
    Zeros(&'static str, u64),
    /// The file without its last bytes.
    Shorter(&'static str, usize),
    /// The JSON file with these fields; null is null.
    Fields(&'static str, Value),
    /// The safetensors file with its header changed, its data as it was.
    Header(&'static str, fn(&mut Value)),
    /// The checkpoint with its header changed, and the checksum that goes with it.
    Sealed(fn(&mut Value)),
    /// The f32 at the start of a tensor of the safetensors file.
    Value(&'static str, &'static str, f32),
    /// Nothing where something was.
    Gone(&'static str),
    /// The same under another name.
    Renamed(&'static str, &'static str),
    /// A symbolic link.
    Link(&'static str, &'static str),
    /// A named pipe, which nobody writes to.
    Pipe(&'static str),
    /// A folder.
    Folder(&'static str),
}

pub const WEIGHTS: &str = "model/model.safetensors";
pub const INDEX: &str = "model/model.safetensors.index.json";
pub const CONFIG: &str = "model/config.json";
/// The newest checkpoint in `run`.
pub const NEWEST: &str = "run/step-00000002.safetensors";

/// A safetensors file: its header, and zeros.
pub fn safetensors(header: impl AsRef<[u8]>, data: usize) -> Spoil {
    Spoil::Bytes(WEIGHTS, file(header.as_ref(), &vec![0; data]))
}

/// The header of one tensor `a`.
pub fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// A safetensors file's header, and what follows it.
fn parts(bytes: &[u8]) -> (Value, &[u8]) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), &bytes[8 + length..])
}

/// A new folder without a fault.
pub fn fresh() -> TempDir {
    let folder = TempDir::new().unwrap();
    copy(base(), folder.path());
    folder
}

fn base() -> &'static Path {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let (base, fixture) = (TempDir::new().unwrap(), Fixture::get());
        let at = |name: &str| base.path().join(name);
        fs::create_dir(at("model")).unwrap();
        copy(&fixture.model(), &at("model"));
        fs::copy(fixture.train(), at("train.txt")).unwrap();
        fs::copy(fixture.eval(), at("eval.txt")).unwrap();
        let (model, out, run) = (at("model"), at("out"), at("run"));
        let (train, eval) = (at("train.txt"), at("eval.txt"));
        let places =
            [("--model", &model), ("--train", &train), ("--eval", &eval), ("--out", &out), ("--checkpoints", &run)];
        let places: Vec<&str> = places.iter().flat_map(|(flag, path)| [*flag, text(path)]).collect();
        let args = [&["retrain", "--steps", "2", "--quiet", "--keep", "1"][..], &places].concat();
        assert_succeeds(&program(&args).output().unwrap());
        fs::rename(out.join("adapter"), at("adapter")).unwrap();
        fs::remove_dir_all(out).unwrap();
        fs::remove_file(run.join("lock")).unwrap();
        base
    })
    .path()
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Files of so many bytes that take no room on the disk hold zeros alone, and are not read.
const LARGE: u64 = 1 << 20;

/// All paths below a folder, sorted, each with what it is: of regular files a hash, of links where they lead. What checkpoints' folders
/// always have is left out.
pub fn listing(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap();
        if kind.is_dir() {
            found.extend(listing(&path));
        }
        let what = match kind.file_type() {
            of if of.is_symlink() => format!("a link to {}", fs::read_link(&path).unwrap().display()),
            of if of.is_file() && kind.blocks() == 0 && kind.len() >= LARGE => format!("{} zeros", kind.len()),
            of if of.is_file() => hash(&path),
            of => format!("{of:?}"),
        };
        if !path.ends_with("run/lock") {
            found.push((text(&path).to_string(), what));
        }
    }
    found.sort();
    found
}

/// Piece by piece: what this process holds counts as its children's, too.
fn hash(path: &Path) -> String {
    blake3::Hasher::new().update_reader(fs::File::open(path).unwrap()).unwrap().finalize().to_string()
}

impl Spoil {
    pub fn apply(&self, folder: &Path) {
        let at = |name: &str| folder.join(name);
        let read = |name: &str| fs::read(at(name)).unwrap();
        let make_room = |name: &str| {
            let path = at(name);
            match path.symlink_metadata() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path).unwrap(),
                Ok(_) => fs::remove_file(&path).unwrap(),
                Err(_) => {}
            }
            path
        };
        match self {
            Spoil::Bytes(name, bytes) => fs::write(make_room(name), bytes).unwrap(),
            Spoil::Zeros(name, len) => fs::File::create(make_room(name)).unwrap().set_len(*len).unwrap(),
            Spoil::Shorter(name, by) => {
                let bytes = read(name);
                fs::write(at(name), &bytes[..bytes.len() - by]).unwrap();
            }
            Spoil::Fields(name, fields) => {
                let mut json: Value = serde_json::from_slice(&read(name)).unwrap();
                for (field, value) in fields.as_object().unwrap() {
                    json[field] = value.clone();
                }
                fs::write(at(name), json.to_string()).unwrap();
            }
            Spoil::Header(name, edit) => {
                let bytes = read(name);
                let (mut header, data) = parts(&bytes);
                edit(&mut header);
                fs::write(at(name), file(header.to_string().as_bytes(), data)).unwrap();
            }
            Spoil::Sealed(edit) => {
                let bytes = read(NEWEST);
                let (mut header, data) = parts(&bytes);
                edit(&mut header);
                header["__metadata__"]["checksum"] = "0".repeat(64).into();
                let bytes = file(header.to_string().as_bytes(), data);
                header["__metadata__"]["checksum"] = blake3::hash(&bytes).to_hex().as_str().into();
                fs::write(at(NEWEST), file(header.to_string().as_bytes(), data)).unwrap();
            }
            Spoil::Value(name, tensor, value) => {
                let mut bytes = read(name);
                let (header, data) = parts(&bytes);
                let first = bytes.len() - data.len() + header[*tensor]["data_offsets"][0].as_u64().unwrap() as usize;
                bytes[first..first + 4].copy_from_slice(&value.to_le_bytes());
                fs::write(at(name), bytes).unwrap();
            }
            Spoil::Gone(name) => drop(make_room(name)),
            Spoil::Renamed(from, to) => fs::rename(at(from), at(to)).unwrap(),
            Spoil::Link(name, to) => symlink(to, make_room(name)).unwrap(),
            Spoil::Pipe(name) => {
                assert!(Command::new("mkfifo").arg(make_room(name)).status().unwrap().success());
            }
            Spoil::Folder(name) => fs::create_dir(make_room(name)).unwrap(),
        }
    }
}
