//! Time of a step: the same training steps that a run takes, on random tokens.

use std::sync::Arc;

use kernels::device::{KernelStats, MemoryReport};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::StepShape;
use crate::error::Result;
use crate::model::{self, Model, TokenBatch};
use crate::retrain::{Config, Trainer};
use crate::tensor::Param;

/// What steps took.
#[derive(Clone, Debug)]
pub struct StepTiming {
    /// Wall seconds of each step, in order.
    pub seconds: Vec<f64>,
    /// Tokens that a step trained.
    pub tokens: usize,
    /// The accountant's high-water mark over the timed steps.
    pub peak: MemoryReport,
    /// The kernels of each step in which they were timed, in order.
    pub kernels: Vec<Vec<KernelStats>>,
}

/// Trains `model` for one step that is not timed, which makes the optimizer's state, and then for `steps` that are, on
/// random tokens below `vocab`. On a GPU the kernels are timed in as many steps of their own: the host waits for each of them
/// then, which it does not in a run.
///
/// # Errors
/// As [`Trainer::step`].
pub fn time(
    model: &mut dyn Model,
    params: Vec<Arc<Param>>,
    shape: StepShape,
    vocab: usize,
    steps: usize,
) -> Result<StepTiming> {
    let device = model::device_of(model);
    let config = Config {
        steps: 2 * steps + 1,
        batch: shape.batch,
        accumulate: shape.accumulate,
        lr: 1e-5,
        warmup: 0.0,
        clip: Some(1.0),
        weight_decay: 0.0,
        recompute: shape.recompute,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut micro_batches = || -> Vec<TokenBatch> {
        let mut tokens = || (0..shape.batch * shape.seq_len).map(|_| rng.random_range(0..vocab as u32)).collect();
        (0..shape.accumulate).map(|_| TokenBatch::new(tokens(), shape.seq_len)).collect()
    };
    let mut trainer = Trainer::new(model, params, config)?;
    trainer.step(model, &micro_batches())?;
    device.memory().reset_peak();
    let mut step = |profiled: bool| -> Result<(f64, Vec<KernelStats>)> {
        if profiled {
            device.start_profile();
        }
        let seconds = trainer.step(model, &micro_batches())?.seconds;
        Ok((seconds, device.take_profile()))
    };
    let mut run = |profiled| (0..steps).map(|_| step(profiled)).collect::<Result<(Vec<_>, Vec<_>)>>();
    let (seconds, kernels) = if device.gpu().is_some() {
        let (seconds, _) = run(false)?;
        (seconds, run(true)?.1)
    } else {
        run(true)?
    };
    Ok(StepTiming {
        seconds,
        tokens: shape.accumulate * shape.batch * shape.seq_len,
        peak: device.memory().peak(),
        kernels,
    })
}
