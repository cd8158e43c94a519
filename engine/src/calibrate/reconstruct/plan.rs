//! What reconstruction takes of memory.

use std::cell::RefCell;
use std::rc::Rc;

use kernels::{Buffer, Category, DType};

use crate::autograd::Tape;
use crate::calibrate::one_layer::OneLayer;
use crate::calibrate::{Collector, collect};
use crate::error::{Error, Result};
use crate::model::{self, Model, Module, TokenBatch};
use crate::peft;
use crate::prune::{Allocation, Criterion, Pruning, prune_model};
use crate::retrain::update;
use crate::tensor::Tensor;

use super::Reconstruction;
use super::pass::{decode, step};

/// What [`reconstruct`](super::reconstruct) takes of a device, in bytes, but for hidden states, which take what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconstructionPlan {
    /// The most at once: layers are pruned one after the other, and all behind are dense until then.
    pub peak: u64,
    /// What of it is for training a layer: all that the CPU must have, where weights of other layers are pages of files, the model's or
    /// temporary ones, and read again where they had no room.
    pub training: u64,
}

/// Plans [`reconstruct`](super::reconstruct) of a dense model without values, on Meta; it is pruned then.
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
    let collector = Rc::new(RefCell::new(Collector::new(pruning.criterion)));
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
