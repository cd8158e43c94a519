//! Pruning with calibration: Wanda and SparseGPT, which must know what goes into a layer.
//!
//! Decoder layer by decoder layer: the layer runs on all calibration windows while a watch on the tape collects what the
//! criterion needs of its linear layers' inputs; its linear layers are pruned; it runs again, pruned, and its outputs are the
//! next layer's inputs. So the inputs of a layer come from layers that are pruned already, and of a layer's own linear layers
//! all see what the dense ones before them in the layer give, as in both methods' own code.
//!
//! What is in memory: the model (mapped, on the CPU, and packed as far as it is pruned), one layer's sums and
//! workspace, and the hidden states of all windows once, of which what does not fit lies in a temporary file.

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
use crate::model::{self, Model, Module, TokenBatch, between_steps};
use crate::prune::{Allocation, Criterion, Hessian, Inputs, Pruning, prune_calibrated, widened};
use crate::tensor::Tensor;
use collect::{Collector, Group};
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
    /// Bytes that everything on the device may take together; hidden states past it go to a temporary file.
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
    let (batches, mut hidden, _) = begin(model, pruning.criterion, calibration, 1)?;
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
        reports.push(LayerReport { layer, error, linears });
        progress(Progress::Layer(reports.last().expect("just pushed")));
    }
    Ok(reports)
}

/// The windows in batches, and the first decoder layer's inputs. `stores` of hidden states are to be kept at once; also says what
/// each may take of the memory.
fn begin(
    model: &mut dyn Model,
    criterion: Criterion,
    calibration: &Calibration,
    stores: u64,
) -> Result<(Vec<TokenBatch>, Store, u64)> {
    let batches = batches(calibration)?;
    let device = model::device_of(model);
    let room = room(model, criterion, &batches[0], calibration.limit)? / stores;
    let mut hidden = Store::new(&device, room);
    for batch in &batches {
        hidden.push(model.embed(&mut Tape::inference(&device), batch)?.into_tensor())?;
    }
    Ok((batches, hidden, room))
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

/// Bytes of `limit` that hidden states may take: what the model, a layer that is collected from and the pruning of its largest
/// matrix leave. Measured by running the first layer on one batch.
fn room(model: &mut dyn Model, criterion: Criterion, batch: &TokenBatch, limit: u64) -> Result<u64> {
    let device = model::device_of(model);
    let before = device.memory().in_use();
    device.memory().reset_peak();
    let input = model.embed(&mut Tape::inference(&device), batch)?.into_tensor();
    let collector = Rc::new(RefCell::new(Collector::new(criterion)));
    collect(model, 0, input, batch, &collector)?;
    let running = device.memory().peak().total - before;
    drop(collector);
    let mut pruning = 0;
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            // The matrix widened, its scores or new entries, and the packed form beside the old one.
            let matrices = 12 * (rows * cols) as u64;
            pruning = pruning.max(match criterion {
                Criterion::SparseGpt => matrices + Hessian::workspace_bytes(rows, cols),
                _ => matrices,
            });
        }
        Ok(())
    })?;
    Ok(limit.saturating_sub(before + running + pruning))
}

/// ‖ŷ − y‖²/‖y − x‖²
fn relative_change(input: &Tensor, dense: &Tensor, pruned: &Tensor) -> Result<f64> {
    let [x, y, pruned] = [widened(input.buffer())?, widened(dense.buffer())?, widened(pruned.buffer())?];
    let distance =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
    let added = distance(&y, &x);
    Ok(if added == 0.0 { 0.0 } else { distance(&pruned, &y) / added })
}
