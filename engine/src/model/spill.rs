//! Pruned weights that memory has no room for: in temporary files, mapped.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use kernels::weight::FrozenWeight;
use kernels::{Buffer, Category, DType, Device};
use memmap2::Mmap;

use super::{Linear, Weight};
use crate::error::{Error, Result};

/// Takes packed weights of the CPU to temporary files where they would stay in memory past a limit. Products read them there, as they
/// read packed files; the system keeps as many of their pages in memory as it has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spill {
    limit: u64,
}

impl Spill {
    /// Where more than `limit` bytes are in use that are not pages of mapped files.
    pub fn past(limit: u64) -> Spill {
        Spill { limit }
    }

    /// Takes the layer's weight to a file if so much is in use, and if it is packed and not in one.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub fn take(&self, linear: &mut Linear) -> Result<()> {
        if let Weight::Frozen(weight @ FrozenWeight::Sparse(_)) = &linear.weight
            && !weight.device().is_meta()
            && weight.device().memory().anonymous() > self.limit
            && weight.mapped_bytes() < weight.size_bytes()
        {
            let device = weight.device().clone();
            linear.weight = Weight::Frozen(in_file(&device, weight)?);
            // Freed blocks are kept for the next buffer of their size, and these were for good.
            device.trim();
        }
        Ok(())
    }
}

/// The same weight over the pages of a file without a name, which goes with the weight.
fn in_file(device: &Device, weight: &FrozenWeight) -> Result<FrozenWeight> {
    let arrays = weight.to_packed_rows()?;
    let mut file = tempfile::tempfile().map_err(|e| failed(&e))?;
    // The widest elements first: so each array is aligned where it lies.
    let parts: [(DType, &[u8]); 3] = [
        (DType::U64, bytemuck::cast_slice(&arrays.bits)),
        (DType::U32, bytemuck::cast_slice(&arrays.starts)),
        (weight.dtype(), &arrays.values),
    ];
    for (_, bytes) in parts {
        file.write_all(bytes).map_err(|e| failed(&e))?;
    }
    let map = Arc::new(map(&file).map_err(|e| failed(&e))?);
    let mut offset = 0;
    let mut buffer = |(dtype, bytes): (DType, &[u8])| {
        let at = offset;
        offset += bytes.len();
        Buffer::mapped(device, Category::Weights, dtype, bytes.len() / dtype.size(), &map, at)
    };
    let [bits, starts, values] = parts;
    Ok(FrozenWeight::packed(weight.rows(), weight.cols(), buffer(bits)?, buffer(starts)?, buffer(values)?)?)
}

fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and the file has no name: nobody else can open it, so nobody changes or shortens it.
    unsafe { Mmap::map(file) }
}

fn failed(error: &std::io::Error) -> Error {
    Error::config(format!(
        "pruned weights do not fit in memory and cannot be kept in {}: {error}; set TMPDIR to a folder with room, or raise \
         --memory-budget",
        std::env::temp_dir().display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(device: &Device) -> Linear {
        let (rows, cols) = (5usize, 70);
        let entries: Vec<f32> = (0..rows * cols).map(|i| if i % 3 == 0 { 0.0 } else { i as f32 }).collect();
        let mut mask = vec![0u64; (rows * cols).div_ceil(64)];
        (0..rows * cols).filter(|i| i % 3 != 0).for_each(|i| mask[i / 64] |= 1 << (i % 64));
        let kept = mask.iter().map(|word| word.count_ones() as usize).sum();
        let entries = device.upload(Category::Weights, &entries).unwrap();
        let mask = device.upload(Category::Masks, &mask).unwrap();
        let weight = FrozenWeight::pruned(device, &entries, rows, cols, &mask, kept).unwrap();
        Linear { name: "fc1".into(), weight: Weight::Frozen(weight), bias: None, lora: None, prunable: true }
    }

    #[test]
    fn a_weight_past_the_limit_is_the_same_in_a_file_and_no_more_in_memory() {
        let device = Device::cpu();
        let mut linear = packed(&device);
        let (in_use, before) = (device.memory().in_use(), frozen(&linear).to_bytes().unwrap());
        assert_eq!(device.memory().anonymous(), in_use);
        let size = frozen(&linear).size_bytes() as u64;
        Spill::past(in_use).take(&mut linear).unwrap();
        assert_eq!(frozen(&linear).mapped_bytes(), 0, "there is room");
        Spill::past(in_use - 1).take(&mut linear).unwrap();
        let weight = frozen(&linear);
        assert_eq!(weight.mapped_bytes(), weight.size_bytes());
        assert_eq!(weight.to_bytes().unwrap(), before);
        assert_eq!((device.memory().in_use(), device.memory().anonymous()), (in_use, in_use - size));
        drop(linear);
        assert_eq!(device.memory().in_use(), in_use - size);
    }

    fn frozen(linear: &Linear) -> &FrozenWeight {
        match &linear.weight {
            Weight::Frozen(weight) => weight,
            other => panic!("{other:?}"),
        }
    }
}
