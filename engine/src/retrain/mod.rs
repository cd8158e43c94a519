//! The training loop: accumulate, clip, step, schedule. Pretraining and retraining are the same loop; only the set of
//! trainable parameters differs. What a run's state is, and how a checkpoint holds it, stands in `state`.

mod freezing;
mod graphs;
mod state;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use kernels::Device;
use kernels::device::Recording;
use kernels::ops::head_loss::RowLosses;

use crate::autograd::{Tape, head_loss};
use crate::data::{TrainSampler, Windows};
use crate::error::{Error, Result};
use crate::model::{self, Model, TokenBatch};
use crate::optim::{self, AdamW, AdamWConfig, LinearSchedule, ParamStep, PendingStep};
use crate::tensor::Param;
pub use freezing::{End, Freezing, FreezingPlan};
pub use graphs::CudaGraphs;
use graphs::{Graphs, Shape, Way};
pub use state::{PastParam, RunState, records};

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Optimizer steps.
    pub steps: usize,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulate: usize,
    /// The largest learning rate.
    pub lr: f64,
    /// The share of steps that the learning rate rises over.
    pub warmup: f64,
    /// The largest gradient norm over all trainable tensors together; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decoder layers, from the first, that keep only their inputs and run again in the backward pass.
    pub recompute: usize,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRecord {
    /// Its number, from 1.
    pub step: usize,
    /// The mean loss of its micro-batches, before the update.
    pub loss: f64,
    /// Its learning rate.
    pub lr: f64,
    /// The gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens it trained on, without pads.
    pub tokens: usize,
    /// Wall seconds.
    pub seconds: f64,
}

/// The state of a training run: the trainable parameters and their optimizer.
pub struct Trainer {
    device: Device,
    params: Vec<Arc<Param>>,
    optimizer: AdamW,
    schedule: LinearSchedule,
    config: Config,
    freezing: Option<FreezingPlan>,
    step: usize,
    graphs: Graphs,
}

/// A step whose work is on its way.
#[derive(Debug)]
pub struct StartedStep {
    start: Instant,
    lr: f64,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// Put into the stream piece by piece; where it is recorded, what such a step takes is known from then on.
    Plain(Box<Plain>),
    /// A graph, by its number.
    Graph(usize),
}

#[derive(Debug)]
struct Plain {
    losses: Vec<RowLosses>,
    update: PendingStep,
    recording: Option<(Shape, Recording)>,
}

impl Trainer {
    /// A run of `config` over `params`, which hold the model's trainable parameters (see
    /// [`peft::apply`](crate::peft::apply)).
    ///
    /// # Errors
    /// No memory for the optimizer's moments; a warm-up outside [0, 1].
    pub fn new(model: &dyn Model, params: Vec<Arc<Param>>, config: Config) -> Result<Trainer> {
        Trainer::with_freezing(model, params, config, None)
    }

    /// The same with layers that freeze or unfreeze as a plan, made for the same parameters and steps, says.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_freezing(
        model: &dyn Model,
        params: Vec<Arc<Param>>,
        config: Config,
        freezing: Option<FreezingPlan>,
    ) -> Result<Trainer> {
        let device = model::device_of(model);
        let sizes: Vec<(String, usize)> = params.iter().map(|param| (param.name().to_string(), param.len())).collect();
        let optimizer_config =
            AdamWConfig { weight_decay: config.weight_decay, clip: config.clip, ..AdamWConfig::default() };
        let optimizer = AdamW::idle(&device, &sizes, optimizer_config);
        let schedule = LinearSchedule::new(config.lr, config.steps, config.warmup)?;
        let graphs = Graphs::default();
        let mut trainer = Trainer { device, params, optimizer, schedule, config, freezing, step: 0, graphs };
        trainer.set_trainable(1)?;
        Ok(trainer)
    }

    /// Freezes and unfreezes parameters for step `step`, from 1; the optimizer's moments follow.
    fn set_trainable(&mut self, step: usize) -> Result<()> {
        if let Some(plan) = &self.freezing {
            plan.freeze(&self.params, step);
        }
        self.graphs.follow(&self.params);
        Ok(self.optimizer.set_active(|index| self.params[index].is_trainable())?)
    }

    /// One optimizer step over `micro_batches`, whose losses are averaged.
    ///
    /// # Errors
    /// A token outside the vocabulary, a loss or gradient that is not finite, or no memory. The parameters are then as
    /// the last step left them, but where a loss alone is not finite: its gradients were, and the step is taken.
    pub fn step(&mut self, model: &dyn Model, micro_batches: &[TokenBatch]) -> Result<StepRecord> {
        let started = self.start(model, micro_batches)?;
        self.finish(model, micro_batches, started)
    }

    /// Puts all work of a step on its way. On a GPU the host waits for none of it: that is left to [`Trainer::finish`], which comes
    /// before the next start.
    ///
    /// # Errors
    /// As [`Trainer::step`], but for what is not finite; with [`CudaGraphs::On`] also where a step cannot be captured.
    pub fn start(&mut self, model: &dyn Model, micro_batches: &[TokenBatch]) -> Result<StartedStep> {
        let start = Instant::now();
        self.set_trainable(self.step + 1)?;
        let lr = self.schedule.lr(self.step);
        let shape = Shape::of(micro_batches);
        let work = match self.graphs.way(&self.device, model, micro_batches, &shape) {
            Way::Plain => self.plain(model, micro_batches, lr, None)?,
            Way::Record => {
                let recording = self.device.record();
                self.plain(model, micro_batches, lr, Some((shape, recording)))?
            }
            Way::Capture => match self.capture(model, micro_batches, lr, shape)? {
                Some(number) => Work::Graph(number),
                None => self.plain(model, micro_batches, lr, None)?,
            },
            Way::Launch(number) => {
                self.launch(number, micro_batches, lr)?;
                Work::Graph(number)
            }
        };
        Ok(StartedStep { start, lr, work })
    }

    fn plain(
        &mut self,
        model: &dyn Model,
        micro_batches: &[TokenBatch],
        lr: f64,
        recording: Option<(Shape, Recording)>,
    ) -> Result<Work> {
        let micro_step = |batch| self.micro_step(model, batch, micro_batches.len());
        let losses: Vec<RowLosses> = micro_batches.iter().map(micro_step).collect::<Result<_>>()?;
        let update = self.update(lr)?;
        Ok(Work::Plain(Box::new(Plain { losses, update, recording })))
    }

    /// Waits for a step that [`Trainer::start`] put on its way, for the same micro-batches.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn finish(
        &mut self,
        model: &dyn Model,
        micro_batches: &[TokenBatch],
        started: StartedStep,
    ) -> Result<StepRecord> {
        let StartedStep { start, lr, work } = started;
        let (updated, sums): (_, Vec<f64>) = match work {
            Work::Plain(plain) => {
                let Plain { losses, update, recording } = *plain;
                let updated = update.wait();
                let sums = losses.iter().map(RowLosses::sum).collect::<kernels::Result<_>>()?;
                drop(losses);
                if let Some((shape, recording)) = recording {
                    self.graphs.note(shape, recording.slab_bytes());
                }
                (updated, sums)
            }
            Work::Graph(number) => self.graphs.results(number, &self.device, self.optimizer.steps())?,
        };
        let mut loss = 0.0;
        for (sum, batch) in sums.into_iter().zip(micro_batches) {
            loss += sum / batch.predictions() as f64 / micro_batches.len() as f64;
        }
        let step = self.step + 1;
        let report = match updated {
            Err(optim::Error::NonFinite { tensor, .. }) if !loss.is_finite() => {
                let what = format!(
                    "the loss is not finite, and the gradient of {tensor} is the first that is not; \
                     the parameters are as step {} left them",
                    self.step
                );
                return Err(Error::Diverged { step, what });
            }
            Ok(_) if !loss.is_finite() => {
                return Err(Error::Diverged {
                    step,
                    what: format!(
                        "the loss is {loss}, though all gradients are finite: {}'s logits are not",
                        model.head().name
                    ),
                });
            }
            other => other?,
        };
        self.step = step;
        Ok(StepRecord {
            step,
            loss,
            lr,
            grad_norm: report.grad_norm,
            tokens: micro_batches.iter().map(|batch| batch.real_tokens()).sum(),
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// Forward and backward of one micro-batch; returns its losses.
    fn micro_step(&self, model: &dyn Model, batch: &TokenBatch, micro_batches: usize) -> Result<RowLosses> {
        let mut tape = Tape::training(&self.device, self.config.recompute);
        let hidden = model.forward(&mut tape, batch)?;
        let scale = 1.0 / (batch.predictions() * micro_batches) as f32;
        let loss = head_loss(model.head(), &hidden, &batch.targets(), scale)?;
        if let Some(gradient) = loss.gradient {
            tape.backward(hidden, gradient)?;
        }
        Ok(loss.rows)
    }

    fn update(&mut self, lr: f64) -> Result<PendingStep> {
        update(&mut self.optimizer, &self.params, lr)
    }
}

/// A step of those of `params` that train, the optimizer's active ones, with the gradients that they have.
pub(crate) fn update(optimizer: &mut AdamW, params: &[Arc<Param>], lr: f64) -> Result<PendingStep> {
    let params: Vec<_> = params.iter().filter(|param| param.is_trainable()).collect();
    let grads: Vec<_> = params.iter().map(|param| param.take_grad()).collect::<Result<_>>()?;
    let mut values: Vec<_> = params.iter().map(|param| param.value_mut()).collect();
    let masks: Vec<_> = params.iter().map(|param| param.mask()).collect();
    let mut tensors: Vec<ParamStep<'_>> = values
        .iter_mut()
        .zip(grads)
        .zip(&masks)
        .map(|((value, grad), mask)| ParamStep { value, grad, mask: mask.as_ref() })
        .collect();
    Ok(optimizer.step(&mut tensors, lr)?)
}

/// What hears of each step, with the trainer and the sampler as the step left them, and says whether the run goes on.
pub type OnStep<'a> = dyn FnMut(&Trainer, &TrainSampler, StepRecord) -> Result<ControlFlow<()>> + 'a;

impl Trainer {
    /// Takes the steps that are left of `config.steps`, on the sequences that `sampler` draws.
    /// `on_step` hears of each when it is done, and ends the run there if it says so.
    ///
    /// # Errors
    /// As [`Trainer::step`], and those of `on_step`.
    pub fn run(
        &mut self,
        model: &dyn Model,
        windows: &Windows,
        sampler: &mut TrainSampler,
        on_step: &mut OnStep<'_>,
    ) -> Result<()> {
        while self.step < self.config.steps {
            let mut micro_batch = || {
                let drawn = sampler.next_batch(self.config.batch);
                TokenBatch::padded(&drawn.iter().map(|window| windows.tokens(*window)).collect::<Vec<_>>())
            };
            let micro_batches: Vec<TokenBatch> = (0..self.config.accumulate).map(|_| micro_batch()).collect();
            let record = self.step(model, &micro_batches)?;
            if on_step(self, sampler, record)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
