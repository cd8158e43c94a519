//! Pruning modules: score, mask, pack, one matrix at a time.

use half::{bf16, f16};
use kernels::device::Element;
use kernels::simd::{Isa, widen_bf16, widen_f16};
use kernels::weight::{FrozenWeight, OffloadedWeight};
use kernels::{Backend, Buffer, Category, DType, Device};
use rayon::prelude::*;

use super::{Allocation, Criterion, Hessian, InputNorms, Pattern, mask_for, sparsegpt};
use crate::error::{Error, Result};
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

impl Choice {
    /// Takes what is zero out of the mask; `nonzero` is a flat bitmap of what is not. More may be zero than goes: a model that was pruned
    /// before, features that calibration never saw. Such a zero is none of the weight's entries, or the mask in memory would not be the
    /// one that a file's zeros tell.
    fn without_zeros(mut self, nonzero: &[u64]) -> Result<Choice> {
        let mut words = self.mask.read::<u64>()?.into_owned();
        words.iter_mut().zip(nonzero).for_each(|(word, nonzero)| *word &= nonzero);
        let kept = words.iter().map(|word| word.count_ones() as usize).sum();
        if kept < self.kept {
            self.mask.write(bytemuck::cast_slice(&words))?;
            self.kept = kept;
        }
        Ok(self)
    }
}

/// A flat bitmap of the entries that are not zero.
fn nonzeros<T: Sync>(entries: &[T], is_zero: impl Fn(&T) -> bool + Sync) -> Vec<u64> {
    let word = |entries: &[T]| entries.iter().enumerate().fold(0, |word, (j, x)| word | u64::from(!is_zero(x)) << j);
    entries.par_chunks(64).with_min_len(1 << 10).map(word).collect()
}

/// The same of a buffer in the host's memory, and nothing of any other.
fn nonzeros_of(entries: &Buffer) -> Result<Option<Vec<u64>>> {
    let device = entries.device();
    if device.is_meta() || device.gpu().is_some() {
        return Ok(None);
    }
    Ok(Some(match entries.dtype() {
        DType::F16 => nonzeros(&entries.read::<f16>()?, |x| x.to_bits() << 1 == 0),
        DType::BF16 => nonzeros(&entries.read::<bf16>()?, |x| x.to_bits() << 1 == 0),
        _ => nonzeros(&entries.read::<f32>()?, |x| *x == 0.0),
    }))
}

/// Chooses what stays of entries.
type Choose<'a> = &'a mut dyn FnMut(&Buffer) -> Result<Choice>;

/// Prunes one linear layer by its weights alone: a frozen weight is packed anew, a trainable one zeroed in place under a
/// mask. Entries that are zero already go first, so that pruning further never brings one back; where more are zero than
/// should go, all of them go. (On a GPU those beyond stay stored: they are not counted there.)
///
/// # Errors
/// A pattern that does not fit the matrix, a weight that is not finite, a criterion that needs calibration, or no memory.
pub fn prune_linear(linear: &mut Linear, pruning: &Pruning) -> Result<()> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let name = format!("{}.weight", linear.name);
    let kept = pruning.kept(rows, cols, &name)?;
    prune(linear, pruning.pattern, &mut |entries| {
        let choice = Choice { mask: mask_for(pruning, entries, cols, &name)?, kept, entries: None };
        if kept < rows * cols
            && let Some(nonzero) = nonzeros_of(entries)?
        {
            return choice.without_zeros(&nonzero);
        }
        Ok(choice)
    })
}

/// Prunes one linear layer by its weights and what calibration learnt of its inputs. Returns what the criterion takes the
/// layer's squared error to be, summed over outputs: Σ over removed w of w²·mean(xⱼ²) by [Wanda](Criterion::Wanda), tr(Δ·H·Δᵀ) with
/// the change Δ of the weights and the dampened H by [SparseGPT](Criterion::SparseGpt).
///
/// # Errors
/// As [`prune_linear`]; inputs of another criterion; or an entry that SparseGPT makes larger than its element type holds.
pub fn prune_calibrated(linear: &mut Linear, pruning: &Pruning, inputs: &Inputs) -> Result<f64> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let name = format!("{}.weight", linear.name);
    let kept = pruning.kept(rows, cols, &name)?;
    let mut cost = 0.0;
    prune(linear, pruning.pattern, &mut |entries| {
        let mut values = widened(entries)?;
        check_finite(&values, cols, &name)?;
        let (mask, entries, nonzero) = match (pruning.criterion, inputs) {
            (Criterion::Wanda, Inputs::Norms(norms)) => {
                let nonzero = nonzeros(&values, |x| *x == 0.0);
                let mask;
                (mask, cost) = norms.choose(entries.device(), values, pruning.pattern)?;
                (mask, None, nonzero)
            }
            (Criterion::SparseGpt, Inputs::Hessian(hessian)) => {
                let words;
                (words, cost) = hessian.sweep(&mut values, pruning.pattern);
                round_entries(&mut values, cols, entries.dtype(), &name)?;
                let mask = entries.device().upload(Category::Masks, &words)?;
                let nonzero = nonzeros(&values, |x| *x == 0.0);
                (mask, Some(narrowed(&values, entries.device(), entries.dtype())?), nonzero)
            }
            (criterion, _) => {
                return Err(super::Error::Uncalibrated { tensor: name.clone(), criterion: criterion.name() }.into());
            }
        };
        let choice = Choice { mask, kept, entries };
        if kept < rows * cols { choice.without_zeros(&nonzero) } else { Ok(choice) }
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
    if kept == rows * cols || changed.is_none() && is_packed_so(weight, &mask, kept)? {
        return Ok(None);
    }
    let (device, entries) = (weight.device(), changed.as_ref().unwrap_or(entries));
    Ok(Some(packed(device, entries, (rows, cols), &mask, kept, pattern)?))
}

/// The `kept` entries of a `[rows, cols]` matrix that `mask` keeps, packed. Of a group of n:m it may keep fewer than n, where more is zero
/// than goes. The form of sparse tensor cores alone has n places for each group whatever is in them: there what fills them up is zero,
/// and counts as kept.
pub(crate) fn packed(
    device: &Device,
    entries: &Buffer,
    (rows, cols): (usize, usize),
    mask: &Buffer,
    kept: usize,
    pattern: Pattern,
) -> Result<FrozenWeight> {
    let fills_up = |n, m| (n, m) == (2, 4) && device.backend() == Backend::Cuda && entries.dtype() != DType::F32;
    Ok(match pattern {
        Pattern::NM { n, m } if kept == rows * cols / m * n || fills_up(n, m) => {
            FrozenWeight::pruned_n_of_m(device, entries, rows, cols, mask, n, m)?
        }
        _ => FrozenWeight::pruned(device, entries, rows, cols, mask, kept)?,
    })
}

/// Bytes that pruning a matrix of so many entries takes of the host beside it, by any criterion: the matrix widened, its scores or new
/// entries, and the packed form.
pub fn workspace_bytes(entries: usize) -> u64 {
    12 * entries as u64
}

/// True where a weight of the CPU stores just these entries already, in a mapped file perhaps, where it then stays.
fn is_packed_so(weight: &FrozenWeight, mask: &Buffer, kept: usize) -> Result<bool> {
    let FrozenWeight::Sparse(_) = weight else { return Ok(false) };
    if weight.device().is_meta() || weight.stored() != kept {
        return Ok(false);
    }
    Ok(weight.mask()?.is_some_and(|stored| stored == mask.as_slice::<u64>()))
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

/// The nearest number of `dtype`, ties to even. What is not zero never becomes zero, but the smallest number of its sign: so a zero in a
/// file still means pruned.
pub(crate) fn rounded(x: f32, dtype: DType) -> f32 {
    let (rounded, least) = match dtype {
        DType::F16 => (f16::from_f32(x).to_f32(), f16::from_bits(1).to_f32()),
        DType::BF16 => (bf16::from_f32(x).to_f32(), bf16::from_bits(1).to_f32()),
        _ => (x, x),
    };
    if rounded == 0.0 && x != 0.0 { least.copysign(x) } else { rounded }
}

/// Rounds what SparseGPT made of a weight to its element type, as [`rounded`] does.
fn round_entries(values: &mut [f32], cols: usize, dtype: DType, tensor: &str) -> Result<()> {
    if let Some(at) = values.par_iter().position_first(|x| !rounded(*x, dtype).is_finite()) {
        let (row, col, value) = (at / cols, at % cols, values[at]);
        return Err(Error::Overflow {
            tensor: tensor.into(),
            reason: format!("SparseGPT makes entry [{row}, {col}] {value}, which {dtype} does not hold"),
            remedy: "give more calibration samples, or use --criterion wanda",
        });
    }
    values.par_iter_mut().for_each(|x| *x = rounded(*x, dtype));
    Ok(())
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

/// Prunes every prunable layer, each as `allocation` says, and hands it to `then`.
///
/// # Errors
/// As [`prune_linear`], and those of `then`.
pub fn prune_model(
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &Allocation,
    then: &mut dyn FnMut(&mut Linear) -> Result<()>,
) -> Result<()> {
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            let linear = model::between_steps(linear);
            prune_linear(linear, &allocation.pruning(pruning, &linear.name))?;
            then(linear)?;
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
