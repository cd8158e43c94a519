//! Layer-wise reconstruction: each decoder layer, once pruned, is trained to give what it gave dense.
//!
//! From the first layer on: the dense layer's outputs y = f(x) on all calibration windows are kept; the layer is pruned; parameters
//! inside it are trained to minimise ‖f̂(x) − y‖²; what it gives then is the next layer's input. So a layer makes up for its own
//! pruning and, because its input comes from layers as they were reconstructed, not for theirs. No loss of the whole network is
//! ever taken: what trains, and its gradients and moments, are one layer's.
//!
//! Which parameters train [`peft::apply`] says, shown that layer alone; so everything that trains in a layer can.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use kernels::weight::FrozenWeight;
use kernels::{Buffer, Category, DType, Device};
use rayon::prelude::*;

use super::one_layer::OneLayer;
use super::store::Store;
use super::{Calibration, Progress, begin, collect, prune_layer, spill};
use crate::autograd::{Tape, Var};
use crate::data::TrainSampler;
use crate::error::{Error, Result};
use crate::model::{self, Model, Module, TokenBatch, Weight, between_steps};
use crate::optim::{self, AdamW, AdamWConfig, LinearSchedule};
use crate::peft::{self, TrainSet};
use crate::prune::{Allocation, Criterion, Pattern, Pruning, narrowed, packed, prune_model, rounded, widened};
use crate::retrain::update;
use crate::tensor::{Param, Tensor};

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
/// Those of pruning with calibration and of [`peft::apply`]; a loss or gradient that is not finite; no memory.
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
        let collector = Rc::new(RefCell::new(super::Collector::new(sums)));
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

/// What [`reconstruct`] takes of a device, in bytes, but for hidden states, which take what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconstructionPlan {
    /// The most at once: layers are pruned one after the other, and all behind are dense until then.
    pub peak: u64,
    /// What of it is for training a layer: all that the CPU must have, where weights of other layers are pages of files, the model's or
    /// temporary ones, and read again where they had no room.
    pub training: u64,
}

/// Plans [`reconstruct`] of a dense model without values, on Meta; it is pruned then.
///
/// # Errors
/// A pattern that does not fit, and those of [`peft::apply`].
pub fn plan_reconstruction(
    model: &mut dyn Model,
    pruning: &Pruning,
    allocation: &Allocation,
    how: &Reconstruction,
    batch: usize,
    seq_len: usize,
) -> Result<ReconstructionPlan> {
    let device = model::device_of(model);
    let memory = device.memory();
    let dense = memory.in_use();
    let tokens = TokenBatch::new(vec![0; batch * seq_len], seq_len);
    let input = model.embed(&mut Tape::inference(&device), &tokens)?.into_tensor();
    memory.reset_peak();
    let collector = Rc::new(RefCell::new(super::Collector::new(pruning.criterion)));
    // Only SparseGPT's sums lie on the device. They are there until the layer is pruned.
    let output = match pruning.criterion {
        Criterion::SparseGpt => collect(model, 0, input.clone(), &tokens, &collector)?,
        _ => decode(model, 0, input.clone(), &tokens)?,
    };
    let passing = memory.peak().total - dense;
    drop((input, output));
    let sums = memory.in_use() - dense;
    memory.reset_peak();
    let (mut passed, mut trained) = (dense, 0);
    for layer in 0..model.info().layers {
        passed = passed.max(memory.in_use() - sums);
        prune_model(&mut OneLayer { model, layer }, pruning, allocation, &mut |_| Ok(()))?;
        trained = trained.max(memory.in_use() - sums);
    }
    let peak = memory.peak().total.max(passed + passing);
    drop(collector);
    let training = layer_bytes(model, how, batch, seq_len)?;
    Ok(ReconstructionPlan { peak: peak.max(trained + training), training })
}

/// Bytes that training a layer takes beside the model, whose weights have no values (on Meta) and are pruned.
///
/// # Errors
/// As [`peft::apply`].
pub fn layer_bytes(model: &mut dyn Model, how: &Reconstruction, batch: usize, seq_len: usize) -> Result<u64> {
    let device = model::device_of(model);
    let batch = TokenBatch::new(vec![0; batch * seq_len], seq_len);
    let before = device.memory().in_use();
    let input = model.embed(&mut Tape::inference(&device), &batch)?.into_tensor();
    let (dtype, len) = (input.buffer().dtype(), input.rows() * input.cols());
    let target = device.zeros(Category::Activations, dtype, len)?;
    device.memory().reset_peak();
    let mut view = OneLayer { model, layer: 0 };
    let params = peft::apply(&mut view, &how.set, how.seed)?;
    let mut optimizer = how.optimizer(&device, &params)?;
    step(&view, 0, input.clone(), &batch, |output| {
        let gradient = device.zeros(Category::Workspace, dtype, len)?.duplicate(Category::Activations)?;
        Ok(Tensor::new(gradient, output.rows(), output.cols()))
    })?;
    update(&mut optimizer, &params, how.lr)?;
    drop(optimizer);
    let merged = if how.set.kind.merges() { beside_merged(&mut view)? } else { Vec::new() };
    decode(&view, 0, input, &batch)?;
    drop((merged, target));
    Ok(device.memory().peak().total.saturating_sub(before))
}

/// Buffers as large as what merging makes of a layer's weights, which are kept until the layer has shown to be better with it.
fn beside_merged(view: &mut OneLayer<'_>) -> Result<Vec<Buffer>> {
    let device = model::device_of(view);
    let mut merged = Vec::new();
    view.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.lora.is_some()
        {
            let (weight, entries) = (&linear.weight, linear.weight.rows() * linear.weight.cols());
            let _dense = device.alloc(Category::Workspace, weight.dtype(), entries)?;
            let _mask = device.alloc(Category::Masks, DType::U64, entries.div_ceil(64))?;
            let bytes = weight.with_ref(|weight| Ok::<_, Error>(weight.size_bytes()))?;
            merged.push(device.alloc(Category::Weights, DType::U8, bytes)?);
        }
        Ok(())
    })?;
    Ok(merged)
}

impl Reconstruction {
    fn optimizer(&self, device: &Device, params: &[Arc<Param>]) -> Result<AdamW> {
        let sizes: Vec<(String, usize)> = params.iter().map(|param| (param.name().to_string(), param.len())).collect();
        let config = AdamWConfig { weight_decay: self.weight_decay, clip: self.clip, ..AdamWConfig::default() };
        Ok(AdamW::new(device, &sizes, config)?)
    }
}

/// One layer, pruned, to be trained.
struct Job<'a> {
    view: OneLayer<'a>,
    pruning: &'a Pruning,
    allocation: &'a Allocation,
    how: &'a Reconstruction,
    batches: &'a [TokenBatch],
    /// ‖y − x‖² over all windows.
    added: f64,
}

impl Job<'_> {
    /// Trains the layer; `outputs` hold what it gave dense, and then what it gives.
    fn run(&mut self, inputs: &mut Store, outputs: &mut Store, work: &mut dyn FnMut()) -> Result<Reconstructed> {
        let layer = self.view.layer;
        let mut before = 0.0;
        for index in 0..self.batches.len() {
            before += self.error_of(index, inputs, outputs)?;
            work();
        }
        let dtypes = self.dtypes()?;
        let params = peft::apply(&mut self.view, &self.how.set, self.how.seed)?;
        let start: Vec<Vec<f32>> = params.iter().map(|param| Ok(param.value().download()?)).collect::<Result<_>>()?;
        self.train(&params, inputs, outputs, work)?;
        params.iter().for_each(|param| param.set_trainable(false));
        self.round(&dtypes)?;
        // What decides is the layer as it would stay: merged, and rounded.
        let mut was = Vec::new();
        let mut trained = has_moved(&params, &start)? && self.merge(&mut was)?;
        if !trained {
            self.take_back(&params, &start, &mut was)?;
        }
        let error = self.give(inputs, outputs, work)?;
        if trained && error.partial_cmp(&before) != Some(Ordering::Less) {
            trained = false;
            self.take_back(&params, &start, &mut was)?;
            self.give(inputs, outputs, &mut || {})?;
        }
        let after = if trained { error } else { before };
        let trainable = params.iter().map(|param| param.len()).sum();
        drop((params, was));
        self.freeze(&dtypes)?;
        let share = |error: f64| if self.added == 0.0 { 0.0 } else { error / self.added };
        Ok(Reconstructed { layer, before: share(before), after: share(after), trained, trainable })
    }

    /// Merges the adapters that merge; `was` gets the weights that they went into, as they were. False where an entry became larger than
    /// its element type holds: no layer is better with that.
    fn merge(&mut self, was: &mut Vec<(String, Weight)>) -> Result<bool> {
        if !self.how.set.kind.merges() {
            return Ok(true);
        }
        match peft::merge_handing(&mut self.view, &mut |name, weight| was.push((name.into(), weight))) {
            Err(Error::Overflow { .. }) => Ok(false),
            merged => merged.map(|_| true),
        }
    }

    /// Makes the layer what pruning left of it, beside adapters that do not merge, which add nothing where they start.
    fn take_back(&mut self, params: &[Arc<Param>], start: &[Vec<f32>], was: &mut Vec<(String, Weight)>) -> Result<()> {
        for (param, start) in params.iter().zip(start) {
            param.value_mut().write(bytemuck::cast_slice(start))?;
        }
        if !self.how.set.kind.merges() {
            return Ok(());
        }
        self.view.visit(&mut |module| {
            if let Module::Linear(linear) = module {
                let linear = between_steps(linear);
                linear.lora = None;
                if let Some(at) = was.iter().position(|(name, _)| *name == linear.name) {
                    linear.weight = was.swap_remove(at).1;
                }
            }
            Ok(())
        })
    }

    /// What the layer gives takes the place of `outputs`, batch by batch. Returns ‖ŷ − y‖² between the two, over all windows.
    fn give(&self, inputs: &mut Store, outputs: &mut Store, work: &mut dyn FnMut()) -> Result<f64> {
        let mut error = 0.0;
        for index in 0..self.batches.len() {
            let output = self.decode(index, inputs)?;
            error += squared_distance(&output, &outputs.get(index)?)?;
            outputs.set(index, output)?;
            work();
        }
        Ok(error)
    }

    /// ‖ŷ − y‖² over a batch.
    fn error_of(&self, index: usize, inputs: &mut Store, outputs: &mut Store) -> Result<f64> {
        squared_distance(&self.decode(index, inputs)?, &outputs.get(index)?)
    }

    fn decode(&self, index: usize, inputs: &mut Store) -> Result<Tensor> {
        decode(&self.view, self.view.layer, inputs.get(index)?, &self.batches[index])
    }

    /// The loss of a batch is its error relative to what its windows should add, so that the mean over batches is the layer's error.
    fn train(
        &self,
        params: &[Arc<Param>],
        inputs: &mut Store,
        outputs: &mut Store,
        work: &mut dyn FnMut(),
    ) -> Result<()> {
        let device = model::device_of(&self.view);
        let mut optimizer = self.how.optimizer(&device, params)?;
        let schedule = LinearSchedule::new(self.how.lr, self.how.steps, self.how.warmup)?;
        let mut sampler = TrainSampler::new(self.batches.len(), self.how.seed)?;
        let sequences: usize = self.batches.iter().map(TokenBatch::sequences).sum();
        for number in 0..self.how.steps {
            let index = sampler.next_batch(1)[0];
            let batch = &self.batches[index];
            let expected = self.added * batch.sequences() as f64 / sequences as f64;
            let target = outputs.get(index)?;
            let mut loss = 0.0;
            step(&self.view, self.view.layer, inputs.get(index)?, batch, |output| {
                let (gradient, distance) = gradient(output, &target, expected)?;
                loss = if expected == 0.0 { 0.0 } else { distance / expected };
                Ok(gradient)
            })?;
            let updated = update(&mut optimizer, params, schedule.lr(number))?.wait();
            let diverged = |what: String| Error::Diverged {
                step: number + 1,
                what: format!("reconstructing layer {}, {what}", self.view.layer),
            };
            match updated {
                Err(optim::Error::NonFinite { tensor, .. }) => {
                    return Err(diverged(format!("the gradient of {tensor} is the first that is not finite")));
                }
                Ok(_) if !loss.is_finite() => return Err(diverged(format!("the error is {loss}"))),
                other => other?,
            };
            work();
        }
        Ok(())
    }

    /// The element type of each linear layer's weight.
    fn dtypes(&mut self) -> Result<Vec<(String, DType)>> {
        let mut all = Vec::new();
        self.view.visit(&mut |module| {
            if let Module::Linear(linear) = module {
                all.push((linear.name.clone(), linear.weight.dtype()));
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Rounds weights that trained to the element types that they had; what is too large for one becomes infinite.
    fn round(&mut self, dtypes: &[(String, DType)]) -> Result<()> {
        self.trained_weights(dtypes, &mut |weight, dtype, _| {
            if let Weight::Trainable(param) = weight {
                let mut values = param.value().download::<f32>()?;
                values.par_iter_mut().for_each(|x| *x = rounded(*x, dtype));
                param.value_mut().write(bytemuck::cast_slice(&values))?;
            }
            Ok(())
        })
    }

    /// Packs weights that trained again.
    fn freeze(&mut self, dtypes: &[(String, DType)]) -> Result<()> {
        let (pruning, allocation) = (self.pruning, self.allocation);
        self.trained_weights(dtypes, &mut |weight, dtype, name| {
            let pattern = allocation.pruning(pruning, name).pattern;
            if let Weight::Trainable(param) = weight {
                *weight = Weight::Frozen(frozen(param, dtype, pattern)?);
            }
            Ok(())
        })
    }

    fn trained_weights(
        &mut self,
        dtypes: &[(String, DType)],
        edit: &mut dyn FnMut(&mut Weight, DType, &str) -> Result<()>,
    ) -> Result<()> {
        self.view.visit(&mut |module| match module {
            Module::Linear(linear) => {
                let linear = between_steps(linear);
                let dtype =
                    dtypes.iter().find(|(name, _)| *name == linear.name).map_or(DType::F32, |(_, dtype)| *dtype);
                edit(&mut linear.weight, dtype, &linear.name)
            }
            _ => Ok(()),
        })
    }
}

/// True where a parameter is not what it was at the start.
fn has_moved(params: &[Arc<Param>], start: &[Vec<f32>]) -> Result<bool> {
    for (param, start) in params.iter().zip(start) {
        if param.value().read::<f32>()?[..] != start[..] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A parameter with its mask as a frozen weight.
fn frozen(param: &Param, dtype: DType, pattern: Pattern) -> Result<FrozenWeight> {
    let (rows, cols) = (param.shape()[0], param.shape()[1]);
    let values = param.value().download::<f32>()?;
    let device = param.value().device().clone();
    let entries = narrowed(&values, &device, dtype)?;
    let mask = param.mask();
    let Some(mask) = mask.as_ref() else {
        return Ok(FrozenWeight::dense(entries.duplicate(Category::Weights)?, rows, cols)?);
    };
    // What training made zero is none of the entries either: the mask is what a file's zeros tell.
    let mut words = mask.read::<u64>()?.into_owned();
    for (at, _) in values.iter().enumerate().filter(|(_, x)| **x == 0.0) {
        words[at / 64] &= !(1 << (at % 64));
    }
    let kept = words.iter().map(|word| word.count_ones() as usize).sum();
    let mask = device.upload(Category::Masks, &words)?;
    packed(&device, &entries, (rows, cols), &mask, kept, pattern)
}

fn decode(model: &dyn Model, layer: usize, input: Tensor, batch: &TokenBatch) -> Result<Tensor> {
    let mut tape = Tape::inference(&model::device_of(model));
    Ok(model.decode(&mut tape, layer, Var::constant(input), batch)?.into_tensor())
}

/// Forward and backward of one layer, from the gradient that `gradient` makes of its output.
fn step(
    model: &dyn Model,
    layer: usize,
    input: Tensor,
    batch: &TokenBatch,
    gradient: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let mut tape = Tape::training(&model::device_of(model), 0);
    let output = model.decode(&mut tape, layer, Var::constant(input), batch)?;
    let gradient = gradient(output.tensor())?;
    tape.backward(output, gradient).map(drop)
}

/// Entries that one thread sums.
const CHUNK: usize = 1 << 14;

/// ‖a − b‖², in f64 and in an order that the size decides.
fn squared_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (widened(a.buffer())?, widened(b.buffer())?);
    Ok(squares(&a, &b))
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    let chunks = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    let sum = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let sums: Vec<f64> = chunks.map(sum).collect();
    sums.iter().sum()
}

/// 2(ŷ − y)/`expected`, the gradient of ‖ŷ − y‖²/`expected`, and ‖ŷ − y‖². The host computes it, for a layer's output is small beside
/// what made it.
fn gradient(output: &Tensor, target: &Tensor, expected: f64) -> Result<(Tensor, f64)> {
    let (got, want) = (widened(output.buffer())?, widened(target.buffer())?);
    let scale = if expected == 0.0 { 0.0 } else { 2.0 / expected };
    let values: Vec<f32> =
        got.par_iter().zip(&want).map(|(got, want)| ((f64::from(*got) - f64::from(*want)) * scale) as f32).collect();
    let buffer = output.buffer();
    let values = narrowed(&values, buffer.device(), buffer.dtype())?.duplicate(Category::Activations)?;
    Ok((Tensor::new(values, output.rows(), output.cols()), squares(&got, &want)))
}
