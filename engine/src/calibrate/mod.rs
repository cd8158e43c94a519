//! Pruning with calibration: Wanda and SparseGPT, which must know what goes into a layer.
//!
//! Decoder layer by decoder layer: the layer runs on all calibration windows while a watch on the tape collects what the
//! criterion needs of its linear layers' inputs; its linear layers are pruned; it runs again, pruned, and its outputs are the
//! next layer's inputs. So the inputs of a layer come from layers that are pruned already, and of a layer's own linear layers
//! all see what the dense ones before them in the layer give, as in both methods' own code.
//!
//! What is in memory: one layer, its sums and its workspace, and, as far as there is room, the hidden states of all windows once and
//! the layers that are pruned. What has no room lies in temporary files: hidden states first, and on the CPU pruned weights, too, which
//! are mapped there, as the dense ones are mapped in the model's files.

mod collect;
mod one_layer;
mod outliers;
mod reconstruct;
mod sample;
mod store;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::model::{self, Model, Module, Spill, TokenBatch, Weight, between_steps};
use crate::prune::{Allocation, Criterion, Hessian, Inputs, Pruning, prune_calibrated, widened, workspace_bytes};
use crate::tensor::Tensor;
use collect::{Collector, Group};
use one_layer::OneLayer;
pub use outliers::layer_outliers;
pub use reconstruct::{
    Reconstructed, Reconstructing, Reconstruction, ReconstructionPlan, layer_bytes, plan_reconstruction, reconstruct,
};
pub use sample::sample_windows;
use store::Store;

/// Calibration text, and what it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// Windows of one length; as many as both papers' 128, say.
    pub windows: Vec<Vec<u32>>,
    /// Windows that run at once.
    pub batch: usize,
    /// Bytes that everything on the device may take together, but for pages of mapped files; hidden states and pruned weights of the CPU
    /// past it go to temporary files.
    pub limit: u64,
}

/// What pruning did to a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearReport {
    /// Its module path.
    pub name: String,
    /// What [`prune_calibrated`] returned.
    pub cost: f64,
}

/// What pruning did to a decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// Its number, from 0.
    pub layer: usize,
    /// ‖ŷ − y‖²/‖y − x‖² over the first batch of windows: the share that pruning changed of what the layer adds to its input x,
    /// y being its output before and ŷ after.
    pub error: f64,
    /// Its linear layers.
    pub linears: Vec<LinearReport>,
}

/// How far it has come.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many passes of a batch through a layer are done, of how many.
    Pass {
        /// The layer.
        layer: usize,
        /// Passes done.
        done: usize,
        /// Passes in all.
        all: usize,
    },
    /// A Hessian needed more dampening than 0.01 of its mean diagonal.
    Dampened {
        /// The weight.
        tensor: &'a str,
        /// The share that it took.
        dampening: f64,
    },
    /// A layer is pruned.
    Layer(&'a LayerReport),
}

/// Prunes every prunable layer of a model with a criterion that needs calibration, each as `allocation` says, frozen and
/// trainable weights alike.
///
/// # Errors
/// A criterion that needs none, no windows, inputs or weights that are not finite, a pattern that does not fit, a Hessian that
/// cannot be inverted, a temporary file that cannot be written, or no memory.
pub fn prune_model(
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &Allocation,
    calibration: &Calibration,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<LayerReport>> {
    if !pruning.criterion.needs_calibration() {
        return Err(Error::config(format!("{} pruning takes no calibration", pruning.criterion)));
    }
    let (batches, mut hidden, room) = begin(model, pruning.criterion, calibration, 1)?;
    let device = model::device_of(model);
    let layers = model.info().layers;
    let all = 2 * layers * batches.len();
    let mut done = 0;
    let mut pass = |layer: usize, progress: &mut dyn FnMut(Progress<'_>)| {
        done += 1;
        progress(Progress::Pass { layer, done, all });
    };
    let mut reports = Vec::with_capacity(layers);
    for layer in 0..layers {
        let collector = Rc::new(RefCell::new(Collector::new(pruning.criterion)));
        let mut first = None;
        for (index, batch) in batches.iter().enumerate() {
            let output = collect(model, layer, hidden.get(index)?, batch, &collector)?;
            first.get_or_insert(output);
            pass(layer, progress);
        }
        let groups = collector.take().into_groups();
        let linears = prune_layer(model, pruning, allocation, groups, calibration.windows.len(), progress)?;
        let dense = first.expect("there is a batch");
        let mut error = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            // Nobody needs the last layer's outputs but the comparison.
            if index == 0 || layer + 1 < layers {
                let input = hidden.get(index)?;
                let output = model
                    .decode(&mut Tape::inference(&device), layer, Var::constant(input.clone()), batch)?
                    .into_tensor();
                if index == 0 {
                    error = relative_change(&input, &dense, &output)?;
                }
                hidden.set(index, output)?;
            }
            pass(layer, progress);
        }
        device.trim();
        spill(model, layer, room.spill)?;
        reports.push(LayerReport { layer, error, linears });
        progress(Progress::Layer(reports.last().expect("just pushed")));
    }
    Ok(reports)
}

/// What is left of the memory beside a layer at work.
#[derive(Clone, Copy)]
struct Room {
    /// Bytes that a store of hidden states may take.
    states: u64,
    /// Where pruned weights go that find no room.
    spill: Spill,
}

/// The windows in batches, and the first decoder layer's inputs. `stores` of hidden states are to be kept at once.
fn begin(
    model: &mut dyn Model,
    criterion: Criterion,
    calibration: &Calibration,
    stores: u64,
) -> Result<(Vec<TokenBatch>, Store, Room)> {
    let batches = batches(calibration)?;
    let device = model::device_of(model);
    // Of a GPU's memory nothing is mapped: there all of the model is in use.
    let beside = calibration.limit.saturating_sub(at_work(model, criterion, &batches[0])?);
    let states = beside.saturating_sub(device.memory().anonymous()) / stores;
    let mut hidden = Store::new(&device, states);
    for batch in &batches {
        hidden.push(model.embed(&mut Tape::inference(&device), batch)?.into_tensor())?;
    }
    Ok((batches, hidden, Room { states, spill: Spill::past(beside) }))
}

/// Takes a layer's pruned weights to a temporary file if there is no room for them.
fn spill(model: &mut dyn Model, layer: usize, spill: Spill) -> Result<()> {
    OneLayer { model, layer }.visit(&mut |module| match module {
        Module::Linear(linear) if linear.prunable => spill.take(between_steps(linear)),
        _ => Ok(()),
    })
}

fn batches(calibration: &Calibration) -> Result<Vec<TokenBatch>> {
    let length = calibration.windows.first().map_or(0, Vec::len);
    if length == 0 || calibration.windows.iter().any(|window| window.len() != length) {
        return Err(Error::config("calibration takes at least one window, all of one length"));
    }
    let chunks = calibration.windows.chunks(calibration.batch.max(1));
    Ok(chunks.map(|windows| TokenBatch::new(windows.concat(), length)).collect())
}

/// Runs a layer while its linear layers' inputs are collected.
fn collect(
    model: &dyn Model,
    layer: usize,
    input: Tensor,
    batch: &TokenBatch,
    collector: &Rc<RefCell<Collector>>,
) -> Result<Tensor> {
    let device = model::device_of(model);
    let to = collector.clone();
    let mut tape = Tape::watched(&device, move |linear, input| to.borrow_mut().add(linear, input));
    Ok(model.decode(&mut tape, layer, Var::constant(input), batch)?.into_tensor())
}

/// Prunes the linear layers of each group, whose inputs are the same.
fn prune_layer(
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &Allocation,
    groups: Vec<Group>,
    samples: usize,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<LinearReport>> {
    let mut reports = Vec::new();
    for Group { names, sums } in groups {
        let tensor = format!("{}.weight", names[0]);
        let inputs = sums.into_inputs(samples, &tensor)?;
        if let Inputs::Hessian(hessian) = &inputs
            && hessian.was_indefinite()
        {
            progress(Progress::Dampened { tensor: &tensor, dampening: hessian.dampening() });
        }
        model.visit(&mut |module| {
            if let Module::Linear(linear) = module
                && names.contains(&linear.name)
            {
                let linear = between_steps(linear);
                let cost = prune_calibrated(linear, &allocation.pruning(pruning, &linear.name), &inputs)?;
                reports.push(LinearReport { name: linear.name.clone(), cost });
            }
            Ok(())
        })?;
    }
    Ok(reports)
}

/// Bytes that a layer at work takes: its weights where they are pages of a file, what collecting from it takes, which is measured by
/// running the first one on a batch, and the pruning of its largest matrix.
fn at_work(model: &mut dyn Model, criterion: Criterion, batch: &TokenBatch) -> Result<u64> {
    let device = model::device_of(model);
    let before = device.memory().in_use();
    device.memory().reset_peak();
    let input = model.embed(&mut Tape::inference(&device), batch)?.into_tensor();
    let collector = Rc::new(RefCell::new(Collector::new(criterion)));
    collect(model, 0, input, batch, &collector)?;
    let running = device.memory().peak().total - before;
    drop(collector);
    let mut pruning = 0;
    let mut mapped = vec![0; model.info().layers];
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            if let (Weight::Frozen(weight), Some(layer)) = (&linear.weight, linear.layer()) {
                mapped[layer] += weight.mapped_bytes() as u64;
            }
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let matrices = workspace_bytes(rows * cols);
            pruning = pruning.max(match criterion {
                Criterion::SparseGpt => matrices + Hessian::workspace_bytes(rows, cols),
                _ => matrices,
            });
        }
        Ok(())
    })?;
    Ok(mapped.into_iter().max().unwrap_or(0) + running + pruning)
}

/// ‖ŷ − y‖²/‖y − x‖²
fn relative_change(input: &Tensor, dense: &Tensor, pruned: &Tensor) -> Result<f64> {
    let [x, y, pruned] = [widened(input.buffer())?, widened(dense.buffer())?, widened(pruned.buffer())?];
    let distance =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
    let added = distance(&y, &x);
    Ok(if added == 0.0 { 0.0 } else { distance(&pruned, &y) / added })
}
