//! Steps as CUDA graphs.
//!
//! The first step of a shape runs as ever, and what it takes of the device's memory is noted; the second is captured whole, with all
//! its micro-batches and the optimizer's update, and launched; all later ones are one launch. What differs between them goes through
//! pinned memory that the graph reads: token ids, targets and their segments, and the optimizer's numbers, in which are the learning
//! rate and the count of steps. Losses and the gradients' norm come back the same way.
//!
//! A step of another shape has a graph of its own. Where other parameters train than before, or a buffer has come to lie
//! elsewhere, all graphs are forgotten.

use std::collections::VecDeque;
use std::sync::Arc;

use kernels::device::{Feed, Graph, Kept, Slab};
use kernels::ops::embedding;
use kernels::ops::head_loss::RowLosses;
use kernels::{Backend, Device};

use super::{Trainer, update};
use crate::error::{Error, Result};
use crate::model::{Model, TokenBatch};
use crate::optim::{self, KeptStep, StepReport};
use crate::tensor::Param;

/// Whether steps on a GPU are captured as CUDA graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CudaGraphs {
    /// None is.
    #[default]
    Off,
    /// Those that can be; [`Trainer::why_no_graphs`] tells why one cannot.
    Auto,
    /// A step that cannot be is an error.
    On,
}

/// The most graphs at one time: a graph of a step takes the driver some hundred bytes a launch.
const GRAPHS: usize = 8;
/// The most shapes that are remembered: a second step of one is captured.
const SHAPES: usize = 64;

/// All that decides about the launches of a step beside what trains: of each micro-batch its sequences, their tokens with pads, and
/// its predictions, by which its losses are divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape(Vec<[usize; 3]>);

impl Shape {
    pub fn of(micro_batches: &[TokenBatch]) -> Shape {
        let of = |batch: &TokenBatch| [batch.sequences(), batch.seq_len(), batch.predictions()];
        Shape(micro_batches.iter().map(of).collect())
    }
}

/// How a step runs.
pub(super) enum Way {
    Plain,
    /// Plain, and what it takes is noted.
    Record,
    /// As a graph that is made of it.
    Capture,
    /// As the graph of this number.
    Launch(usize),
}

/// What a trainer has of them.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    wanted: CudaGraphs,
    captured: Vec<Captured>,
    /// Where all their buffers lie: one graph runs at a time.
    slab: Option<Arc<Slab>>,
    /// Shapes of steps that ran, with the bytes of the slab that they need.
    seen: VecDeque<(Shape, usize)>,
    /// Whether each parameter trains in them.
    trained: Vec<bool>,
    /// Why there are none any more.
    failed: Option<String>,
}

#[derive(Debug)]
struct Captured {
    shape: Shape,
    bytes: usize,
    graph: Graph,
    losses: Vec<Kept>,
    update: KeptStep,
}

impl Graphs {
    /// Drops all that was captured and noted.
    pub fn forget(&mut self) {
        self.captured.clear();
        self.slab = None;
        self.seen.clear();
    }

    /// Forgets them where other parameters train than before.
    pub fn follow(&mut self, params: &[Arc<Param>]) {
        if !params.iter().map(|param| param.is_trainable()).eq(self.trained.iter().copied()) {
            self.forget();
            self.trained = params.iter().map(|param| param.is_trainable()).collect();
        }
    }

    /// How a step of this shape runs.
    pub fn way(&mut self, device: &Device, model: &dyn Model, micro_batches: &[TokenBatch], shape: &Shape) -> Way {
        // A profile times each kernel, which a graph's launch does not show.
        if self.wanted == CudaGraphs::Off || device.backend() != Backend::Cuda || device.is_profiled() {
            return Way::Plain;
        }
        // What is wrong with a token is told by the operation that meets it.
        let vocab = model.info().vocab;
        if micro_batches.iter().any(|batch| batch.tokens().iter().any(|token| *token as usize >= vocab)) {
            return Way::Plain;
        }
        if self.slab.as_ref().is_some_and(|slab| !slab.is_empty()) {
            // Something that was computed between steps has stayed there.
            self.forget();
        }
        if let Some(number) = self.captured.iter().position(|captured| captured.shape == *shape) {
            return Way::Launch(number);
        }
        match self.seen.iter().any(|(seen, _)| seen == shape) {
            true if self.captured.len() < GRAPHS => Way::Capture,
            true => Way::Plain,
            false => Way::Record,
        }
    }

    /// A step of this shape needs a slab of so many bytes.
    pub fn note(&mut self, shape: Shape, bytes: usize) {
        if self.seen.len() == SHAPES {
            self.seen.pop_front();
        }
        self.seen.push_back((shape, bytes));
    }

    /// Waits for what graph `number` did in step `step`, and for each micro-batch's sum of losses.
    pub fn results(
        &mut self,
        number: usize,
        device: &Device,
        step: usize,
    ) -> Result<(optim::Result<StepReport>, Vec<f64>)> {
        let Captured { graph, losses, update, .. } = &mut self.captured[number];
        let updated = update.wait(graph, device, step);
        let sums = losses.iter().map(|kept| RowLosses::sum_of(graph, *kept)).collect::<kernels::Result<_>>()?;
        Ok((updated, sums))
    }

    /// The bytes that a step of this shape needs, and a slab that has as many.
    fn slab(&mut self, device: &Device, shape: &Shape) -> Result<(usize, Arc<Slab>)> {
        let needed = |(_, bytes): &(Shape, usize)| *bytes;
        let bytes = self.seen.iter().find(|(seen, _)| seen == shape).map(needed).expect("captured after it was noted");
        if let Some(slab) = self.slab.as_ref().filter(|slab| slab.bytes() >= bytes) {
            return Ok((bytes, slab.clone()));
        }
        // What was captured in a smaller one is captured again.
        for Captured { shape, bytes, .. } in std::mem::take(&mut self.captured) {
            self.note(shape, bytes);
        }
        self.slab = None;
        // The pool holds what plain steps had: the slab takes its place.
        device.trim();
        Ok((bytes, self.slab.insert(device.slab(bytes)?).clone()))
    }
}

impl Trainer {
    /// From now on steps are captured as `wanted` says.
    pub fn use_cuda_graphs(&mut self, wanted: CudaGraphs) {
        self.graphs.forget();
        self.graphs.wanted = wanted;
    }

    /// Why steps are not captured any more though [`CudaGraphs::Auto`] asked for it.
    pub fn why_no_graphs(&self) -> Option<&str> {
        self.graphs.failed.as_deref()
    }

    /// Graphs that there are now.
    pub fn cuda_graphs(&self) -> usize {
        self.graphs.captured.len()
    }

    /// Captures a step and launches it; returns the graph's number. None where it cannot be captured and need not: nothing has changed
    /// then.
    pub(super) fn capture(
        &mut self,
        model: &dyn Model,
        micro_batches: &[TokenBatch],
        lr: f64,
        shape: Shape,
    ) -> Result<Option<usize>> {
        let steps = self.optimizer.steps();
        match self.try_capture(model, micro_batches, lr, shape) {
            Ok(captured) => {
                self.graphs.seen.retain(|(seen, _)| *seen != captured.shape);
                self.graphs.captured.push(captured);
                let number = self.graphs.captured.len() - 1;
                self.graphs.captured[number].graph.launch()?;
                Ok(Some(number))
            }
            Err(error) => {
                self.params.iter().for_each(|param| param.clear_grad());
                if self.optimizer.steps() > steps {
                    self.optimizer.uncount_step();
                }
                if self.graphs.wanted == CudaGraphs::On {
                    return Err(Error::config(format!(
                        "--cuda-graphs on: {error}; use --cuda-graphs auto, which goes on without"
                    )));
                }
                self.graphs.forget();
                self.graphs.wanted = CudaGraphs::Off;
                self.graphs.failed = Some(error.to_string());
                Ok(None)
            }
        }
    }

    fn try_capture(
        &mut self,
        model: &dyn Model,
        micro_batches: &[TokenBatch],
        lr: f64,
        shape: Shape,
    ) -> Result<Captured> {
        let device = self.device.clone();
        let (bytes, slab) = self.graphs.slab(&device, &shape)?;
        let (graph, (losses, update)) = device.capture(&slab, || -> Result<_> {
            let mut losses = Vec::with_capacity(micro_batches.len());
            for (part, batch) in micro_batches.iter().enumerate() {
                device.begin_part(part);
                losses.push(self.micro_step(model, batch, micro_batches.len())?);
            }
            let update = update(&mut self.optimizer, &self.params, lr)?;
            let kept = losses.iter().map(RowLosses::keep).collect::<kernels::Result<Vec<Kept>>>()?;
            Ok((kept, update.keep()?))
        })?;
        Ok(Captured { shape, bytes, graph, losses, update })
    }

    /// Launches graph `number` for a step over `micro_batches`.
    pub(super) fn launch(&mut self, number: usize, micro_batches: &[TokenBatch], lr: f64) -> Result<()> {
        let factors = self.optimizer.count_step(lr);
        let mut factors = factors.iter();
        // Sorted once: the rows come right behind the segments.
        let mut rows = Vec::new();
        let graph = &mut self.graphs.captured[number].graph;
        graph.feed(|feed, part, to| -> Result<()> {
            let batch = &micro_batches[part];
            let tokens = batch.tokens();
            match feed {
                Feed::Fixed => {}
                Feed::Tokens => to.copy_from_slice(bytemuck::cast_slice(tokens)),
                Feed::Targets => to.copy_from_slice(bytemuck::cast_slice(&batch.targets())),
                Feed::Segments => {
                    let segments;
                    (segments, rows) = embedding::segments(tokens);
                    to.copy_from_slice(bytemuck::cast_slice(&segments));
                }
                Feed::SegmentRows => to.copy_from_slice(bytemuck::cast_slice(&rows)),
                Feed::Factors => {
                    let factors = factors.next().expect("the graph has as many updates as the optimizer");
                    to.copy_from_slice(bytemuck::cast_slice(factors));
                }
            }
            Ok(())
        })?;
        Ok(graph.launch()?)
    }
}
