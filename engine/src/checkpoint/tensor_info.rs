//! One tensor of a weight file, and the ways to bring it into memory.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kernels::device::{Backend, Buffer, Category, DType, Device};
use kernels::weight::{FrozenWeight, PackedRows};
use safetensors::Dtype;

use super::error::{Error, Result};
use super::weight_file::WeightFile;

/// A tensor in a mapped weight file: its name, type, shape and place. Cloning shares the mapping; nothing is read
/// before one of the reading methods is called.
#[derive(Clone)]
pub struct TensorInfo {
    name: String,
    stored: Dtype,
    shape: Vec<usize>,
    file: Arc<WeightFile>,
    /// The first byte in the file.
    offset: usize,
    bytes: usize,
    /// Of a packed matrix, whose values the fields above name: its mask and its starts.
    packed: Option<Arc<(TensorInfo, TensorInfo)>>,
}

impl TensorInfo {
    /// `data_start`: the byte of the file where the tensors' data begins. The header has been validated: the range
    /// lies in the file and agrees with shape and type.
    pub(super) fn new(
        name: String,
        info: &safetensors::tensor::TensorInfo,
        file: Arc<WeightFile>,
        data_start: usize,
    ) -> TensorInfo {
        let (start, end) = info.data_offsets;
        TensorInfo {
            name,
            stored: info.dtype,
            shape: info.shape.clone(),
            file,
            offset: data_start + start,
            bytes: end - start,
            packed: None,
        }
    }

    /// The matrix of which these are the parts. Only whether they belong together is still to be seen, by
    /// [`packed_rows`](Self::packed_rows).
    pub(super) fn of_parts(
        name: &str,
        shape: [usize; 2],
        bits: TensorInfo,
        starts: TensorInfo,
        values: TensorInfo,
    ) -> TensorInfo {
        TensorInfo { name: name.into(), shape: shape.into(), packed: Some(Arc::new((bits, starts))), ..values }
    }

    /// True for a matrix of a packed weight file: its zeros are not in the file.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// True for the matrices that pruning works on: two dimensions, inside a numbered layer.
    pub fn is_layer_matrix(&self) -> bool {
        self.shape.len() == 2 && self.name.split('.').any(|part| part.parse::<usize>().is_ok())
    }

    /// The tensors of the file that it is made of.
    fn parts(&self) -> impl Iterator<Item = &TensorInfo> {
        std::iter::once(self).chain(self.packed.iter().flat_map(|parts| [&parts.0, &parts.1]))
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor of no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its size in the file, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.parts().map(|part| part.bytes).sum()
    }

    /// The file that holds it.
    pub fn file(&self) -> &Path {
        &self.file.path
    }

    /// The files that hold it, and all their bytes.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.parts().map(|part| (part.file.path.as_path(), &part.file.map[..]))
    }

    /// Its first byte in the file.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its element type as the file spells it: "F32", "BF16", "I64", …
    pub fn dtype_name(&self) -> String {
        self.stored.to_string()
    }

    pub(super) fn stored(&self) -> Dtype {
        self.stored
    }

    /// Its element type, if a weight can have it: f32, f16 or bf16.
    ///
    /// # Errors
    /// [`Error::DType`] for every other type.
    pub fn dtype(&self) -> Result<DType> {
        match self.stored {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            _ => Err(Error::DType {
                file: self.file.path.clone(),
                tensor: self.name.clone(),
                got: self.stored.to_string(),
            }),
        }
    }

    /// Its elements, little-endian and row-major: as they stand in the file, or unpacked.
    ///
    /// # Errors
    /// Of a packed matrix, as [`packed_rows`](Self::packed_rows).
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let Some(rows) = self.packed_rows()? else { return Ok(Cow::Borrowed(self.stored_bytes())) };
        Ok(Cow::Owned(rows.unpack(self.shape[0], self.shape[1], self.dtype()?.size())))
    }

    /// What stands in the file under the name of its values.
    pub(super) fn stored_bytes(&self) -> &[u8] {
        &self.file.map[self.offset..self.offset + self.bytes]
    }

    /// The arrays of a packed matrix, checked; nothing of any other tensor.
    ///
    /// # Errors
    /// [`Error::WeightFile`] for arrays that contradict each other or the shape.
    pub fn packed_rows(&self) -> Result<Option<PackedRows<'_>>> {
        let Some(parts) = &self.packed else { return Ok(None) };
        let rows = PackedRows {
            bits: as_numbers(parts.0.stored_bytes()),
            starts: as_numbers(parts.1.stored_bytes()),
            values: self.stored_bytes().into(),
        };
        let checked = rows.check(self.shape[0], self.shape[1], self.dtype()?.size());
        checked.map_err(|reason| self.damaged(&reason))?;
        Ok(Some(rows))
    }

    fn damaged(&self, reason: &str) -> Error {
        Error::WeightFile {
            path: self.file.path.clone(),
            reason: format!("its packed matrix {} is damaged: {reason}; copy or download it again", self.name),
        }
    }

    /// A read-only buffer in the file's element type, without a copy where the alignment allows it. A packed matrix is unpacked.
    ///
    /// # Errors
    /// [`Error::DType`] if it cannot be a weight, [`Error::Device`] if the device has no room; of a packed matrix as
    /// [`packed_rows`](Self::packed_rows).
    pub fn load(&self, device: &Device, category: Category) -> Result<Buffer> {
        if self.is_packed() && !device.is_meta() {
            let mut buffer = device.alloc(category, self.dtype()?, self.len()).map_err(|e| self.device_error(e))?;
            buffer.write(&self.bytes()?).map_err(|e| self.device_error(e))?;
            return Ok(buffer);
        }
        if self.is_packed() {
            return device.alloc(category, self.dtype()?, self.len()).map_err(|e| self.device_error(e));
        }
        self.mapped(device, category, self.dtype()?, self.len())
    }

    /// A weight of two dimensions as products take it. A packed one stays packed: on the CPU its arrays are multiplied where they
    /// stand in the file; a GPU packs it in its own form.
    ///
    /// # Errors
    /// As [`TensorInfo::load`].
    pub fn load_weight(&self, device: &Device, category: Category) -> Result<FrozenWeight> {
        let [rows, cols] = self.shape[..] else { unreachable!("callers have asked for two dimensions") };
        let Some(parts) = &self.packed else {
            return FrozenWeight::dense(self.load(device, category)?, rows, cols).map_err(|e| self.device_error(e));
        };
        let dtype = self.dtype()?;
        let packed = if device.backend() == Backend::Cpu {
            let bits = parts.0.mapped(device, category, DType::U64, parts.0.bytes / 8)?;
            let starts = parts.1.mapped(device, category, DType::U32, parts.1.bytes / 4)?;
            let values = self.mapped(device, category, dtype, self.bytes / dtype.size())?;
            FrozenWeight::packed(rows, cols, bits, starts, values)
        } else {
            let dense = self.load(device, category)?;
            let mask = self.packed_rows()?.map(|packed| packed.mask(rows, cols)).unwrap_or_default();
            let stored = self.bytes / dtype.size();
            device
                .upload(Category::Masks, &mask)
                .and_then(|mask| FrozenWeight::pruned(device, &dense, rows, cols, &mask, stored))
        };
        packed.map_err(|error| match error {
            kernels::Error::Domain { reason, .. } => self.damaged(&reason),
            other => self.device_error(other),
        })
    }

    fn mapped(&self, device: &Device, category: Category, dtype: DType, len: usize) -> Result<Buffer> {
        Buffer::mapped(device, category, dtype, len, &self.file.map, self.offset).map_err(|e| self.device_error(e))
    }

    fn device_error(&self, source: kernels::Error) -> Error {
        Error::Device { tensor: self.name.clone(), source }
    }

    /// A buffer of its own in f32, for what trains or is small.
    ///
    /// # Errors
    /// As [`TensorInfo::load`].
    pub fn load_f32(&self, device: &Device, category: Category) -> Result<Buffer> {
        let (dtype, bytes) = (self.dtype()?, self.bytes()?);
        let load = || {
            let mut buffer = device.alloc(category, DType::F32, self.len())?;
            buffer.fill(|values| {
                convert(dtype, &bytes, values);
                Ok(())
            })?;
            Ok(buffer)
        };
        load().map_err(|e| self.device_error(e))
    }

    /// Its elements as f32, outside any device's account: for work on one layer at a time.
    ///
    /// # Errors
    /// [`Error::DType`] if it cannot be a weight.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        let dtype = self.dtype()?;
        let mut values = vec![0.0; self.len()];
        convert(dtype, &self.bytes()?, &mut values);
        Ok(values)
    }

    /// False where it is a weight that holds an infinity or a NaN.
    pub(super) fn is_finite(&self) -> bool {
        self.read_f32().map_or(true, |values| values.iter().all(|x| x.is_finite()))
    }
}

/// Numbers as they stand, copied only where they are not aligned.
fn as_numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => Cow::Borrowed(numbers),
        Err(_) => {
            let mut numbers = vec![T::zeroed(); bytes.len() / size_of::<T>()];
            bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(bytes);
            Cow::Owned(numbers)
        }
    }
}

/// Every f16 and bf16 is an f32 exactly.
fn convert(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            // The slice conversion uses the processor's instruction where there is one.
            Ok(values) => values.convert_to_f32_slice(out),
            Err(_) => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        },
        DType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        _ => each(bytes, out, f32::from_le_bytes),
    }
}

/// Element by element, at any alignment.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, element) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*element);
    }
}

impl fmt::Debug for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} in {}", self.name, self.stored, self.shape, self.file.path.display())
    }
}
