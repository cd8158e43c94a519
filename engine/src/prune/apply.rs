//! Pruning modules: score, mask, pack, one matrix at a time.

use half::{bf16, f16};
use kernels::device::Element;
use kernels::simd::{Isa, widen_bf16, widen_f16};
use kernels::weight::{FrozenWeight, OffloadedWeight};
use kernels::{Buffer, Category, DType, Device};

use super::{Allocation, Criterion, Hessian, InputNorms, Pattern, mask_for, sparsegpt};
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

impl Pruning {
    /// How many entries of a `[rows, cols]` matrix stay: by magnitude (and at random) a matrix' entries are compared with each
    /// other, by Wanda those of a row, by SparseGPT those of a block of columns.
    ///
    /// # Errors
    /// As [`Pattern::kept`].
    pub fn kept(&self, rows: usize, cols: usize, tensor: &str) -> super::Result<usize> {
        let kept = self.pattern.kept(rows, cols, tensor)?;
        Ok(match self.criterion {
            Criterion::Magnitude | Criterion::Random => kept,
            Criterion::Wanda => rows * (cols - self.pattern.removed(cols)),
            Criterion::SparseGpt => sparsegpt::blocks(cols, self.pattern)
                .map(|b| rows * b.len() - self.pattern.removed(rows * b.len()))
                .sum(),
        })
    }
}

/// What calibration learnt of a linear layer's inputs, made ready for a criterion.
#[derive(Debug)]
pub enum Inputs {
    /// For [`Criterion::Wanda`].
    Norms(InputNorms),
    /// For [`Criterion::SparseGpt`].
    Hessian(Hessian),
}

/// What a criterion makes of a matrix.
pub(super) struct Choice {
    /// A flat bitmap, set where an entry stays.
    pub mask: Buffer,
    /// How many stay.
    pub kept: usize,
    /// The matrix' new entries, in its element type, where the criterion changes them.
    pub entries: Option<Buffer>,
}

/// Chooses what stays of entries.
type Choose<'a> = &'a mut dyn FnMut(&Buffer) -> Result<Choice>;

/// Prunes one linear layer by its weights alone: a frozen weight is packed anew, a trainable one zeroed in place under a
/// mask. Entries that are zero already go first, so that pruning further never brings one back.
///
/// # Errors
/// A pattern that does not fit the matrix, a weight that is not finite, a criterion that needs calibration, or no memory.
pub fn prune_linear(linear: &mut Linear, pruning: &Pruning) -> Result<()> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let name = format!("{}.weight", linear.name);
    let kept = pruning.kept(rows, cols, &name)?;
    prune(linear, pruning.pattern, &mut |entries| {
        Ok(Choice { mask: mask_for(pruning, entries, cols, &name)?, kept, entries: None })
    })
}

/// Prunes one linear layer by its weights and what calibration learnt of its inputs. Returns what the criterion takes the
/// layer's squared error to be, summed over outputs: Σ over removed w of w²·mean(xⱼ²) by [Wanda](Criterion::Wanda), tr(Δ·H·Δᵀ) with
/// the change Δ of the weights and the dampened H by [SparseGPT](Criterion::SparseGpt).
///
/// # Errors
/// As [`prune_linear`]; or inputs of another criterion.
pub fn prune_calibrated(linear: &mut Linear, pruning: &Pruning, inputs: &Inputs) -> Result<f64> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let name = format!("{}.weight", linear.name);
    let kept = pruning.kept(rows, cols, &name)?;
    let mut cost = 0.0;
    prune(linear, pruning.pattern, &mut |entries| {
        let mut values = widened(entries)?;
        check_finite(&values, cols, &name)?;
        let (mask, entries) = match (pruning.criterion, inputs) {
            (Criterion::Wanda, Inputs::Norms(norms)) => {
                let mask;
                (mask, cost) = norms.choose(entries.device(), values, pruning.pattern)?;
                (mask, None)
            }
            (Criterion::SparseGpt, Inputs::Hessian(hessian)) => {
                let words;
                (words, cost) = hessian.sweep(&mut values, pruning.pattern);
                let mask = entries.device().upload(Category::Masks, &words)?;
                (mask, Some(narrowed(&values, entries.device(), entries.dtype())?))
            }
            (criterion, _) => {
                return Err(super::Error::Uncalibrated { tensor: name.clone(), criterion: criterion.name() }.into());
            }
        };
        Ok(Choice { mask, kept, entries })
    })?;
    Ok(cost)
}

fn prune(linear: &mut Linear, pattern: Pattern, choose: Choose<'_>) -> Result<()> {
    match &mut linear.weight {
        Weight::Frozen(weight) => {
            if let Some(pruned) = repack(weight, pattern, choose)? {
                *weight = pruned;
            }
        }
        Weight::Offloaded(weight) => {
            let pruned = repack(&*weight.bring()?, pattern, choose)?;
            if let Some(pruned) = pruned {
                *weight = OffloadedWeight::new(&pruned, weight.landing())?;
            }
        }
        Weight::Trainable(param) => {
            let choice = choose(&param.value())?;
            if let Some(entries) = &choice.entries {
                param.value_mut().write(bytemuck::cast_slice(&entries.read::<f32>()?))?;
            }
            kernels::ops::adamw::apply_mask(&mut param.value_mut(), &choice.mask)?;
            param.set_mask(Some(choice.mask));
        }
    }
    Ok(())
}

/// A frozen weight without what goes; nothing where nothing does.
fn repack(weight: &FrozenWeight, pattern: Pattern, choose: Choose<'_>) -> Result<Option<FrozenWeight>> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let expanded;
    let entries = match weight {
        FrozenWeight::Dense(dense) => dense.values(),
        FrozenWeight::Sparse(_) | FrozenWeight::Blocks(_) | FrozenWeight::TwoFour(_) => {
            expanded = expand(weight)?;
            &expanded
        }
    };
    let Choice { mask, kept, entries: changed } = choose(entries)?;
    if kept == rows * cols {
        return Ok(None);
    }
    let (device, entries) = (weight.device(), changed.as_ref().unwrap_or(entries));
    Ok(Some(match pattern {
        Pattern::Unstructured { .. } => FrozenWeight::pruned(device, entries, rows, cols, &mask, kept)?,
        Pattern::NM { n, m } => FrozenWeight::pruned_n_of_m(device, entries, rows, cols, &mask, n, m)?,
    }))
}

/// Entries as f32 in the host's memory.
pub(crate) fn widened(entries: &Buffer) -> Result<Vec<f32>> {
    let mut values = vec![0.0; entries.len()];
    match entries.dtype() {
        DType::F16 => widen_f16(Isa::best(), &entries.read::<f16>()?, &mut values),
        DType::BF16 => widen_bf16(&entries.read::<bf16>()?, &mut values),
        _ => values.copy_from_slice(&entries.read::<f32>()?),
    }
    Ok(values)
}

/// f32 values on a device, in an element type, rounded to nearest.
pub(crate) fn narrowed(values: &[f32], device: &Device, dtype: DType) -> Result<Buffer> {
    let mut buffer = device.alloc(Category::Workspace, dtype, values.len())?;
    fn rounded<T: Element>(buffer: &mut Buffer, values: &[f32], round: impl Fn(f32) -> T) -> kernels::Result<()> {
        buffer.fill(|to| {
            to.iter_mut().zip(values).for_each(|(to, x)| *to = round(*x));
            Ok(())
        })
    }
    match dtype {
        DType::F16 => rounded(&mut buffer, values, f16::from_f32)?,
        DType::BF16 => rounded(&mut buffer, values, bf16::from_f32)?,
        _ => rounded(&mut buffer, values, |x| x)?,
    }
    Ok(buffer)
}

fn check_finite(values: &[f32], cols: usize, tensor: &str) -> super::Result<()> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, col) = (at / cols, at % cols);
            Err(super::Error::NonFinite { tensor: tensor.into(), row, col, value: values[at] })
        }
    }
}

/// Prunes every prunable layer, each as `allocation` says; `progress` hears of layers done and in all.
///
/// # Errors
/// As [`prune_linear`].
pub fn prune_model(
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &Allocation,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
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
            let linear = model::between_steps(linear);
            prune_linear(linear, &allocation.pruning(pruning, &linear.name))?;
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
