//! Pruning modules: score, mask, pack, one matrix at a time.

use kernels::weight::{FrozenWeight, OffloadedWeight};
use kernels::{Buffer, Category};

use super::{Criterion, Pattern, mask_for};
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
    let cols = linear.weight.cols();
    let name = format!("{}.weight", linear.name);
    match &mut linear.weight {
        Weight::Frozen(weight) => {
            if let Some(pruned) = repack(weight, pruning, &name)? {
                *weight = pruned;
            }
        }
        Weight::Offloaded(weight) => {
            let pruned = repack(&*weight.bring()?, pruning, &name)?;
            if let Some(pruned) = pruned {
                *weight = OffloadedWeight::new(&pruned, weight.landing())?;
            }
        }
        Weight::Trainable(param) => {
            let mask = mask_for(pruning, &param.value(), cols, &name)?;
            kernels::ops::adamw::apply_mask(&mut param.value_mut(), &mask)?;
            param.set_mask(Some(mask));
        }
    }
    Ok(())
}

/// A frozen weight without what goes; nothing where nothing does.
fn repack(weight: &FrozenWeight, pruning: &Pruning, name: &str) -> Result<Option<FrozenWeight>> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let kept = pruning.pattern.kept(rows, cols, name)?;
    let expanded;
    let entries = match weight {
        FrozenWeight::Dense(dense) => dense.values(),
        FrozenWeight::Sparse(_) | FrozenWeight::Blocks(_) | FrozenWeight::TwoFour(_) => {
            expanded = expand(weight)?;
            &expanded
        }
    };
    let mask = mask_for(pruning, entries, cols, name)?;
    if kept == rows * cols {
        return Ok(None);
    }
    let device = weight.device();
    Ok(Some(match pruning.pattern {
        Pattern::Unstructured { .. } => FrozenWeight::pruned(device, entries, rows, cols, &mask, kept)?,
        Pattern::NM { n, m } => FrozenWeight::pruned_n_of_m(device, entries, rows, cols, &mask, n, m)?,
    }))
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

/// A packed weight as a dense buffer of its own element type.
fn expand(weight: &FrozenWeight) -> Result<Buffer> {
    let len = weight.rows() * weight.cols();
    let mut dense = weight.device().alloc(Category::Workspace, weight.dtype(), len)?;
    if !weight.device().is_meta() {
        dense.write(&weight.to_bytes()?)?;
    }
    Ok(dense)
}
