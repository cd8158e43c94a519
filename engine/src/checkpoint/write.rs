//! Models written as Hugging Face folders, one tensor in memory at a time.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::io::{BufWriter, Write};
use std::path::Path;

use kernels::device::DType;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo as Entry};
use serde_json::{Map, Value, json};

use super::disk::{Disk, Open};
use super::error::{Error, Result, io};
use super::files::{write_json, write_synced};
use super::folder::ModelFolder;
use super::output::OutputFolder;
use super::packed::{self, WeightFormat};
use super::tensor_info::TensorInfo;

/// The size from which transformers begins a new shard.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Text files that make a model usable beside its weights and configuration, copied where the source has them.
const COMPANIONS: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// A tensor to be written. Its bytes are asked for when its turn comes.
pub struct NewTensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Box<dyn FnOnce() -> kernels::Result<Cow<'a, [u8]>> + 'a>,
}

impl<'a> NewTensor<'a> {
    /// A tensor of any supported element type (weights: f32, f16, bf16). `bytes` gives its elements little-endian and
    /// row-major; it is called once, while the tensor is written, and its result dropped right after.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        bytes: impl FnOnce() -> kernels::Result<Cow<'a, [u8]>> + 'a,
    ) -> NewTensor<'a> {
        let dtype = match dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::U32 => Dtype::U32,
            DType::U64 => Dtype::U64,
            DType::U8 => Dtype::U8,
        };
        NewTensor { name: name.into(), dtype, shape: shape.into(), bytes: Box::new(bytes) }
    }

    /// An f32 tensor from its values.
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [f32]) -> NewTensor<'a> {
        NewTensor::new(name, DType::F32, shape, move || Ok(Cow::Borrowed(bytemuck::cast_slice(values))))
    }

    /// An f64 tensor that owns its values: records, not weights.
    pub fn f64(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: Vec<f64>) -> NewTensor<'a> {
        let bytes = Box::new(move || Ok(Cow::Owned(bytemuck::cast_slice(&values).to_vec())));
        NewTensor { name: name.into(), dtype: Dtype::F64, shape: shape.into(), bytes }
    }

    /// A tensor of an opened model, unchanged, whatever its element type.
    pub fn unchanged(info: &'a TensorInfo) -> NewTensor<'a> {
        let unread = |error: Error| kernels::Error::Domain { op: "read", reason: error.to_string() };
        let bytes = Box::new(move || info.bytes().map_err(unread));
        NewTensor { name: info.name().into(), dtype: info.stored(), shape: info.shape().to_vec(), bytes }
    }

    /// The same tensor under another name.
    pub fn named(self, name: impl Into<String>) -> NewTensor<'a> {
        NewTensor { name: name.into(), ..self }
    }

    fn size_bytes(&self) -> Result<usize> {
        let elements = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        elements.and_then(|n| n.checked_mul(self.dtype.bitsize())).map(|bits| bits / 8).ok_or_else(|| {
            Error::BadTensor {
                tensor: self.name.clone(),
                reason: format!("the shape {:?} has more bytes than memory can have", self.shape),
            }
        })
    }
}

/// Writes weights, config.json and, from `copy_from`, the tokenizer's and other small files into `out`. Tensors stay in
/// their order as far as shards go; a shard ends before the tensor that would bring it past `max_shard_bytes`. One
/// shard becomes model.safetensors, several model-0000i-of-0000n.safetensors with model.safetensors.index.json. `format` names
/// the files; for packed ones the tensors are such as [`WeightFormat::Packed`] asks for.
///
/// # Errors
/// [`Error::BadTensor`] for a name given twice, or bytes that are not what the shape needs; [`Error::Io`].
pub fn write_model<'a>(
    out: &OutputFolder,
    tensors: impl IntoIterator<Item = NewTensor<'a>>,
    config: &Value,
    copy_from: Option<&ModelFolder>,
    max_shard_bytes: u64,
    format: WeightFormat,
) -> Result<()> {
    let mut shards: Vec<Vec<NewTensor>> = vec![Vec::new()];
    let (mut shard_bytes, mut total_bytes) = (0u64, 0u64);
    let mut names = BTreeSet::new();
    for tensor in tensors {
        let bytes = tensor.size_bytes()? as u64;
        if !names.insert(tensor.name.clone()) {
            return Err(Error::BadTensor { tensor: tensor.name, reason: "it is there twice".into() });
        }
        if shard_bytes > 0 && shard_bytes + bytes > max_shard_bytes {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        total_bytes += bytes;
        shards.last_mut().expect("starts with one").push(tensor);
    }
    let count = shards.len();
    let mut weight_map = Map::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => format.single(),
            _ => format!("{}-{:05}-of-{count:05}.safetensors", format.stem(), i + 1),
        };
        for tensor in &shard {
            weight_map.insert(tensor.name.clone(), Value::String(file.clone()));
        }
        write_weight_file(out.disk(), &out.path().join(file), shard, format)?;
    }
    if count > 1 {
        weight_map.sort_keys();
        let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": weight_map});
        write_json(out.disk(), &out.path().join(format.index()), &index)?;
    }
    write_json(out.disk(), &out.path().join("config.json"), config)?;
    if let Some(source) = copy_from {
        copy_companions(source.path(), out)?;
    }
    Ok(())
}

fn copy_companions(from: &Path, out: &OutputFolder) -> Result<()> {
    for name in COMPANIONS {
        let (from, to) = (from.join(name), out.path().join(name));
        if from.is_file() && !to.exists() {
            write_synced(out.disk(), &to, &std::fs::read(&from).map_err(io("read", &from))?)?;
        }
    }
    Ok(())
}

/// Writes one safetensors file: the length of the header, the header, the tensors' bytes in its order.
pub(super) fn write_weight_file(
    disk: &dyn Disk,
    path: &Path,
    mut tensors: Vec<NewTensor>,
    format: WeightFormat,
) -> Result<()> {
    let entries = lay_out(&mut tensors)?;
    let said = match format {
        // What transformers asks for in every file.
        WeightFormat::HuggingFace => "pt",
        WeightFormat::Packed => packed::FORMAT,
    };
    let said = HashMap::from([("format".to_owned(), said.to_owned())]);
    let header = Metadata::new(Some(said), entries)
        .map_err(|e| e.to_string())
        .and_then(|metadata| serde_json::to_string(&metadata).map_err(|e| e.to_string()))
        .map_err(|reason| Error::WeightFile {
            path: path.into(),
            reason: format!("no header can be made: {reason}"),
        })?;
    let mut file = BufWriter::with_capacity(1 << 20, disk.open(path, Open::New).map_err(io("create", path))?);
    write_tensors(&header, tensors, &mut |bytes| file.write_all(bytes).map_err(io("write", path)))?;
    let file = file.into_inner().map_err(|e| io("write", path)(e.into_error()))?;
    file.sync().map_err(io("sync", path))
}

/// Puts tensors in the order in which they are written, and says where each will lie.
pub(super) fn lay_out(tensors: &mut [NewTensor]) -> Result<Vec<(String, Entry)>> {
    // Widest elements first, then by name, as the safetensors library does: so every tensor is aligned to its element,
    // and a reader can map it without a copy.
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let mut offset = 0;
    let entry = |tensor: &NewTensor| {
        let start = offset;
        offset += tensor.size_bytes()?;
        let entry = Entry { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, offset) };
        Ok((tensor.name.clone(), entry))
    };
    tensors.iter().map(entry).collect()
}

/// Hands a file's bytes to `write`: the header with its length, and tensors that are laid out.
pub(super) fn write_tensors(
    header: &str,
    tensors: Vec<NewTensor>,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    // Spaces up to a multiple of 8, so that the data starts aligned for every element type.
    let padding = &b"       "[..header.len().next_multiple_of(8) - header.len()];
    write(&((header.len() + padding.len()) as u64).to_le_bytes())?;
    write(header.as_bytes())?;
    write(padding)?;
    for tensor in tensors {
        let expected = tensor.size_bytes()?;
        let bytes = match (tensor.bytes)() {
            Ok(bytes) => bytes,
            Err(error) => return Err(Error::BadTensor { tensor: tensor.name, reason: error.to_string() }),
        };
        if bytes.len() != expected {
            let reason = format!("the shape {:?} needs {expected} bytes, {} came", tensor.shape, bytes.len());
            return Err(Error::BadTensor { tensor: tensor.name, reason });
        }
        write(&bytes)?;
    }
    Ok(())
}
