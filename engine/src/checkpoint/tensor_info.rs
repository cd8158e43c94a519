//! One tensor of a weight file, and the ways to bring it into memory.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kernels::device::{Buffer, Category, DType, Device};
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
        }
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
        self.bytes == 0
    }

    /// Its size in the file, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// The file that holds it.
    pub fn file(&self) -> &Path {
        &self.file.path
    }

    /// The file that holds it, and all its bytes.
    pub(super) fn map(&self) -> (&Path, &[u8]) {
        (&self.file.path, &self.file.map)
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

    /// Its bytes in the file: little-endian elements, row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.file.map[self.offset..self.offset + self.bytes]
    }

    /// A read-only buffer in the file's element type, without a copy where the alignment allows it.
    ///
    /// # Errors
    /// [`Error::DType`] if it cannot be a weight, [`Error::Device`] if the device has no room.
    pub fn load(&self, device: &Device, category: Category) -> Result<Buffer> {
        Buffer::mapped(device, category, self.dtype()?, self.len(), &self.file.map, self.offset)
            .map_err(|source| Error::Device { tensor: self.name.clone(), source })
    }

    /// A buffer of its own in f32, for what trains or is small.
    ///
    /// # Errors
    /// As [`TensorInfo::load`].
    pub fn load_f32(&self, device: &Device, category: Category) -> Result<Buffer> {
        let dtype = self.dtype()?;
        let load = || {
            let mut buffer = device.alloc(category, DType::F32, self.len())?;
            buffer.fill(|values| {
                self.convert(dtype, values);
                Ok(())
            })?;
            Ok(buffer)
        };
        load().map_err(|source| Error::Device { tensor: self.name.clone(), source })
    }

    /// Its elements as f32, outside any device's account: for work on one layer at a time.
    ///
    /// # Errors
    /// [`Error::DType`] if it cannot be a weight.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        let dtype = self.dtype()?;
        let mut values = vec![0.0; self.len()];
        self.convert(dtype, &mut values);
        Ok(values)
    }

    /// False where it is a weight that holds an infinity or a NaN.
    pub(super) fn is_finite(&self) -> bool {
        self.read_f32().map_or(true, |values| values.iter().all(|x| x.is_finite()))
    }

    /// Every f16 and bf16 is an f32 exactly.
    fn convert(&self, dtype: DType, out: &mut [f32]) {
        let bytes = self.bytes();
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
