//! What a run's state is: what training changes, and nothing that the base model, the text and the flags give again.
//!
//! A checkpoint holds the trained parameters (`value.NAME`, and `mask.NAME` where one has a mask), the optimizer's two moments
//! of each (`m.NAME`, `v.NAME`), the steps so far (`steps`), and a [`RunState`]. Everything random is drawn from streams that
//! seed and position name, so positions are all that is kept of it. Frozen weights are pruned from the base model again; what their pruning
//! depends on of earlier cycles is kept for that (`after.CYCLE.NAME`): adapters that merged into them, and for calibrated criteria all that
//! trained, since inputs depend on it.

use std::borrow::Cow;
use std::path::PathBuf;

use kernels::{Buffer, Category, DType};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{StepRecord, Trainer};
use crate::checkpoint::{self, NewTensor, RunCheckpoint, RunFolder};
use crate::data::SamplerPosition;
use crate::error::{Error, Result};
use crate::tensor::Param;

/// Where a run stands, and which run it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// The version of the program.
    pub version: String,
    /// The device's name.
    pub device: String,
    /// The cycle of pruning and retraining, from 1.
    pub cycle: usize,
    /// Steps of the cycle that are done: the position in the schedule, and the optimizer's count.
    pub step: usize,
    /// The next training window.
    pub sampler: SamplerPosition,
    /// All that decides about the run's numbers: a run goes on only under the same.
    pub configuration: Map<String, Value>,
    /// What the program measured so far.
    pub measured: Value,
}

impl RunState {
    /// The state that a checkpoint holds.
    ///
    /// # Errors
    /// [`checkpoint::Error::Run`] where it holds none.
    pub fn read(checkpoint: &RunCheckpoint) -> Result<RunState> {
        RunState::deserialize(checkpoint.run())
            .map_err(|error| bad(checkpoint, format!("does not say its state: {error}")))
    }

    /// The entries of `configuration` that are not this run's: what, how it is there, and how it is in the checkpoint.
    pub fn differences(&self, configuration: &Map<String, Value>) -> Vec<(String, Value, Value)> {
        let missing = || Value::Null;
        let other = |key: &String| self.configuration.get(key).cloned().unwrap_or_else(missing);
        let gone = self.configuration.iter().filter(|(key, _)| !configuration.contains_key(*key));
        configuration
            .iter()
            .map(|(key, value)| (key.clone(), value.clone(), other(key)))
            .chain(gone.map(|(key, value)| (key.clone(), missing(), value.clone())))
            .filter(|(_, here, there)| here != there)
            .collect()
    }
}

/// Columns of `steps`: cycle, step, loss, learning rate, gradient norm, tokens, seconds.
const RECORD: usize = 7;

/// The steps that a checkpoint holds, each with its cycle.
///
/// # Errors
/// [`checkpoint::Error::Run`] where it holds none.
pub fn records(checkpoint: &RunCheckpoint) -> Result<Vec<(usize, StepRecord)>> {
    let rows = checkpoint.find("steps").map_or(0, |(_, shape, _)| shape.first().copied().unwrap_or(0));
    let bytes = checkpoint.bytes("steps", "F64", &[rows, RECORD])?;
    let values: Vec<f64> = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    let record = |row: &[f64; RECORD]| {
        let [cycle, step, loss, lr, grad_norm, tokens, seconds] = *row;
        (cycle as usize, StepRecord { step: step as usize, loss, lr, grad_norm, tokens: tokens as usize, seconds })
    };
    Ok(values.as_chunks().0.iter().map(record).collect())
}

fn records_tensor<'a>(records: &[(usize, StepRecord)]) -> NewTensor<'a> {
    let row = |(cycle, record): &(usize, StepRecord)| {
        let StepRecord { step, loss, lr, grad_norm, tokens, seconds } = *record;
        [*cycle as f64, step as f64, loss, lr, grad_norm, tokens as f64, seconds]
    };
    NewTensor::f64("steps", [records.len(), RECORD], records.iter().flat_map(row).collect())
}

/// A trained parameter as a cycle, now over, left it: what the next cycle's pruning depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct PastParam {
    /// The cycle, from 1.
    pub cycle: usize,
    /// The parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f32>,
}

impl PastParam {
    /// What `cycle` left of `param`.
    ///
    /// # Errors
    /// The GPU's.
    pub fn of(cycle: usize, param: &Param) -> Result<PastParam> {
        let values = param.value().download::<f32>()?;
        Ok(PastParam { cycle, name: param.name().into(), shape: param.shape().into(), values })
    }

    fn key(cycle: usize, name: &str) -> String {
        format!("after.{cycle}.{name}")
    }

    fn tensor(&self) -> NewTensor<'_> {
        NewTensor::f32(PastParam::key(self.cycle, &self.name), self.shape.clone(), &self.values)
    }

    /// Gives `param` the values that `cycle` left it.
    ///
    /// # Errors
    /// [`checkpoint::Error::Run`] for a checkpoint of other parameters; the GPU's.
    pub fn restore(checkpoint: &RunCheckpoint, cycle: usize, param: &Param) -> Result<()> {
        let bytes = checkpoint.bytes(&PastParam::key(cycle, param.name()), "F32", param.shape())?;
        Ok(param.value_mut().write(bytes)?)
    }
}

impl Trainer {
    /// Writes a checkpoint of the run as it stands between two steps; one tensor at a time is in the host's memory.
    ///
    /// # Errors
    /// [`Error::Diverged`] for a trained value that is not finite: a checkpoint of it would be of no use. What the file system
    /// or the GPU refuses.
    pub fn save(
        &self,
        folder: &RunFolder,
        state: &RunState,
        records: &[(usize, StepRecord)],
        past: &[PastParam],
    ) -> Result<PathBuf> {
        self.check_finite()?;
        let mut tensors = vec![records_tensor(records)];
        tensors.extend(past.iter().map(PastParam::tensor));
        for param in &self.params {
            let (name, shape) = (param.name(), param.shape());
            tensors
                .push(NewTensor::new(format!("value.{name}"), DType::F32, shape, || Ok(owned(&param.value())?.into())));
            if let Some(words) = param.mask().as_ref().map(Buffer::len) {
                let bytes = || Ok(param.mask().as_ref().map(owned_words).transpose()?.unwrap_or_default().into());
                tensors.push(NewTensor::new(format!("mask.{name}"), DType::U64, [words], bytes));
            }
        }
        for (name, m, v) in self.optimizer.moments() {
            for (kind, moment) in [("m", m), ("v", v)] {
                tensors.push(NewTensor::new(format!("{kind}.{name}"), DType::F32, [moment.len()], || bytes_of(moment)));
            }
        }
        let number = (state.cycle.saturating_sub(1) * self.config.steps + state.step) as u64;
        let run = serde_json::to_value(state).map_err(|error| Error::config(format!("a run's state: {error}")))?;
        Ok(folder.save(number, &run, tensors)?)
    }

    /// Goes on from a checkpoint of the same run: parameters, masks and optimizer become what they were, bit by bit.
    ///
    /// # Errors
    /// [`checkpoint::Error::Run`] for a checkpoint of other parameters; nothing has changed then. The GPU's.
    pub fn restore(&mut self, checkpoint: &RunCheckpoint, state: &RunState) -> Result<()> {
        if state.step > self.config.steps {
            return Err(bad(checkpoint, format!("is of step {}, and this run has {}", state.step, self.config.steps)));
        }
        let moments = |name: &str, len: usize| -> Result<[&[u8]; 2]> {
            let of = |kind: &str| checkpoint.bytes(&format!("{kind}.{name}"), "F32", &[len]);
            Ok([of("m")?, of("v")?])
        };
        // Everything is found before anything is changed. The step that the checkpoint ended says what has moments.
        let last = state.step.max(1);
        let mut found = Vec::with_capacity(self.params.len());
        for (index, param) in self.params.iter().enumerate() {
            let value = checkpoint.bytes(&format!("value.{}", param.name()), "F32", param.shape())?;
            if self.freezing.as_ref().is_none_or(|plan| plan.trains(index, last)) {
                moments(param.name(), param.len())?;
            }
            found.push((param, value, mask_bytes(checkpoint, param)?));
        }
        // Masks come to lie elsewhere.
        self.graphs.forget();
        for (param, value, mask) in found {
            param.value_mut().write(value)?;
            let mask = mask.map(|bytes| -> Result<Buffer> {
                let mut words = self.device.alloc(Category::Masks, DType::U64, bytes.len() / 8)?;
                words.write(bytes)?;
                Ok(words)
            });
            param.set_mask(mask.transpose()?);
        }
        self.set_trainable(last)?;
        let plan = self.freezing.as_ref();
        let own = |index| plan.map_or(state.step, |plan| plan.steps_of(index, state.step));
        self.optimizer.restore(state.step, own, moments)?;
        self.step = state.step;
        Ok(())
    }

    fn check_finite(&self) -> Result<()> {
        for param in &self.params {
            if !param.value().read::<f32>()?.iter().all(|x| x.is_finite()) {
                let what = format!("{} holds a value that is not finite, the first tensor that does", param.name());
                return Err(Error::Diverged { step: self.step, what });
            }
        }
        Ok(())
    }
}

fn mask_bytes<'a>(checkpoint: &'a RunCheckpoint, param: &Param) -> Result<Option<&'a [u8]>> {
    let name = format!("mask.{}", param.name());
    match checkpoint.find(&name) {
        None => Ok(None),
        Some(_) => Ok(Some(checkpoint.bytes(&name, "U64", &[param.len().div_ceil(64)])?)),
    }
}

fn bad(checkpoint: &RunCheckpoint, reason: String) -> Error {
    checkpoint::Error::Run { path: checkpoint.path().into(), reason }.into()
}

/// The bytes of an f32 buffer, themselves where the host can see them.
fn bytes_of(buffer: &Buffer) -> kernels::Result<Cow<'_, [u8]>> {
    Ok(match buffer.read::<f32>()? {
        Cow::Borrowed(values) => Cow::Borrowed(bytemuck::cast_slice(values)),
        Cow::Owned(values) => Cow::Owned(bytemuck::cast_slice(&values).to_vec()),
    })
}

/// The same as a copy, for what is behind a lock.
fn owned(buffer: &Buffer) -> kernels::Result<Vec<u8>> {
    Ok(bytemuck::cast_slice(&buffer.read::<f32>()?).to_vec())
}

fn owned_words(buffer: &Buffer) -> kernels::Result<Vec<u8>> {
    Ok(bytemuck::cast_slice(&buffer.read::<u64>()?).to_vec())
}
