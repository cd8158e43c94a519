//! Layer-wise reconstruction: each decoder layer, once pruned, is trained to give what it gave dense.
//!
//! From the first layer on: the dense layer's outputs y = f(x) on all calibration windows are kept; the layer is pruned; parameters
//! inside it are trained to minimise ‖f̂(x) − y‖²; what it gives then is the next layer's input. So a layer makes up for its own
//! pruning and, because its input comes from layers as they were reconstructed, not for theirs. No loss of the whole network is
//! ever taken: what trains, and its gradients and moments, are one layer's.
//!
//! Which parameters train [`apply`](crate::peft::apply) says, shown that layer alone; so everything that trains in a layer can.

mod job;
mod pass;
mod plan;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use kernels::Device;

use crate::calibrate::one_layer::OneLayer;
use crate::calibrate::store::Store;
use crate::calibrate::{Calibration, Collector, Progress, begin, collect, prune_layer, spill};
use crate::error::Result;
use crate::model::{self, Model};
use crate::optim::{AdamW, AdamWConfig};
use crate::peft::TrainSet;
use crate::prune::{Allocation, Criterion, Pruning, prune_model};
use crate::tensor::Param;

use job::Job;
use pass::{decode, squared_distance};
pub use plan::{ReconstructionPlan, layer_bytes, plan_reconstruction};

/// How a layer is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstruction {
    /// What trains, of it what is inside decoder layers.
    pub set: TrainSet,
    /// Optimizer steps of each layer, one batch of windows each.
    pub steps: usize,
    /// The largest learning rate.
    pub lr: f64,
    /// The share of steps that the learning rate rises over.
    pub warmup: f64,
    /// The largest gradient norm over all that trains in a layer.
    pub clip: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Of the adapters' start and the order of batches.
    pub seed: u64,
}

/// What reconstruction did to a decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstructed {
    /// Its number, from 0.
    pub layer: usize,
    /// ‖ŷ − y‖²/‖y − x‖² over all windows when it was pruned and not yet trained: x its input, y what it gave dense, ŷ what it gives.
    pub before: f64,
    /// The same of the layer as it stays.
    pub after: f64,
    /// False where training, with what merging and rounding made of it, left it no better, so that it stays as pruned.
    pub trained: bool,
    /// Parameters that trained.
    pub trainable: usize,
}

/// How far it has come.
#[derive(Clone, Copy, Debug)]
pub enum Reconstructing<'a> {
    /// So many passes and steps of a batch through a layer are done, of how many.
    Work {
        /// The layer.
        layer: usize,
        /// Those done.
        done: usize,
        /// Those in all.
        all: usize,
    },
    /// A Hessian needed more dampening than 0.01 of its mean diagonal.
    Dampened {
        /// The weight.
        tensor: &'a str,
        /// The share that it took.
        dampening: f64,
    },
    /// A layer is done.
    Layer(&'a Reconstructed),
}

/// Prunes a dense model and reconstructs it, layer by layer. Weights that train (method `full`) are frozen again in the element type
/// that they had, rounded as merging rounds; adapters that merge are merged; other parameters stay in f32. A layer that is then no
/// better than pruned stays as pruned: its weights bit for bit, and without adapters that merge.
///
/// # Errors
/// Those of pruning with calibration and of [`apply`](crate::peft::apply); a loss or gradient that is not finite; no memory.
pub fn reconstruct(
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &Allocation,
    how: &Reconstruction,
    calibration: &Calibration,
    progress: &mut dyn FnMut(Reconstructing<'_>),
) -> Result<Vec<Reconstructed>> {
    let calibrated = pruning.criterion.needs_calibration();
    let sums = if calibrated { pruning.criterion } else { Criterion::Wanda };
    let (batches, mut inputs, room) = begin(model, sums, calibration, 2)?;
    let device = model::device_of(model);
    let layers = model.info().layers;
    let all = layers * (3 * batches.len() + how.steps);
    let mut done = 0;
    let mut reports = Vec::with_capacity(layers);
    for layer in 0..layers {
        let mut work = |progress: &mut dyn FnMut(Reconstructing<'_>)| {
            done += 1;
            progress(Reconstructing::Work { layer, done, all });
        };
        let collector = Rc::new(RefCell::new(Collector::new(sums)));
        let (mut outputs, mut added) = (Store::new(&device, room.states), 0.0);
        for (index, batch) in batches.iter().enumerate() {
            let input = inputs.get(index)?;
            let output = if calibrated {
                collect(model, layer, input.clone(), batch, &collector)?
            } else {
                decode(model, layer, input.clone(), batch)?
            };
            added += squared_distance(&output, &input)?;
            outputs.push(output)?;
            work(progress);
        }
        if calibrated {
            let (groups, samples) = (collector.take().into_groups(), calibration.windows.len());
            prune_layer(model, pruning, allocation, groups, samples, &mut |event| {
                if let Progress::Dampened { tensor, dampening } = event {
                    progress(Reconstructing::Dampened { tensor, dampening });
                }
            })?;
        } else {
            prune_model(&mut OneLayer { model, layer }, pruning, allocation, &mut |_| Ok(()))?;
        }
        let mut job = Job { view: OneLayer { model, layer }, pruning, allocation, how, batches: &batches, added };
        let report = job.run(&mut inputs, &mut outputs, &mut || work(progress))?;
        device.trim();
        spill(model, layer, room.spill)?;
        progress(Reconstructing::Layer(&report));
        reports.push(report);
        inputs = outputs;
    }
    Ok(reports)
}

impl Reconstruction {
    fn optimizer(&self, device: &Device, params: &[Arc<Param>]) -> Result<AdamW> {
        let sizes: Vec<(String, usize)> = params.iter().map(|param| (param.name().to_string(), param.len())).collect();
        let config = AdamWConfig { weight_decay: self.weight_decay, clip: self.clip, ..AdamWConfig::default() };
        Ok(AdamW::new(device, &sizes, config)?)
    }
}
