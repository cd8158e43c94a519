//! One layer's reconstruction: training, what is made of it, and whether it stays.

use std::cmp::Ordering;
use std::sync::Arc;

use kernels::weight::FrozenWeight;
use kernels::{Category, DType};
use rayon::prelude::*;

use crate::calibrate::one_layer::OneLayer;
use crate::calibrate::store::Store;
use crate::data::TrainSampler;
use crate::error::{Error, Result};
use crate::model::{self, Model, Module, TokenBatch, Weight, between_steps};
use crate::optim::{self, LinearSchedule};
use crate::peft;
use crate::prune::{Allocation, Pattern, Pruning, narrowed, packed, rounded};
use crate::retrain::update;
use crate::tensor::{Param, Tensor};

use super::pass::{decode, gradient, squared_distance, step};
use super::{Reconstructed, Reconstruction};

/// One layer, pruned, to be trained.
pub(super) struct Job<'a> {
    pub view: OneLayer<'a>,
    pub pruning: &'a Pruning,
    pub allocation: &'a Allocation,
    pub how: &'a Reconstruction,
    pub batches: &'a [TokenBatch],
    /// ‖y − x‖² over all windows.
    pub added: f64,
}

impl Job<'_> {
    /// Trains the layer; `outputs` hold what it gave dense, and then what it gives.
    pub fn run(&mut self, inputs: &mut Store, outputs: &mut Store, work: &mut dyn FnMut()) -> Result<Reconstructed> {
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
