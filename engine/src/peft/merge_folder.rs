//! Adapter folders merged into model folders, tensor by tensor: a matrix and its adapter are all that is in memory, and what has no
//! adapter is copied bit for bit, whatever the architecture.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use kernels::DType;
use serde_json::Value;

use super::merge::{MergeReport, Merging, Values, merged};
use crate::checkpoint::{
    Adapter, DEFAULT_SHARD_BYTES, HEAD_MODULE, LoraTensors, ModelFolder, NewTensor, OutputFolder, TensorInfo,
    WeightFormat, write_model,
};
use crate::error::{Error, Result};
use crate::model::{LoraForm, narrow};
use crate::prune::PRUNED;

/// What the names of tables that embed tokens end in.
const TABLE: &str = "embed_tokens.weight";

/// How matrices B·A go into their weights; the head's is added in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeForm {
    /// As they were trained: inside their weights, or added. Plain LoRA on a pruned weight (1 % of it is zero, or more) is refused: it
    /// would either fill the zeros or lose what it puts there.
    Auto,
    /// W + s·B·A, as PEFT does: zeros fill up.
    Add,
    /// W + s·M⊙(B·A): zeros stay.
    Mask,
    /// W⊙(B·A): zeros stay.
    Scale,
}

/// What merging a folder did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FolderReport {
    /// To matrices whose zeros stayed.
    pub kept: MergeReport,
    /// To matrices of which every entry took its part.
    pub added: MergeReport,
}

/// Writes `folder` with `adapter` merged into it. Matrices are rounded to `dtype`, or their own element type where there is none.
/// `progress` hears of matrices done. A head that shares the embedding's table gets one of its own, and the configuration says so.
///
/// # Errors
/// A form that is not the one in which the adapter was trained, plain LoRA on a pruned weight where the form is left to it, a module
/// that the model does not have, a matrix of another shape, an entry that its element type does not hold, or what the file system
/// refuses.
pub fn merge_folder(
    folder: &ModelFolder,
    adapter: &Adapter,
    form: MergeForm,
    dtype: Option<DType>,
    out: &OutputFolder,
    progress: impl FnMut(usize) + 'static,
) -> Result<FolderReport> {
    let trained = adapter.config.form;
    if !matches!((trained, form), (LoraForm::Added, _) | (_, MergeForm::Auto))
        && !matches!((trained, form), (LoraForm::Masked, MergeForm::Mask) | (LoraForm::Scaled, MergeForm::Scale))
    {
        let (path, kind) = (adapter.path.display(), trained.peft_type());
        return Err(Error::config(format!(
            "adapter {path}: is {kind}: merged in another form than it was trained in it would be another model; leave --form away"
        )));
    }
    let state = Rc::new(RefCell::new((FolderReport::default(), progress)));
    let mut targets = Vec::new();
    for (module, pair) in &adapter.modules {
        targets.push(Target::find(folder, adapter, module, pair)?);
    }
    if form == MergeForm::Auto {
        targets.iter().try_for_each(|target| target.refuse_pruned(adapter))?;
    }
    // A file of the bare decoder has no place for a head: with one its tensors take their full names.
    let bare = targets.iter().any(|target| target.is_head && !target.weight.name().starts_with("model."));
    let bare = bare && folder.tensor("lm_head.weight").is_none();
    let named =
        |name: &str| if bare && !name.starts_with(HEAD_MODULE) { format!("model.{name}") } else { name.to_string() };
    let mut tensors = Vec::new();
    for info in folder.tensors() {
        if !targets.iter().any(|target| target.name == info.name()) {
            tensors.push(NewTensor::unchanged(info).named(named(info.name())));
        }
    }
    let untied = targets.iter().any(|target| target.is_head);
    if untied && let Some((name, table)) = table_under_the_heads_name(folder) {
        tensors.push(NewTensor::unchanged(table).named(name));
    }
    for target in targets {
        let dtype = dtype.map_or_else(|| target.weight.dtype(), Ok)?;
        let (name, shape, state) = (named(&target.name), target.weight.shape().to_vec(), state.clone());
        tensors.push(NewTensor::new(name, dtype, shape, move || {
            let (values, merging, report) = target.merged(form, dtype)?;
            let (reports, progress) = &mut *state.borrow_mut();
            let of = if merging == Merging::All { &mut reports.added } else { &mut reports.kept };
            *of += report;
            progress(reports.added.matrices + reports.kept.matrices);
            Ok(Cow::Owned(narrow(&values, dtype)))
        }));
    }
    let mut config = folder.config().clone();
    if untied && let Some(config) = config.as_object_mut() {
        config.insert("tie_word_embeddings".into(), Value::Bool(false));
    }
    write_model(out, tensors, &config, Some(folder), DEFAULT_SHARD_BYTES, WeightFormat::HuggingFace)?;
    let report = state.borrow().0;
    Ok(report)
}

/// What embeds tokens, and its name, where the file has the table that the head shares under the head's name alone.
fn table_under_the_heads_name(folder: &ModelFolder) -> Option<(String, &TensorInfo)> {
    let head = folder.tensor("lm_head.weight")?;
    let is_alone = !folder.names().any(|name| name.ends_with(TABLE));
    let decoder = folder.names().find_map(|name| name.split_once("layers.")).map(|(decoder, _)| decoder)?;
    is_alone.then(|| (format!("{decoder}{TABLE}"), head))
}

/// A matrix that an adapter goes into.
struct Target<'a> {
    /// Its name in the merged model.
    name: String,
    /// What it is before.
    weight: &'a TensorInfo,
    pair: &'a LoraTensors,
    is_head: bool,
}

impl<'a> Target<'a> {
    fn find(folder: &'a ModelFolder, adapter: &Adapter, module: &str, pair: &'a LoraTensors) -> Result<Target<'a>> {
        let path = adapter.path.display();
        let name = format!("{module}.weight");
        let is_head = module == HEAD_MODULE;
        let bare = name.strip_prefix("model.").filter(|_| folder.tensor(&name).is_none()).map(str::to_string);
        let name = bare.filter(|bare| folder.tensor(bare).is_some()).unwrap_or(name);
        let tied = || folder.tensors().find(|info| info.name().ends_with(TABLE));
        let weight = folder.tensor(&name).or_else(|| tied().filter(|_| is_head)).ok_or_else(|| {
            Error::config(format!("adapter {path}: the model has no module {module}: it belongs to another model"))
        })?;
        let shape = [pair.b.shape()[0], pair.a.shape()[1]];
        if weight.shape() != shape {
            return Err(Error::config(format!(
                "adapter {path}: {module} has the shape {shape:?} there and {:?} in the model: it belongs to another model",
                weight.shape()
            )));
        }
        Ok(Target { name, weight, pair, is_head })
    }

    /// Fails where plain LoRA would go into a weight that was pruned.
    fn refuse_pruned(&self, adapter: &Adapter) -> Result<()> {
        if self.is_head || self.pair.form != LoraForm::Added {
            return Ok(());
        }
        let w = self.weight.read_f32()?;
        let zeros = w.iter().filter(|x| **x == 0.0).count() as f64 / w.len().max(1) as f64;
        if zeros < PRUNED {
            return Ok(());
        }
        Err(Error::config(format!(
            "adapter {}: is plain LoRA, and {} is pruned ({:.2} % zeros): --form mask keeps the zeros and loses what the adapter adds \
             there, --form add fills them",
            adapter.path.display(),
            self.weight.name(),
            100.0 * zeros
        )))
    }

    fn merged(&self, form: MergeForm, dtype: DType) -> kernels::Result<(Vec<f32>, Merging, MergeReport)> {
        let read = |info: &TensorInfo| {
            info.read_f32().map_err(|e| kernels::Error::Domain { op: "merge", reason: e.to_string() })
        };
        let (w, a, b) = (read(self.weight)?, read(&self.pair.a)?, read(&self.pair.b)?);
        let (form, merging) = match form {
            _ if self.is_head => (LoraForm::Added, Merging::All),
            MergeForm::Auto if self.pair.form != LoraForm::Added => (self.pair.form, Merging::Kept),
            MergeForm::Auto | MergeForm::Add => (LoraForm::Added, Merging::All),
            MergeForm::Mask => (LoraForm::Masked, Merging::Kept),
            MergeForm::Scale => (LoraForm::Scaled, Merging::Kept),
        };
        let LoraTensors { rank, alpha, .. } = *self.pair;
        let values = Values { a: &a, b: &b, rank, scale: (alpha / rank as f64) as f32, form };
        let merged = merged(w, self.weight.shape()[1], None, &values, merging, dtype)?;
        Ok((merged.values, merging, merged.report))
    }
}
