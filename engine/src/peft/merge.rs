//! Adapters merged into the weights that they update.
//!
//! A merged entry is rounded to its weight's element type, to nearest, ties to even: a folder stays as large as it was. An entry that
//! is not zero never becomes zero by that, but the smallest number of its sign: so a zero in the file still means pruned.

use std::ops::AddAssign;
use std::sync::Arc;

use kernels::weight::{Form, FrozenWeight, Kept, OffloadedWeight};
use kernels::{Category, DType};

use crate::error::{Error, Result};
use crate::model::{self, Lora, LoraForm, Model, Module, Weight, narrow};
use crate::prune::rounded;
use crate::tensor::Param;

/// Which entries of a weight an adapter of the form [`LoraForm::Added`] goes into; the other forms change those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// Those that the weight has: its zeros stay.
    Kept,
    /// All, as PEFT merges.
    All,
}

/// What merging did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MergeReport {
    /// Matrices with an adapter in them now.
    pub matrices: usize,
    /// Their entries that were zero.
    pub zeros_before: usize,
    /// Their entries that are zero.
    pub zeros_after: usize,
    /// Sum of squares of what the adapters changed.
    update: f64,
    /// Sum of squares of what rounding changed of it.
    rounded: f64,
}

impl MergeReport {
    /// What rounding to the element type changed, as a share of what the adapters changed: ‖rounding‖/‖update‖.
    pub fn rounding(&self) -> f64 {
        if self.update > 0.0 { (self.rounded / self.update).sqrt() } else { 0.0 }
    }
}

impl AddAssign for MergeReport {
    fn add_assign(&mut self, other: MergeReport) {
        self.matrices += other.matrices;
        self.zeros_before += other.zeros_before;
        self.zeros_after += other.zeros_after;
        self.update += other.update;
        self.rounded += other.rounded;
    }
}

/// An adapter's values in the host's memory.
pub(super) struct Values<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
    pub form: LoraForm,
}

/// A matrix with its adapter in it.
#[derive(Debug)]
pub(super) struct Merged {
    /// Its entries, row-major, each a number of its element type.
    pub values: Vec<f32>,
    /// What happened.
    pub report: MergeReport,
}

/// The row-major matrix `w` of `cols` columns with an adapter in it, rounded to `dtype`. `mask` says which entries it has, where its
/// zeros do not.
pub(super) fn merged(
    w: Vec<f32>,
    cols: usize,
    mask: Option<&[u64]>,
    values: &Values<'_>,
    merging: Merging,
    dtype: DType,
) -> kernels::Result<Merged> {
    let kept = match (values.form, merging, mask) {
        (LoraForm::Added, Merging::All, _) => Kept::All,
        (.., Some(mask)) => Kept::Bits(mask),
        (.., None) => Kept::Nonzero,
    };
    let form = match values.form {
        LoraForm::Added | LoraForm::Masked => Form::Add { scale: values.scale },
        LoraForm::Scaled => Form::Scale,
    };
    let mut entries = w.clone();
    kernels::weight::merge(&mut entries, cols, kept, (values.a, values.b, values.rank), form);
    let mut report = MergeReport { matrices: 1, ..MergeReport::default() };
    for (i, (entry, before)) in entries.iter_mut().zip(&w).enumerate() {
        let rounded = rounded(*entry, dtype);
        if !rounded.is_finite() {
            let (row, col) = (i / cols, i % cols);
            let reason = format!("entry ({row}, {col}) becomes {entry}, which {dtype} does not hold");
            return Err(kernels::Error::Domain { op: "merge", reason });
        }
        report.zeros_before += usize::from(*before == 0.0);
        report.zeros_after += usize::from(rounded == 0.0);
        report.update += f64::from(*entry - before).powi(2);
        report.rounded += f64::from(rounded - *entry).powi(2);
        *entry = rounded;
    }
    Ok(Merged { values: entries, report })
}

/// A and B of each linear layer that has an adapter: what [`merge`] takes.
pub fn merging(model: &mut dyn Model) -> Vec<Arc<Param>> {
    let mut params = Vec::new();
    let shown = model.visit(&mut |module| {
        if let Module::Linear(linear) = module {
            params.extend(linear.lora.iter().flat_map(|lora| [lora.a.clone(), lora.b.clone()]));
        }
        Ok(())
    });
    debug_assert!(shown.is_ok(), "the closure returns no error");
    params
}

/// Merges the adapters of all linear layers into their weights, into the entries that these have, one matrix at a time; the
/// layers have no adapters then. `progress` hears of layers done.
///
/// # Errors
/// An entry that its element type does not hold, a weight that trains itself, no memory, or the GPU's.
pub fn merge(model: &mut dyn Model, progress: &mut dyn FnMut(usize)) -> Result<MergeReport> {
    let mut done = 0;
    merge_handing(model, &mut |_, _| {
        done += 1;
        progress(done);
    })
}

/// The same; `was` is handed each layer's name and the weight that it had, with which the merging can be taken back.
///
/// # Errors
/// As [`merge`]. Layers before the one at fault are merged then.
pub(crate) fn merge_handing(model: &mut dyn Model, was: &mut dyn FnMut(&str, Weight)) -> Result<MergeReport> {
    let mut report = MergeReport::default();
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.lora.is_some()
        {
            let linear = model::between_steps(linear);
            let name = format!("{}.weight", linear.name);
            let lora = linear.lora.take().expect("just seen");
            let weight = match &linear.weight {
                Weight::Frozen(weight) => {
                    Weight::Frozen(merge_frozen(&name, weight, &lora, Merging::Kept, &mut report)?)
                }
                Weight::Offloaded(weight) => {
                    let merged = merge_frozen(&name, &*weight.bring()?, &lora, Merging::Kept, &mut report)?;
                    Weight::Offloaded(OffloadedWeight::new(&merged, weight.landing())?)
                }
                Weight::Trainable(_) => return Err(Error::config(format!("{name} trains itself: nothing to merge"))),
            };
            was(&linear.name, std::mem::replace(&mut linear.weight, weight));
        }
        Ok(())
    })?;
    model::device_of(model).trim();
    Ok(report)
}

/// Merges the head's adapter into its weight, into every entry: the head is not pruned. A head that shares the embedding's table
/// gets one of its own first, for the embedding must not change.
///
/// # Errors
/// As [`merge`].
pub fn merge_head(model: &mut dyn Model) -> Result<MergeReport> {
    let mut report = MergeReport::default();
    model.visit(&mut |module| {
        if let Module::Head(head) = module
            && let Some(lora) = head.lora.take()
        {
            let Weight::Frozen(table) = &*head.weight else {
                return Err(Error::config("the head's weight trains itself: nothing to merge"));
            };
            let merged = merge_frozen("lm_head.weight", table, &lora, Merging::All, &mut report)?;
            head.weight = Arc::new(Weight::Frozen(merged));
            head.tied = false;
        }
        Ok(())
    })?;
    Ok(report)
}

/// A weight of the same entries and the same kind with its adapter in it.
fn merge_frozen(
    name: &str,
    weight: &FrozenWeight,
    lora: &Lora,
    merging: Merging,
    report: &mut MergeReport,
) -> Result<FrozenWeight> {
    let (rows, cols, dtype, device) = (weight.rows(), weight.cols(), weight.dtype(), weight.device());
    let (a, b) = (lora.a.value(), lora.b.value());
    let (a, b) = (a.read::<f32>()?, b.read::<f32>()?);
    let values = Values { a: &a, b: &b, rank: lora.rank, scale: lora.scale(), form: lora.form };
    let mask = weight.mask()?;
    let merged =
        merged(weight.to_f32()?, cols, mask.as_deref(), &values, merging, dtype).map_err(|error| Error::Overflow {
            tensor: name.into(),
            reason: error.to_string(),
            remedy: "a smaller learning rate usually helps",
        })?;
    *report += merged.report;
    let category = if mask.is_some() { Category::Workspace } else { Category::Weights };
    let mut entries = device.alloc(category, dtype, rows * cols)?;
    entries.write(&narrow(&merged.values, dtype))?;
    drop(merged);
    let Some(words) = mask else { return Ok(FrozenWeight::dense(entries, rows, cols)?) };
    let mask = device.upload(Category::Masks, &words)?;
    Ok(match weight {
        FrozenWeight::TwoFour(_) => FrozenWeight::pruned_n_of_m(device, &entries, rows, cols, &mask, 2, 4)?,
        _ => FrozenWeight::pruned(device, &entries, rows, cols, &mask, weight.stored())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_merged_is_counted() {
        let values = |form| Values { a: &[1.0, 2.0, 4.0], b: &[1.0, -1.0], rank: 1, scale: 0.5, form };
        let w = vec![1.0, 0.0, 2.0, 0.0, 3.0, 0.0];
        let run = |form, merging| merged(w.clone(), 3, None, &values(form), merging, DType::F32).unwrap();
        let kept = run(LoraForm::Added, Merging::Kept);
        assert_eq!(kept.values, [1.5, 0.0, 4.0, 0.0, 2.0, 0.0]);
        assert_eq!((kept.report.zeros_before, kept.report.zeros_after, kept.report.matrices), (3, 3, 1));
        assert_eq!((kept.report.update, kept.report.rounding()), (0.25 + 4.0 + 1.0, 0.0));
        assert_eq!(run(LoraForm::Masked, Merging::All).values, kept.values, "its form decides");
        assert_eq!(run(LoraForm::Scaled, Merging::All).values, [1.0, 0.0, 8.0, 0.0, -6.0, 0.0]);
        let all = run(LoraForm::Added, Merging::All);
        assert_eq!(all.values, [1.5, 1.0, 4.0, -0.5, 2.0, -2.0]);
        assert_eq!(all.report.zeros_after, 0);
        // A stored zero is an entry.
        let masked = merged(w, 3, Some(&[0b10111]), &values(LoraForm::Added), Merging::Kept, DType::F32).unwrap();
        assert_eq!(masked.values, [1.5, 1.0, 4.0, 0.0, 2.0, 0.0]);
        let large = Values { scale: 1e9, ..values(LoraForm::Added) };
        let error = merged(vec![1.0; 6], 3, None, &large, Merging::All, DType::F16).unwrap_err().to_string();
        assert_eq!(error, "merge: entry (0, 0) becomes 1000000000, which f16 does not hold");
    }
}
