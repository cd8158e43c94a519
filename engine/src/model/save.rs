//! A network as the tensors of a Hugging Face model folder.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use half::{bf16, f16};
use kernels::DType;
use kernels::weight::{FrozenWeight, PackedRows};
use serde_json::Value;

use super::{Linear, Model, Module, Weight};
use crate::checkpoint::{
    ModelFolder, NewTensor, OutputFolder, TensorInfo, WeightFormat, is_worth_packing, new_tensors, write_model,
};
use crate::error::Result;
use crate::tensor::Param;

/// Shards end before they pass this size, as the hub's do.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The base model's tensors: frozen ones in their element type, bits unchanged and zeros as zeros; trained ones, and
/// biases and norms, in f32, or all in `dtype` where one is given. Adapters are not among them. In the packed format pruned
/// matrices are their parts.
///
/// # Errors
/// The GPU's, where entries must be counted.
pub fn tensors(model: &mut dyn Model, dtype: Option<DType>, format: WeightFormat) -> Result<Vec<NewTensor<'static>>> {
    let mut all = Vec::new();
    model.visit(&mut |module| {
        match module {
            Module::Linear(linear) if format == WeightFormat::Packed && linear.prunable => {
                all.extend(packed_tensors(linear, dtype)?);
                all.extend(linear.bias.iter().map(|bias| param_tensor(bias, dtype)));
            }
            Module::Linear(linear) => {
                let (held, name) = (linear.clone(), format!("{}.weight", linear.name));
                all.push(weight_tensor(name, &linear.weight, dtype, move || bytes_of(&held.weight, dtype)));
                all.extend(linear.bias.iter().map(|bias| param_tensor(bias, dtype)));
            }
            Module::Norm(norm) => all.extend(norm.params().map(|param| param_tensor(param, dtype))),
            Module::Embedding(embedding) => all.push(table_tensor(&embedding.name, &embedding.weight, dtype)),
            Module::Head(head) if !head.tied => all.push(table_tensor(&head.name, &head.weight, dtype)),
            Module::Head(_) => {}
        }
        Ok(())
    })?;
    Ok(all)
}

/// Writes the base model into `out`: weights, `config`, and the tokenizer of `companions`.
///
/// # Errors
/// What the file system refuses.
pub fn save(
    model: &mut dyn Model,
    out: &OutputFolder,
    config: &Value,
    companions: Option<&ModelFolder>,
    dtype: Option<DType>,
    format: WeightFormat,
) -> Result<()> {
    Ok(write_model(out, tensors(model, dtype, format)?, config, companions, MAX_SHARD_BYTES, format)?)
}

/// Writes the model of a folder in another format, matrix by matrix; everything else is copied as it is.
///
/// # Errors
/// Damaged packed matrices, and what the file system refuses.
pub fn convert(source: &ModelFolder, out: &OutputFolder, format: WeightFormat) -> Result<()> {
    let mut tensors = Vec::new();
    for info in source.tensors() {
        match (format, info.dtype()) {
            (WeightFormat::Packed, Ok(dtype)) if info.is_layer_matrix() => tensors.extend(packed_copy(info, dtype)?),
            _ => tensors.push(NewTensor::unchanged(info)),
        }
    }
    Ok(write_model(out, tensors, source.config(), Some(source), MAX_SHARD_BYTES, format)?)
}

/// A matrix of a folder as its parts, or as it is where that is smaller. It is read once for each part, so that no two matrices
/// are in memory together.
fn packed_copy(info: &TensorInfo, dtype: DType) -> Result<Vec<NewTensor<'_>>> {
    let shape = [info.shape()[0], info.shape()[1]];
    let size = dtype.size();
    let stored = match info.packed_rows()? {
        Some(rows) => rows.values.len() / size,
        None => info.bytes()?.chunks_exact(size).filter(|element| element.iter().any(|byte| *byte != 0)).count(),
    };
    if !is_worth_packing(shape[0], shape[1], dtype, stored) {
        return Ok(vec![NewTensor::unchanged(info)]);
    }
    let unread = |error: crate::checkpoint::Error| kernels::Error::Domain { op: "read", reason: error.to_string() };
    let arrays = move || match info.packed_rows().map_err(unread)? {
        Some(rows) => Ok(rows),
        None => Ok(PackedRows::pack(&info.bytes().map_err(unread)?, shape[1], size)),
    };
    Ok(new_tensors(info.name(), dtype, shape, stored, Rc::new(arrays)).into())
}

/// A linear layer's matrix as its parts, or as it is where that is smaller. What is not packed in memory in the way of files is
/// packed once for each part.
fn packed_tensors(linear: &Arc<Linear>, dtype: Option<DType>) -> Result<Vec<NewTensor<'static>>> {
    let (weight, name) = (&linear.weight, format!("{}.weight", linear.name));
    let (rows, cols, wanted) = (weight.rows(), weight.cols(), dtype.unwrap_or(weight.dtype()));
    let held = linear.clone();
    let arrays = move || match (&held.weight, dtype) {
        (Weight::Frozen(weight), None) => weight.to_packed_rows().map(owned),
        (weight, dtype) => Ok(PackedRows::pack(&bytes_of(weight, dtype)?, cols, wanted.size())),
    };
    let stored = match (weight, dtype) {
        (Weight::Frozen(weight @ FrozenWeight::Sparse(_)), None) => weight.stored(),
        _ => arrays()?.values.len() / wanted.size(),
    };
    if !is_worth_packing(rows, cols, wanted, stored) {
        let held = linear.clone();
        return Ok(vec![weight_tensor(name, weight, dtype, move || bytes_of(&held.weight, dtype))]);
    }
    Ok(new_tensors(&name, wanted, [rows, cols], stored, Rc::new(arrays)).into())
}

/// The arrays, apart from the weight that lent them.
fn owned(rows: PackedRows<'_>) -> PackedRows<'static> {
    PackedRows {
        bits: rows.bits.into_owned().into(),
        starts: rows.starts.into_owned().into(),
        values: rows.values.into_owned().into(),
    }
}

fn table_tensor(name: &str, table: &Arc<Weight>, dtype: Option<DType>) -> NewTensor<'static> {
    let held = table.clone();
    weight_tensor(format!("{name}.weight"), table, dtype, move || bytes_of(&held, dtype))
}

fn weight_tensor(
    name: String,
    weight: &Weight,
    dtype: Option<DType>,
    bytes: impl FnOnce() -> kernels::Result<Cow<'static, [u8]>> + 'static,
) -> NewTensor<'static> {
    NewTensor::new(name, dtype.unwrap_or(weight.dtype()), [weight.rows(), weight.cols()], bytes)
}

fn param_tensor(param: &Arc<Param>, dtype: Option<DType>) -> NewTensor<'static> {
    let held = param.clone();
    let dtype = dtype.unwrap_or(DType::F32);
    NewTensor::new(param.name(), dtype, param.shape(), move || Ok(narrow(&held.value().read()?, dtype).into()))
}

fn bytes_of(weight: &Weight, dtype: Option<DType>) -> kernels::Result<Cow<'static, [u8]>> {
    Ok(match (weight, dtype) {
        (Weight::Frozen(weight), _) => frozen_bytes(weight, dtype)?.into(),
        (Weight::Offloaded(weight), _) => frozen_bytes(&*weight.bring()?, dtype)?.into(),
        (Weight::Trainable(param), dtype) => narrow(&param.value().read()?, dtype.unwrap_or(DType::F32)).into(),
    })
}

fn frozen_bytes(weight: &FrozenWeight, dtype: Option<DType>) -> kernels::Result<Vec<u8>> {
    match dtype {
        None => weight.to_bytes(),
        Some(dtype) => Ok(narrow(&weight.to_f32()?, dtype)),
    }
}

/// f32 values in another element type, rounded to nearest.
pub(crate) fn narrow(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}
