//! Which parameters train; LoRA and its initial values.
//!
//! Each method of the paper contains the one before it: biases ⊂ norms ⊂ probe ⊂ perp. Those whose adapters merge without
//! losing a zero train perp's set with adapters of another form. `full` trains everything.

mod adapters;
mod merge;
mod merge_folder;
mod method;

use std::sync::Arc;

use kernels::{Category, DType, Device};
use rand_chacha::rand_core::Rng;

pub use adapters::{attach, save as save_adapter};
pub(crate) use merge::merge_handing;
pub use merge::{MergeReport, Merging, merge, merge_head, merging};
pub use merge_folder::{FolderReport, MergeForm, merge_folder};
pub use method::{LoraKind, Method};

use crate::error::{Error, Result};
use crate::model::{self, Linear, Lora, LoraForm, Model, Module, Weight};
use crate::tensor::Param;

/// What trains.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSet {
    /// Biases of linear layers.
    pub biases: bool,
    /// Weight and bias of every norm.
    pub norms: bool,
    /// LoRA on the LM head.
    pub head: bool,
    /// Linear layers that get LoRA, by role (`q_proj`); [`ALL_LINEAR`] for every one inside decoder layers.
    pub targets: Vec<String>,
    /// What their adapters are; the head's is always plain.
    pub kind: LoraKind,
    /// Rank of the adapters.
    pub rank: usize,
    /// α of the adapters.
    pub alpha: f64,
    /// Every parameter of the base model.
    pub full: bool,
}

/// The target that stands for every linear layer inside decoder layers.
pub const ALL_LINEAR: &str = "all-linear";

impl TrainSet {
    /// The set of a method; `targets` are the linear layers that `perp` and its kin give adapters.
    pub fn of(method: Method, rank: usize, alpha: f64, targets: &[String]) -> TrainSet {
        let at_least = |least: Method| method != Method::Full && method as usize >= least as usize;
        TrainSet {
            biases: at_least(Method::Biases),
            norms: at_least(Method::Norms),
            head: at_least(Method::Probe),
            targets: if at_least(Method::Perp) { targets.to_vec() } else { Vec::new() },
            kind: method.lora(),
            rank,
            alpha,
            full: method == Method::Full,
        }
    }

    /// True where a linear layer inside decoder layers gets LoRA, by its path.
    pub fn trains_on(&self, module: &str) -> bool {
        let role = module.rsplit('.').next().unwrap_or(module);
        self.targets.iter().any(|target| target == ALL_LINEAR || target == role)
    }

    /// True where something gets LoRA.
    pub fn uses_lora(&self) -> bool {
        self.head || !self.targets.is_empty()
    }
}

/// Freezes the model, then attaches adapters and unfreezes what `set` says. Returns the trainable parameters in the order
/// of [`Model::visit`]. Adapters that are there already (of an earlier cycle) stay and train on.
///
/// # Errors
/// A rank of zero, a target that no layer bears, a set that leaves nothing to train, or no memory.
pub fn apply(model: &mut dyn Model, set: &TrainSet, seed: u64) -> Result<Vec<Arc<Param>>> {
    if set.uses_lora() && set.rank == 0 {
        return Err(Error::config("rank 0: LoRA needs a rank of at least 1"));
    }
    model::params(model).iter().for_each(|param| param.set_trainable(false));
    check_targets(model, set)?;
    let device = model::device_of(model);
    let mut tied_table = None;
    model.visit(&mut |module| {
        match module {
            Module::Linear(linear) => {
                let linear = model::between_steps(linear);
                if set.full {
                    make_trainable(&device, linear)?;
                }
                if linear.prunable && set.trains_on(&linear.name) {
                    if linear.lora.is_none() {
                        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
                        linear.lora = Some(fresh_lora(&device, &linear.name, (rows, cols), set, set.kind, seed)?);
                    }
                    linear.lora.iter().flat_map(|lora| [&lora.a, &lora.b]).for_each(|param| param.set_trainable(true));
                }
                linear.bias.iter().for_each(|bias| bias.set_trainable(set.biases || set.full));
            }
            Module::Norm(norm) => norm.params().for_each(|param| param.set_trainable(set.norms || set.full)),
            Module::Embedding(embedding) if set.full => {
                let name = format!("{}.weight", embedding.name);
                let old = embedding.weight.clone();
                embedding.weight = trainable_table(&device, &embedding.weight, &name)?;
                // The head looks for its shared table among those replaced.
                tied_table.get_or_insert((old, embedding.weight.clone()));
            }
            Module::Embedding(_) => {}
            Module::Head(head) => {
                if set.full {
                    head.weight = match tied_table.take().filter(|(old, _)| Arc::ptr_eq(old, &head.weight)) {
                        Some((_, new)) => new,
                        None => trainable_table(&device, &head.weight, "lm_head.weight")?,
                    };
                }
                if set.head {
                    if head.lora.is_none() {
                        let (rows, cols) = (head.weight.rows(), head.weight.cols());
                        head.lora = Some(fresh_lora(&device, &head.name, (rows, cols), set, LoraKind::Lora, seed)?);
                    }
                    head.lora.iter().flat_map(|lora| [&lora.a, &lora.b]).for_each(|param| param.set_trainable(true));
                }
            }
        }
        Ok(())
    })?;
    let trainable: Vec<_> = model::params(model).into_iter().filter(|param| param.is_trainable()).collect();
    if trainable.is_empty() {
        let architecture = &model.info().architecture;
        return Err(Error::config(format!(
            "nothing to train: a {architecture} model has no parameters of this set (its linear layers may have no \
             biases); choose norms, probe, perp or full"
        )));
    }
    Ok(trainable)
}

fn check_targets(model: &mut dyn Model, set: &TrainSet) -> Result<()> {
    let mut roles: Vec<String> = vec![ALL_LINEAR.into()];
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
            && !roles.iter().any(|role| role == linear.role())
        {
            roles.push(linear.role().into());
        }
        Ok(())
    })?;
    match set.targets.iter().find(|target| !roles.contains(target)) {
        None => Ok(()),
        Some(target) => Err(Error::config(format!(
            "no layer is called '{target}': the LoRA targets of this model are {}",
            roles.join(", ")
        ))),
    }
}

fn make_trainable(device: &Device, linear: &mut Linear) -> Result<()> {
    let name = format!("{}.weight", linear.name);
    // A cheap placeholder stands in while the weight is converted by value.
    let empty = kernels::weight::FrozenWeight::dense(device.alloc(Category::Weights, DType::F32, 0)?, 0, 0)?;
    let weight = std::mem::replace(&mut linear.weight, Weight::Frozen(empty));
    linear.weight = weight.into_trainable(device, &name)?;
    linear.weight.param().into_iter().for_each(|param| param.set_trainable(true));
    Ok(())
}

fn trainable_table(device: &Device, table: &Arc<Weight>, name: &str) -> Result<Arc<Weight>> {
    if let Some(param) = table.param() {
        param.set_trainable(true);
        return Ok(table.clone());
    }
    let (rows, cols) = (table.rows(), table.cols());
    let mut value = device.alloc(Category::Weights, DType::F32, rows * cols)?;
    if let Weight::Frozen(table) = table.as_ref() {
        value.fill(|values| table.read_all(values))?;
    }
    let param = Arc::new(Param::new(name, &[rows, cols], value));
    param.set_trainable(true);
    Ok(Arc::new(Weight::Trainable(param)))
}

/// A with Kaiming-uniform entries for a = √5, that is U(−1/√in, 1/√in), and B zero: the update starts at zero (as PEFT's
/// default does). Of one that scales its weight all entries are 1/√r: their product starts at 1.
fn fresh_lora(
    device: &Device,
    name: &str,
    (rows, cols): (usize, usize),
    set: &TrainSet,
    kind: LoraKind,
    seed: u64,
) -> Result<Lora> {
    let form = kind.form();
    let constant = (1.0 / (set.rank as f64).sqrt()) as f32;
    let mut a = device.alloc(Category::Adapters, DType::F32, set.rank * cols)?;
    a.fill(|values| {
        let bound = 1.0 / (cols as f64).sqrt();
        let mut rng = model::named_rng(seed, name);
        for x in values {
            let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            *x = if form == LoraForm::Scaled { constant } else { ((2.0 * unit - 1.0) * bound) as f32 };
        }
        Ok(())
    })?;
    let mut b = device.zeros(Category::Adapters, DType::F32, rows * set.rank)?;
    if form == LoraForm::Scaled {
        b.fill(|values| {
            values.fill(constant);
            Ok(())
        })?;
    }
    Ok(Lora {
        a: Arc::new(Param::new(format!("{name}.lora_A.weight"), &[set.rank, cols], a)),
        b: Arc::new(Param::new(format!("{name}.lora_B.weight"), &[rows, set.rank], b)),
        rank: set.rank,
        alpha: set.alpha,
        form,
    })
}
