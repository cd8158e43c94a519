//! Memory and time of a run before it starts.
//!
//! A plan is not a formula: it is a training step run on the Meta device, which takes the code path of every device,
//! allocates nothing and counts everything. It can therefore not drift from what a run does.

mod gpu;
mod memory;
mod timing;

use std::sync::Arc;

use kernels::device::{KernelStats, MemoryReport};

pub use gpu::{Assumption, GPUS, Gpu, Peaks};
pub use memory::{available_memory, peak_resident_bytes};
pub use timing::{StepTiming, time};

use crate::error::Result;
use crate::evaluate;
use crate::model::{self, Model, TokenBatch};
use crate::retrain::{Config, CudaGraphs, Trainer};
use crate::tensor::Param;

/// The shape of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulate: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Decoder layers, from the first, that run again in the backward pass.
    pub recompute: usize,
}

/// What a step needs.
#[derive(Clone, Debug)]
pub struct StepPlan {
    /// The high-water mark over a step in the steady state.
    pub peak: MemoryReport,
    /// The kernels of one step, with their costs (and, on a real device, their times).
    pub kernels: Vec<KernelStats>,
}

/// Runs two steps of training on the device the model lives on, and reports memory and kernels of the second: the first
/// makes the optimizer's state. On a real device this changes the parameters.
///
/// # Errors
/// As [`Trainer::step`].
pub fn measure(model: &mut dyn Model, params: Vec<Arc<Param>>, shape: StepShape) -> Result<StepPlan> {
    let device = model::device_of(model);
    let (mut trainer, micro_batches) = prepare(model, params, shape)?;
    trainer.step(model, &micro_batches)?;
    device.memory().reset_peak();
    device.start_profile();
    trainer.step(model, &micro_batches)?;
    Ok(StepPlan { peak: device.memory().peak(), kernels: device.take_profile() })
}

/// The high-water mark of steps that are one CUDA graph, on a GPU or on Meta in its place: the same buffers, and what their places
/// in the graph's memory take beyond them. Three steps are run: one plain, one that is captured, and one that is only launched.
///
/// # Errors
/// As [`Trainer::step`], and what cannot be captured.
pub fn measure_graph(model: &mut dyn Model, params: Vec<Arc<Param>>, shape: StepShape) -> Result<MemoryReport> {
    let device = model::device_of(model);
    let (mut trainer, micro_batches) = prepare(model, params, shape)?;
    trainer.use_cuda_graphs(CudaGraphs::On);
    trainer.step(model, &micro_batches)?;
    trainer.step(model, &micro_batches)?;
    device.memory().reset_peak();
    trainer.step(model, &micro_batches)?;
    Ok(device.memory().peak())
}

/// A trainer, and micro-batches of one step.
fn prepare(model: &dyn Model, params: Vec<Arc<Param>>, shape: StepShape) -> Result<(Trainer, Vec<TokenBatch>)> {
    let config = Config {
        steps: 3,
        batch: shape.batch,
        accumulate: shape.accumulate,
        lr: 0.0,
        warmup: 0.0,
        clip: Some(1.0),
        weight_decay: 0.0,
        recompute: shape.recompute,
    };
    let batch = TokenBatch::new(vec![0; shape.batch * shape.seq_len], shape.seq_len);
    Ok((Trainer::new(model, params, config)?, vec![batch; shape.accumulate]))
}

/// The high-water mark of evaluating windows of `seq_len` tokens, `batch` at a time.
///
/// # Errors
/// As [`evaluate::perplexity`].
pub fn evaluation(model: &dyn Model, batch: usize, seq_len: usize) -> Result<MemoryReport> {
    let device = model::device_of(model);
    device.memory().reset_peak();
    evaluate::perplexity(model, &vec![0; batch * seq_len], seq_len, batch, None, &mut |_, _| {})?;
    Ok(device.memory().peak())
}
