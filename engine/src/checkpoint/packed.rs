//! Packed weight files: pruned matrices without their zeros. docs/formats.md describes them byte by byte.

use std::collections::BTreeMap;
use std::rc::Rc;

use kernels::DType;
use kernels::weight::{PackedRows, SparseWeight};
use safetensors::Dtype;

use super::error::{Error, Result};
use super::tensor_info::TensorInfo;
use super::write::NewTensor;

/// What the metadata of a packed file say, with the version of the layout. One key: the library writes several in any order.
pub(super) const FORMAT: &str = "perp-engine-packed-1";

/// What a matrix' name is followed by in the names of its parts.
const SHAPE: &str = ".shape";
const BITS: &str = ".bits";
const STARTS: &str = ".starts";
const VALUES: &str = ".values";

/// How weights are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the Hugging Face ecosystem reads them: dense, zeros as zeros.
    #[default]
    HuggingFace,
    /// Pruned matrices without their zeros.
    Packed,
}

/// The arrays of a matrix, made anew each time that one of them is written.
type Arrays<'a> = Rc<dyn Fn() -> kernels::Result<PackedRows<'a>> + 'a>;

/// True where a matrix takes less room packed than dense.
pub(crate) fn is_worth_packing(rows: usize, cols: usize, dtype: DType, stored: usize) -> bool {
    SparseWeight::bytes_for(rows, cols, dtype, stored) < rows * cols * dtype.size()
}

/// A matrix' parts as a packed file has them.
pub(crate) fn new_tensors<'a>(
    name: &str,
    dtype: DType,
    [rows, cols]: [usize; 2],
    stored: usize,
    arrays: Arrays<'a>,
) -> [NewTensor<'a>; 4] {
    let (words, spans) = PackedRows::row_lens(cols);
    let (bits, starts, values) = (arrays.clone(), arrays.clone(), arrays);
    let shape = [rows as u64, cols as u64];
    [
        NewTensor::new(format!("{name}{SHAPE}"), DType::U64, [2], move || {
            Ok(bytemuck::cast_slice::<u64, u8>(&shape).to_vec().into())
        }),
        NewTensor::new(format!("{name}{BITS}"), DType::U64, [rows, words], move || {
            Ok(bytemuck::cast_slice::<u64, u8>(&bits()?.bits).to_vec().into())
        }),
        NewTensor::new(format!("{name}{STARTS}"), DType::U32, [rows, spans], move || {
            Ok(bytemuck::cast_slice::<u32, u8>(&starts()?.starts).to_vec().into())
        }),
        NewTensor::new(format!("{name}{VALUES}"), dtype, [stored], move || Ok(values()?.values)),
    ]
}

/// The tensors of opened packed files with each matrix in the place of its parts.
pub(super) fn gather(mut tensors: BTreeMap<String, TensorInfo>) -> Result<BTreeMap<String, TensorInfo>> {
    let names: Vec<String> = tensors.keys().filter_map(|name| name.strip_suffix(BITS)).map(str::to_owned).collect();
    for name in names {
        let matrix = matrix(&mut tensors, &name)?;
        if let Some(other) = tensors.insert(name.clone(), matrix) {
            return Err(Error::Duplicate {
                tensor: name,
                first: format!("{} (dense)", other.file().display()),
                second: "the parts of a packed matrix".into(),
            });
        }
    }
    match tensors.keys().find(|name| [SHAPE, STARTS, VALUES].iter().any(|part| name.ends_with(part))) {
        None => Ok(tensors),
        Some(alone) => Err(bad(&tensors[alone], format!("{alone} is part of a packed matrix that has no {BITS}"))),
    }
}

fn matrix(tensors: &mut BTreeMap<String, TensorInfo>, name: &str) -> Result<TensorInfo> {
    let bits = tensors.remove(&format!("{name}{BITS}")).expect("it was just seen");
    let mut part = |suffix: &str| {
        let missing = || bad(&bits, format!("the packed matrix {name} has no {suffix}"));
        tensors.remove(&format!("{name}{suffix}")).ok_or_else(missing)
    };
    let (shape, starts, values) = (part(SHAPE)?, part(STARTS)?, part(VALUES)?);
    for (part, wanted) in [(&shape, Dtype::U64), (&bits, Dtype::U64), (&starts, Dtype::U32)] {
        if part.stored() != wanted {
            return Err(bad(part, format!("{} is {}, not {wanted}", part.name(), part.dtype_name())));
        }
    }
    values.dtype()?;
    let (dims, rest) = shape.stored_bytes().as_chunks::<8>();
    let dims: Vec<Option<usize>> = dims.iter().map(|d| u64::from_le_bytes(*d).try_into().ok()).collect();
    let (&[Some(rows), Some(cols)], []) = (&dims[..], rest) else {
        return Err(bad(&shape, format!("{} holds no rows and columns", shape.name())));
    };
    // Dense, it must be a size that memory can have; then no product below overflows.
    if rows.checked_mul(cols).is_none_or(|len| len > u32::MAX as usize) {
        return Err(bad(&shape, format!("{} holds {rows}×{cols}: more than 2³² − 1 entries", shape.name())));
    }
    let (words, spans) = PackedRows::row_lens(cols);
    let fits = bits.shape() == [rows, words] && starts.shape() == [rows, spans] && values.shape().len() == 1;
    if !fits || values.len() > rows * cols {
        let reason = format!(
            "{name} is said to be {rows}×{cols}, but its parts have the shapes {:?}, {:?} and {:?}",
            bits.shape(),
            starts.shape(),
            values.shape()
        );
        return Err(bad(&shape, reason));
    }
    Ok(TensorInfo::of_parts(name, [rows, cols], bits, starts, values))
}

fn bad(part: &TensorInfo, reason: String) -> Error {
    Error::WeightFile { path: part.file().into(), reason: format!("{reason}; copy or download it again") }
}
