//! Gradual freezing and unfreezing of layers over the steps of a cycle: PERP (arXiv 2312.15230), section 3.4 and Table 3.
//!
//! The paper "aligns the proportion of layers unfrozen or frozen with the proportion of performed epochs within a phase". Read as
//! ⌊L·e/E⌋ of L layers in epoch e of E, from the input or from the output on, with norms and the classifier training always, this
//! gives ResNet-50's aggregated shares of Table 3 to the last digit (the test below). Here an epoch is a step and a layer a decoder
//! layer, with its norms and everything else in it, so that a frozen one costs no backward pass; what comes after the last layer
//! (its norm, the head) always trains.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::{Model, Module};
use crate::tensor::Param;

/// An end of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where tokens come in.
    Input,
    /// Where predictions come out.
    Output,
}

/// Which way layers are frozen or unfrozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freezing {
    /// The end that is frozen (or unfrozen) first.
    pub from: End,
    /// True where a cycle begins frozen and layers join in; false where it begins with all and they drop out.
    pub unfreeze: bool,
}

impl Freezing {
    /// The layers, of `layers`, that train in step `step` (from 1) of `steps`.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn trainable(self, step: usize, steps: usize, layers: usize) -> Range<usize> {
        assert!(0 < step && step <= steps, "step {step} of {steps}");
        // In 128 bits, so that no product is too large.
        let done = (layers as u128 * step as u128 / steps as u128) as usize;
        match (self.from, self.unfreeze) {
            (End::Input, false) => done..layers,
            (End::Output, false) => 0..layers - done,
            (End::Input, true) => 0..done,
            (End::Output, true) => layers - done..layers,
        }
    }
}

/// Which of a run's parameters train in which step.
#[derive(Clone, Debug)]
pub struct FreezingPlan {
    freezing: Freezing,
    layers: usize,
    steps: usize,
    /// Of each parameter its layer; none where it always trains.
    depths: Vec<Option<usize>>,
    /// True where nothing trains outside the layers: the last one that would be frozen, or the first that is not yet unfrozen, trains then.
    keeps_one: bool,
}

impl FreezingPlan {
    /// A plan for `params`, the trainable parameters of `model`, over cycles of `steps` steps. What comes before the first decoder
    /// layer, such as embeddings, goes with it, also where the head shares it; what comes after the last one always trains.
    ///
    /// # Errors
    /// Parameters of which none is inside a decoder layer.
    pub fn new(model: &mut dyn Model, params: &[Arc<Param>], freezing: Freezing, steps: usize) -> Result<FreezingPlan> {
        let mut depths: Vec<Option<usize>> = vec![None; params.len()];
        let mut known = vec![false; params.len()];
        let mut inside = false;
        model.visit(&mut |module| {
            let (name, own): (&str, Vec<&Param>) = match &module {
                Module::Linear(linear) => (&linear.name, linear.params().into_iter().flatten().collect()),
                Module::Norm(norm) => (&norm.name, norm.params().map(Arc::as_ref).collect()),
                Module::Embedding(embedding) => {
                    (&embedding.name, embedding.weight.param().map(Arc::as_ref).into_iter().collect())
                }
                Module::Head(head) => {
                    let lora = head.lora.iter().flat_map(|lora| [lora.a.as_ref(), lora.b.as_ref()]);
                    (&head.name, head.weight.param().map(Arc::as_ref).into_iter().chain(lora).collect())
                }
            };
            let layer = name.split('.').find_map(|part| part.parse().ok());
            inside |= layer.is_some();
            let depth = if inside { layer } else { Some(0) };
            for param in own {
                let at = params.iter().position(|other| std::ptr::eq(Arc::as_ptr(other), param));
                // A table that the head shares was met as the embedding.
                if let Some(at) = at.filter(|at| !known[*at]) {
                    (depths[at], known[at]) = (depth, true);
                }
            }
            Ok(())
        })?;
        if depths.iter().all(Option::is_none) {
            return Err(Error::config(
                "--freeze: nothing inside the decoder layers trains, so none can be frozen; choose a method that trains in them, such as perp",
            ));
        }
        let keeps_one = depths.iter().all(Option::is_some);
        Ok(FreezingPlan { freezing, layers: model.info().layers, steps, depths, keeps_one })
    }

    /// The layers that train in step `step`, from 1.
    pub fn layers(&self, step: usize) -> Range<usize> {
        let range = self.freezing.trainable(step, self.steps, self.layers);
        if !range.is_empty() || !self.keeps_one {
            return range;
        }
        // Frozen up to the far end, or unfrozen from the near one.
        let Freezing { from, unfreeze } = self.freezing;
        if (from == End::Output) == unfreeze { self.layers - 1..self.layers } else { 0..1 }
    }

    /// Whether parameter `index` trains in step `step`, from 1.
    pub fn trains(&self, index: usize, step: usize) -> bool {
        self.depths[index].is_none_or(|layer| self.layers(step).contains(&layer))
    }

    /// Freezes what does not train in step `step`, from 1, and unfreezes what does; returns that.
    pub fn freeze(&self, params: &[Arc<Param>], step: usize) -> Vec<Arc<Param>> {
        params.iter().enumerate().for_each(|(index, param)| param.set_trainable(self.trains(index, step)));
        params.iter().filter(|param| param.is_trainable()).cloned().collect()
    }

    /// In how many of the first `done` steps parameter `index` has trained.
    pub fn steps_of(&self, index: usize, done: usize) -> usize {
        (1..=done).filter(|step| self.trains(index, *step)).count()
    }

    /// The step, from 1, in which most trains: what a run must have room for.
    pub fn fullest(&self) -> usize {
        if self.freezing.unfreeze { self.steps } else { 1 }
    }

    /// Parameters that train, summed over the steps of a cycle: over as many times all parameters it is Table 3's aggregated share.
    pub fn aggregated(&self, params: &[Arc<Param>]) -> u128 {
        let mut in_layer = vec![0u128; self.layers];
        let mut always = 0;
        for (param, depth) in params.iter().zip(&self.depths) {
            *depth.map_or(&mut always, |layer| &mut in_layer[layer]) += param.len() as u128;
        }
        (1..=self.steps).map(|step| always + in_layer[self.layers(step)].iter().sum::<u128>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Freezing; 4] = [
        Freezing { from: End::Output, unfreeze: true },
        Freezing { from: End::Input, unfreeze: false },
        Freezing { from: End::Input, unfreeze: true },
        Freezing { from: End::Output, unfreeze: false },
    ];

    /// ResNet-50's layers as the paper prunes them, in order: weights of each convolution, and of each norm behind it.
    fn resnet_50() -> Vec<(usize, usize)> {
        let mut layers = vec![(3 * 64 * 49, 2 * 64)];
        let mut inputs = 64;
        for (planes, blocks) in [(64, 3), (128, 4), (256, 6), (512, 3)] {
            for block in 0..blocks {
                let outputs = 4 * planes;
                layers.push((planes * inputs, 2 * planes));
                layers.push((planes * planes * 9, 2 * planes));
                layers.push((outputs * planes, 2 * outputs));
                if block == 0 {
                    layers.push((outputs * inputs, 2 * outputs));
                }
                inputs = outputs;
            }
        }
        layers
    }

    #[test]
    fn aggregated_shares_are_those_of_the_papers_table_3() {
        let layers = resnet_50();
        // Norms and the classifier always train.
        let always = layers.iter().map(|(_, norm)| norm).sum::<usize>() + 2048 * 1000 + 1000;
        let total = always + layers.iter().map(|(conv, _)| conv).sum::<usize>();
        assert_eq!((layers.len(), total), (53, 25_557_032));
        let shares = ALL.map(|freezing| {
            let trained =
                |epoch| layers[freezing.trainable(epoch, 5, 53)].iter().map(|(conv, _)| conv).sum::<usize>() + always;
            let aggregated: usize = (1..=5).map(trained).sum();
            format!("{:.2}", 100.0 * aggregated as f64 / (5 * total) as f64)
        });
        assert_eq!(shares, ["88.83", "70.95", "37.28", "19.40"]);
    }

    #[test]
    fn layers_drop_out_or_join_in_one_way_only_and_evenly() {
        for (steps, layers) in [(1, 1), (5, 53), (1000, 12), (7, 30), (3, 1)] {
            for freezing in ALL {
                let count = |step| freezing.trainable(step, steps, layers).len();
                for step in 1..=steps {
                    let expected = layers * step / steps;
                    assert_eq!(count(step), if freezing.unfreeze { expected } else { layers - expected });
                    if step > 1 {
                        let (before, now) =
                            (freezing.trainable(step - 1, steps, layers), freezing.trainable(step, steps, layers));
                        let (small, large) = if freezing.unfreeze { (&before, &now) } else { (&now, &before) };
                        assert!(small.clone().all(|layer| large.contains(&layer)));
                    }
                }
                let (first, last) = (freezing.trainable(1, steps, layers), freezing.trainable(steps, steps, layers));
                assert_eq!(last.len(), if freezing.unfreeze { layers } else { 0 });
                if !first.is_empty() && first.len() < layers {
                    let at_output = first.end == layers;
                    assert_eq!(at_output, (freezing.from == End::Output) == freezing.unfreeze);
                }
            }
        }
    }
}
