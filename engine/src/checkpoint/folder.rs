//! A Hugging Face model folder.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::compressed;
use super::error::{Error, Result};
use super::files::{CONFIG_LIMIT, INDEX_LIMIT, read_json_object};
use super::packed::{self, WeightFormat};
use super::tensor_info::TensorInfo;
use super::weight_file;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// A model folder: its configuration and its tensors by name. Weight files are mapped; their headers are validated
/// when the folder is opened, their data is read when it is asked for.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: Value,
    tensors: BTreeMap<String, TensorInfo>,
}

impl ModelFolder {
    /// Opens a folder with config.json and either model.safetensors or model.safetensors.index.json with its shards, or the same
    /// packed: model-packed.safetensors or its index. Where both are, the first are read.
    ///
    /// # Errors
    /// Names the file, and the tensor where there is one: missing folder, configuration, weights or shard; damaged or
    /// truncated file; index entry that leaves the folder or that its shard lacks; tensor that stands twice; weights that are quantised
    /// or stored in a form of another program.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFolder> {
        let path = path.as_ref();
        let config = ModelFolder::read_config(path)?;
        compressed::refuse(path, &config)?;
        let tensors = match open_weights(path, WeightFormat::HuggingFace)? {
            Some(tensors) => tensors,
            None => open_weights(path, WeightFormat::Packed)?.ok_or_else(|| no_weights(path))?,
        };
        Ok(ModelFolder { path: path.into(), config, tensors })
    }

    /// The config.json of a folder, or of no folder at all: `path` may also name the JSON file itself. No weights are
    /// needed.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn read_config(path: impl AsRef<Path>) -> Result<Value> {
        let path = path.as_ref();
        if path.is_file() {
            return read_json_object(path, CONFIG_LIMIT);
        }
        if !path.is_dir() {
            return Err(Error::Missing {
                path: path.into(),
                reason: "no such folder; name a model folder with config.json and model.safetensors".into(),
            });
        }
        let file = path.join("config.json");
        if !exists(&file) {
            return Err(Error::Missing {
                path: file,
                reason: "no such file; a model folder has a config.json beside its weights".into(),
            });
        }
        read_json_object(&file, CONFIG_LIMIT)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration as it stands in config.json, keys in their order.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// A tensor, if it is there. For models whose names vary (with and without a prefix).
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// What the model is, as BLAKE3 of its configuration and of every byte of its weight files. Headers and sizes would not
    /// do: a fine-tuned model has those of the one that it came from. Reading 60 GB takes what the disk takes, half a minute
    /// to some minutes; a run reads them to prune them in any case.
    pub fn hash(&self) -> String {
        let mut maps: Vec<_> = self.tensors.values().flat_map(TensorInfo::maps).collect();
        maps.sort_by_key(|(path, _)| *path);
        maps.dedup_by_key(|(path, _)| *path);
        let mut hasher = blake3::Hasher::new();
        let config = self.config.to_string();
        // Lengths stand between the parts, so that no two folders are the same bytes.
        hasher.update(&(config.len() as u64).to_le_bytes()).update(config.as_bytes());
        for (_, bytes) in maps {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update_rayon(bytes);
        }
        hasher.finalize().to_string()
    }

    /// The first tensor, by name, that holds an infinity or a NaN: where numbers went astray, the one to look at. Reads
    /// every weight.
    pub fn first_not_finite(&self) -> Option<&TensorInfo> {
        self.tensors().find(|info| !info.is_finite())
    }

    /// A weight that must be there with this shape.
    ///
    /// # Errors
    /// [`Error::NoTensor`] with the closest existing names, [`Error::Shape`], or [`Error::DType`] for a type other than
    /// f32, f16 and bf16.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let Some(info) = self.tensor(name) else {
            return Err(Error::NoTensor {
                folder: self.path.clone(),
                tensor: name.into(),
                nearest: nearest(name, self.names()),
            });
        };
        if info.shape() != shape {
            return Err(Error::Shape {
                file: info.file().into(),
                tensor: name.into(),
                got: info.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        info.dtype()?;
        Ok(info)
    }
}

impl WeightFormat {
    /// What the names of its files begin with.
    pub(super) fn stem(self) -> &'static str {
        match self {
            WeightFormat::HuggingFace => "model",
            // Not a name that transformers looks for: it would find no weights it knows and start from random ones.
            WeightFormat::Packed => "model-packed",
        }
    }

    /// The file of a model that is not in shards.
    pub(super) fn single(self) -> String {
        format!("{}.safetensors", self.stem())
    }

    /// The index of one that is.
    pub(super) fn index(self) -> String {
        format!("{}.safetensors.index.json", self.stem())
    }
}

/// The tensors of a folder's weight files of one format, if it has any.
fn open_weights(folder: &Path, format: WeightFormat) -> Result<Option<BTreeMap<String, TensorInfo>>> {
    let (single, index) = (folder.join(format.single()), folder.join(format.index()));
    // The order is transformers': a single file wins over an index.
    let tensors = if exists(&single) {
        let mut tensors = BTreeMap::new();
        add_file(&mut tensors, &single, format)?;
        tensors
    } else if exists(&index) {
        open_shards(folder, &index, format)?
    } else {
        return Ok(None);
    };
    Ok(Some(match format {
        WeightFormat::HuggingFace => tensors,
        WeightFormat::Packed => packed::gather(tensors)?,
    }))
}

/// True also for a dangling link, so that opening it gives the system's error and not "no weights".
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn no_weights(folder: &Path) -> Error {
    let has = |test: fn(&str) -> bool| {
        std::fs::read_dir(folder)
            .is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|e| e.file_name().to_str().is_some_and(test))))
    };
    let mut reason = format!("no weights: looked for {SINGLE_FILE} and {INDEX_FILE}");
    if has(|name| name.starts_with("pytorch_model") && name.ends_with(".bin")) {
        reason += "; there is only pytorch_model.bin, which can run code when read: convert it to safetensors \
                   (load it with transformers and call save_pretrained)";
    } else if has(|name| name.ends_with(".safetensors")) {
        reason += "; there are .safetensors files under other names: rename the file, or add the index";
    }
    Error::Missing { path: folder.into(), reason }
}

fn add_file(tensors: &mut BTreeMap<String, TensorInfo>, path: &Path, format: WeightFormat) -> Result<()> {
    let opened = match format {
        WeightFormat::HuggingFace => weight_file::open(path)?,
        WeightFormat::Packed => weight_file::open_packed(path)?,
    };
    for info in opened {
        match tensors.entry(info.name().into()) {
            Entry::Vacant(place) => {
                place.insert(info);
            }
            Entry::Occupied(first) => {
                return Err(Error::Duplicate {
                    tensor: info.name().into(),
                    first: first.get().file().display().to_string(),
                    second: path.display().to_string(),
                });
            }
        }
    }
    Ok(())
}

fn open_shards(folder: &Path, index: &Path, format: WeightFormat) -> Result<BTreeMap<String, TensorInfo>> {
    let bad = |reason: &str| Error::Json { path: index.into(), reason: reason.into() };
    let json = read_json_object(index, INDEX_LIMIT)?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("has no object \"weight_map\""))?;
    if map.is_empty() {
        return Err(bad("its \"weight_map\" names no tensors"));
    }
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, entry) in map {
        let Some(file) = entry.as_str().filter(|file| is_plain_name(file)) else {
            let entry = entry.as_str().map_or_else(|| entry.to_string(), str::to_owned);
            return Err(Error::IndexPath { index: index.into(), tensor: tensor.clone(), entry });
        };
        shards.entry(file).or_default().push(tensor);
    }
    let mut tensors = BTreeMap::new();
    for (file, promised) in shards {
        let shard = folder.join(file);
        if !exists(&shard) {
            return Err(Error::Missing {
                path: shard,
                reason: format!("no such file, but {} needs it for {}; download it", format.index(), promised[0]),
            });
        }
        add_file(&mut tensors, &shard, format)?;
        for tensor in promised {
            if tensors.get(tensor).is_none_or(|info: &TensorInfo| info.file() != shard) {
                return Err(Error::NotInShard { index: index.into(), shard, tensor: tensor.into() });
            }
        }
    }
    Ok(tensors)
}

/// A name that cannot leave the folder on any system. The name is judged, not where a link leads: the files of a
/// download cache are links to blobs elsewhere, and made by the user, not by the index.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

/// Up to three existing names, the closest first.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    // A name that contains the other (a prefix more or less) is nearer than any respelling.
    let distance = |other: &str| {
        if other.ends_with(name) || name.ends_with(other) {
            0
        } else {
            edit_distance(name.as_bytes(), other.as_bytes())
        }
    };
    let mut scored: Vec<(usize, &str)> = names.map(|other| (distance(other), other)).collect();
    scored.sort();
    scored.into_iter().filter(|&(d, _)| d <= name.len() / 2).take(3).map(|(_, other)| other.to_owned()).collect()
}

/// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein), one row of the table at a time.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
