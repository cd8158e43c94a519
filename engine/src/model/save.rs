//! A network as the tensors of a Hugging Face model folder.

use std::borrow::Cow;
use std::sync::Arc;

use half::{bf16, f16};
use kernels::DType;
use kernels::weight::FrozenWeight;
use serde_json::Value;

use super::{Model, Module, Weight};
use crate::checkpoint::{ModelFolder, NewTensor, OutputFolder, write_model};
use crate::error::Result;
use crate::tensor::Param;

/// Shards end before they pass this size, as the hub's do.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The base model's tensors: frozen ones in their element type, bits unchanged and zeros as zeros; trained ones, and
/// biases and norms, in f32, or all in `dtype` where one is given. Adapters are not among them.
pub fn tensors(model: &mut dyn Model, dtype: Option<DType>) -> Vec<NewTensor<'static>> {
    let mut all = Vec::new();
    let shown = model.visit(&mut |module| {
        match module {
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
    });
    debug_assert!(shown.is_ok(), "the closure returns no error");
    all
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
) -> Result<()> {
    Ok(write_model(out, tensors(model, dtype), config, companions, MAX_SHARD_BYTES)?)
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
