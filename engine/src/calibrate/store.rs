//! Hidden states of all calibration windows: in memory while there is room, in a temporary file past it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use half::{bf16, f16};
use kernels::{Buffer, Category, DType, Device};

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Tensors by number.
pub(super) struct Store {
    device: Device,
    /// Bytes of memory that are left.
    room: u64,
    places: Vec<Place>,
    /// Has no name: the system removes it with the process, however that ends.
    file: Option<File>,
    file_bytes: u64,
}

enum Place {
    Memory(Tensor),
    File { offset: u64, rows: usize, cols: usize, dtype: DType },
}

impl Store {
    /// An empty store that keeps at most `room` bytes in memory.
    pub fn new(device: &Device, room: u64) -> Store {
        Store { device: device.clone(), room, places: Vec::new(), file: None, file_bytes: 0 }
    }

    /// Adds a tensor under the next number.
    pub fn push(&mut self, tensor: Tensor) -> Result<()> {
        let bytes = tensor.buffer().size_bytes() as u64;
        if bytes <= self.room {
            self.room -= bytes;
            self.places.push(Place::Memory(tensor));
            return Ok(());
        }
        let offset = self.file_bytes;
        self.write(offset, tensor.buffer())?;
        self.file_bytes += bytes;
        let (rows, cols, dtype) = (tensor.rows(), tensor.cols(), tensor.buffer().dtype());
        self.places.push(Place::File { offset, rows, cols, dtype });
        Ok(())
    }

    /// Tensor `index`.
    pub fn get(&mut self, index: usize) -> Result<Tensor> {
        let (offset, rows, cols, dtype) = match &self.places[index] {
            Place::Memory(tensor) => return Ok(tensor.clone()),
            Place::File { offset, rows, cols, dtype } => (*offset, *rows, *cols, *dtype),
        };
        let mut bytes = vec![0; rows * cols * dtype.size()];
        let file = self.file.as_mut().expect("it was written");
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| failed(&e))?;
        let mut buffer = self.device.alloc(Category::Activations, dtype, rows * cols)?;
        buffer.write(&bytes)?;
        Ok(Tensor::new(buffer, rows, cols))
    }

    /// Puts a tensor of the same size in the place of tensor `index`.
    pub fn set(&mut self, index: usize, tensor: Tensor) -> Result<()> {
        match &mut self.places[index] {
            Place::Memory(place) => {
                *place = tensor;
                Ok(())
            }
            Place::File { offset, .. } => {
                let offset = *offset;
                self.write(offset, tensor.buffer())
            }
        }
    }

    /// Bytes in the file.
    #[cfg(test)]
    pub fn spilled(&self) -> u64 {
        self.file_bytes
    }

    fn write(&mut self, offset: u64, buffer: &Buffer) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().map_err(|e| failed(&e))?),
        };
        let mut write = |bytes: &[u8]| {
            file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes)).map_err(|e| failed(&e))
        };
        match buffer.dtype() {
            DType::BF16 => write(bytemuck::cast_slice(&buffer.read::<bf16>()?)),
            DType::F16 => write(bytemuck::cast_slice(&buffer.read::<f16>()?)),
            _ => write(bytemuck::cast_slice(&buffer.read::<f32>()?)),
        }
    }
}

fn failed(error: &std::io::Error) -> Error {
    Error::config(format!(
        "calibration activations do not fit in memory and cannot be kept in {}: {error}; set TMPDIR to a folder with room, or \
         take fewer --calibration-samples",
        std::env::temp_dir().display()
    ))
}
