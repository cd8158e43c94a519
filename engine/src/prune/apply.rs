//! Pruning modules: score, mask, pack, one matrix at a time.

use kernels::weight::FrozenWeight;
use kernels::{Buffer, Category, DType, Device};

use super::{Criterion, Pattern, mask_of};
use crate::error::Result;
use crate::model::{self, Linear, Model, Module, Weight};

/// How to prune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pruning {
    /// What scores an entry.
    pub criterion: Criterion,
    /// How many go, and within what they are compared.
    pub pattern: Pattern,
    /// For criteria that draw random numbers.
    pub seed: u64,
}

/// Prunes one linear layer: a frozen weight is packed anew, a trainable one zeroed in place under a mask. Entries that
/// are zero already go first, so that pruning further never brings one back.
///
/// # Errors
/// A pattern that does not fit the matrix, a weight that is not finite, or no memory.
pub fn prune_linear(linear: &mut Linear, pruning: &Pruning) -> Result<()> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let name = format!("{}.weight", linear.name);
    match &mut linear.weight {
        Weight::Frozen(weight) => {
            let device = weight.device().clone();
            let (mask, kept) = choose(&device, pruning, &name, rows, cols, |out| Ok(weight.read_all(out)?))?;
            if kept == rows * cols {
                return Ok(());
            }
            let pruned = match weight {
                FrozenWeight::Dense(dense) => FrozenWeight::pruned(&device, dense.values(), rows, cols, &mask, kept)?,
                FrozenWeight::Sparse(_) | FrozenWeight::Blocks(_) => {
                    let dense = expand(&device, weight)?;
                    FrozenWeight::pruned(&device, &dense, rows, cols, &mask, kept)?
                }
            };
            *weight = pruned;
        }
        Weight::Trainable(param) => {
            let device = param.value().device().clone();
            let (mask, _) = choose(&device, pruning, &name, rows, cols, |out| {
                out.copy_from_slice(param.value().f32());
                Ok(())
            })?;
            kernels::ops::adamw::apply_mask(&mut param.value_mut(), &mask)?;
            param.set_mask(Some(mask));
        }
    }
    Ok(())
}

/// Prunes every prunable layer; `progress` hears of layers done and in all.
///
/// # Errors
/// As [`prune_linear`].
pub fn prune_model(model: &mut dyn Model, pruning: &Pruning, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
    let mut all = 0;
    model.visit(&mut |module| {
        all += usize::from(matches!(module, Module::Linear(linear) if linear.prunable));
        Ok(())
    })?;
    let mut done = 0;
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            prune_linear(model::between_steps(linear), pruning)?;
            done += 1;
            progress(done, all);
        }
        Ok(())
    })?;
    model::device_of(model).trim();
    Ok(())
}

/// The mask and how many entries it keeps. On Meta the mask is not there, but the count is.
fn choose(
    device: &Device,
    pruning: &Pruning,
    name: &str,
    rows: usize,
    cols: usize,
    read: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<(Buffer, usize)> {
    let kept = pruning.pattern.kept(rows, cols, name)?;
    let mut values = device.alloc(Category::Workspace, DType::F32, rows * cols)?;
    let mask = if device.is_meta() {
        device.alloc(Category::Masks, DType::U64, (rows * cols).div_ceil(64))?
    } else {
        read(values.f32_mut())?;
        mask_of(device, pruning.criterion, pruning.pattern, values.f32_mut(), cols, name, pruning.seed)?
    };
    Ok((mask, kept))
}

/// A packed weight as a dense buffer of its own element type.
fn expand(device: &Device, weight: &FrozenWeight) -> Result<Buffer> {
    let len = weight.rows() * weight.cols();
    let mut dense = device.alloc(Category::Workspace, weight.dtype(), len)?;
    if !device.is_meta() {
        dense.write(&weight.to_bytes()?)?;
    }
    Ok(dense)
}
