//! AdamW with the gradients clipped together.
//!
//! A step is three operations that follow each other on the device: the norm of all gradients, the factor that clips them,
//! the update, which reads both where they are. The host hears of the norm when it asks, and so it need not wait before it
//! puts the next work on its way.

use std::sync::Arc;

use kernels::device::{Graph, Kept};
use kernels::ops::adamw::{self as op, Slot, Step};
use kernels::ops::grad_norm::{GradNorm, Gradient, Reading, grad_norm};
use kernels::{Buffer, Category, DType, Device};

use super::{Error, Result};

/// The numbers of AdamW; the defaults are torch's, without decay, clipped at 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ, decoupled.
    pub weight_decay: f64,
    /// The largest L2 norm of all gradients together.
    pub clip: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> AdamWConfig {
        AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: Some(1.0) }
    }
}

/// One tensor of a step.
#[derive(Debug)]
pub struct ParamStep<'a> {
    /// The parameter, f32.
    pub value: &'a mut Buffer,
    /// Its gradient, which the step uses up.
    pub grad: Buffer,
    /// Entries that stay zero: a bitmap of those that are kept.
    pub mask: Option<&'a Buffer>,
}

/// A step on its way.
#[derive(Debug)]
pub struct PendingStep {
    norm: GradNorm,
    names: Arc<[String]>,
    number: usize,
}

impl PendingStep {
    /// Waits for what it did.
    ///
    /// # Errors
    /// [`Error::NonFinite`]: no value and no moment has changed then, though the step counts; or the GPU's.
    pub fn wait(self) -> Result<StepReport> {
        report(self.norm.read()?, &self.names, self.number)
    }

    /// Has the graph that is captured leave what the step does for the host.
    ///
    /// # Errors
    /// The GPU's, and where nothing is captured.
    pub(crate) fn keep(&self) -> Result<KeptStep> {
        Ok(KeptStep { norm: self.norm.keep()?, names: self.names.clone() })
    }
}

/// What a captured step leaves each time that it is launched.
#[derive(Clone, Debug)]
pub(crate) struct KeptStep {
    norm: Kept,
    names: Arc<[String]>,
}

impl KeptStep {
    /// Waits for what step `number` did; as [`PendingStep::wait`].
    pub fn wait(&self, graph: &mut Graph, device: &Device, number: usize) -> Result<StepReport> {
        report(Reading::kept(graph, self.norm, device)?, &self.names, number)
    }
}

fn report(norm: Reading, names: &[String], step: usize) -> Result<StepReport> {
    match norm.first_non_finite {
        None => Ok(StepReport { grad_norm: norm.norm }),
        Some(at) => Err(Error::NonFinite { step, tensor: names[at].clone() }),
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The L2 norm of all gradients together, masks applied, before clipping.
    pub grad_norm: f64,
}

/// The optimizer of a fixed list of tensors: two moments for each that is active, which all are at first.
#[derive(Debug)]
pub struct AdamW {
    device: Device,
    config: AdamWConfig,
    names: Arc<[String]>,
    lens: Vec<usize>,
    states: Vec<Option<State>>,
    /// Steps in all.
    steps: usize,
}

/// What a tensor that is active has beside its value.
#[derive(Debug)]
struct State {
    m: Buffer,
    v: Buffer,
    /// Its own steps, which its moments' correction counts.
    steps: usize,
}

impl State {
    fn fresh(device: &Device, len: usize) -> Result<State> {
        let zeros = || device.zeros(Category::Optimizer, DType::F32, len);
        Ok(State { m: zeros()?, v: zeros()?, steps: 0 })
    }
}

impl AdamW {
    /// An optimizer with zero moments for tensors of these names and lengths.
    ///
    /// # Errors
    /// No memory.
    pub fn new(device: &Device, tensors: &[(String, usize)], config: AdamWConfig) -> Result<AdamW> {
        let mut optimizer = AdamW::idle(device, tensors, config);
        optimizer.set_active(|_| true)?;
        Ok(optimizer)
    }

    /// The same with no tensor active yet: [`set_active`](Self::set_active) says which are.
    pub fn idle(device: &Device, tensors: &[(String, usize)], config: AdamWConfig) -> AdamW {
        let (names, lens): (Vec<String>, Vec<usize>) = tensors.iter().cloned().unzip();
        let states = lens.iter().map(|_| None).collect();
        AdamW { device: device.clone(), config, names: names.into(), lens, states, steps: 0 }
    }

    /// From now on steps are for the tensors alone that `active` names by their place, in order. One that is no
    /// longer active loses its moments; one that becomes it starts with none and counts its own steps, as a parameter does in torch
    /// that has had no gradient so far.
    ///
    /// # Errors
    /// No memory.
    pub fn set_active(&mut self, active: impl Fn(usize) -> bool) -> Result<()> {
        // First what frees memory.
        for (at, state) in self.states.iter_mut().enumerate() {
            if !active(at) {
                *state = None;
            }
        }
        for (at, state) in self.states.iter_mut().enumerate() {
            if state.is_none() && active(at) {
                *state = Some(State::fresh(&self.device, self.lens[at])?);
            }
        }
        Ok(())
    }

    /// One step at learning rate `lr`: masks the gradients, clips them together (as torch's `clip_grad_norm_`: by
    /// clip/(norm + 1e-6) where that is below 1), and updates every tensor. `tensors` are the active ones in the order of creation. A
    /// gradient that is not finite is told by [`PendingStep::wait`].
    ///
    /// # Errors
    /// [`Error::TensorCount`], [`Error::TensorLength`], or a mask or an element type that does not fit; no value and no
    /// moment has changed then.
    pub fn step(&mut self, tensors: &mut [ParamStep<'_>], lr: f64) -> Result<PendingStep> {
        self.check(tensors)?;
        let names = match self.states.iter().all(Option::is_some) {
            true => self.names.clone(),
            false => self.active().map(|(name, _)| name.to_string()).collect(),
        };
        let mut counts = Vec::with_capacity(tensors.len());
        let mut slots: Vec<Slot<'_>> = tensors
            .iter_mut()
            .zip(self.states.iter_mut().flatten())
            .map(|(ParamStep { value, grad, mask }, State { m, v, steps })| {
                counts.push(steps);
                Slot { value, grad: Gradient { values: grad, mask: *mask }, m, v }
            })
            .collect();
        let gradients: Vec<Gradient<'_>> = slots.iter().map(|slot| slot.grad).collect();
        let norm = grad_norm(&self.device, &gradients, self.config.clip)?;
        // Tensors that have had as many steps go together: all, where all have been active from the start.
        let mut rest = slots.as_mut_slice();
        for alike in counts.chunk_by(|a, b| a == b) {
            let (slots, others) = std::mem::take(&mut rest).split_at_mut(alike.len());
            op::step(&self.device, slots, numbers(self.config, lr, *alike[0] + 1), &norm)?;
            rest = others;
        }
        counts.into_iter().for_each(|steps| *steps += 1);
        self.steps += 1;
        Ok(PendingStep { norm, names, number: self.steps })
    }

    /// Steps in all.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Counts a step at learning rate `lr` that a graph takes: the numbers of each of its launches, in order.
    pub(crate) fn count_step(&mut self, lr: f64) -> Vec<[f32; 8]> {
        let mut counts: Vec<&mut usize> = self.states.iter_mut().flatten().map(|state| &mut state.steps).collect();
        let of = |alike: &[&mut usize]| op::factors(&numbers(self.config, lr, *alike[0] + 1));
        let factors = counts.chunk_by(|a, b| a == b).map(of).collect();
        counts.iter_mut().for_each(|steps| **steps += 1);
        self.steps += 1;
        factors
    }

    /// Takes the count of the last step back, which was captured and not taken.
    pub(crate) fn uncount_step(&mut self) {
        self.states.iter_mut().flatten().for_each(|state| state.steps -= 1);
        self.steps -= 1;
    }

    /// Each active tensor's name and its two moments, f32: with the numbers of steps all that an optimizer is.
    pub fn moments(&self) -> impl Iterator<Item = (&str, &Buffer, &Buffer)> {
        self.active().map(|(name, state)| (name, &state.m, &state.v))
    }

    fn active(&self) -> impl Iterator<Item = (&str, &State)> {
        let named = self.names.iter().zip(&self.states);
        named.filter_map(|(name, state)| state.as_ref().map(|state| (name.as_str(), state)))
    }

    /// Goes on from where an optimizer of the same tensors, as many of them active, stood after `steps` steps; `own` gives those of
    /// the tensor at a place, and `bytes` the moments of a tensor of this name and number of elements.
    ///
    /// # Errors
    /// Those of `bytes`, and the GPU's; the moments are of no use then.
    ///
    /// # Panics
    /// If the bytes are not so many f32.
    pub fn restore<'a, E: From<kernels::Error>>(
        &mut self,
        steps: usize,
        own: impl Fn(usize) -> usize,
        bytes: impl Fn(&str, usize) -> std::result::Result<[&'a [u8]; 2], E>,
    ) -> std::result::Result<(), E> {
        for (at, (name, state)) in self.names.iter().zip(&mut self.states).enumerate() {
            let Some(State { m, v, steps }) = state else { continue };
            let [m_bytes, v_bytes] = bytes(name, m.len())?;
            m.write(m_bytes)?;
            v.write(v_bytes)?;
            *steps = own(at);
        }
        self.steps = steps;
        Ok(())
    }

    fn check(&self, tensors: &[ParamStep<'_>]) -> Result<()> {
        let expected = self.active().count();
        if tensors.len() != expected {
            return Err(Error::TensorCount { expected, got: tensors.len() });
        }
        for (tensor, (name, State { m, .. })) in tensors.iter().zip(self.active()) {
            for (what, got) in [("value", tensor.value.len()), ("gradient", tensor.grad.len())] {
                if got != m.len() {
                    return Err(Error::TensorLength { tensor: name.to_string(), what, expected: m.len(), got });
                }
            }
        }
        Ok(())
    }
}

/// The numbers of step `step`, from 1.
fn numbers(config: AdamWConfig, lr: f64, step: usize) -> Step {
    let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = config;
    Step { lr, beta1, beta2, eps, weight_decay, step }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(device: &Device, values: &[f32]) -> Buffer {
        device.upload(Category::Gradients, values).unwrap()
    }

    #[test]
    fn gradients_are_clipped_together() {
        let device = Device::cpu();
        let sizes = [("a".to_string(), 1), ("b".to_string(), 1)];
        let run = |clip| {
            let mut values = [upload(&device, &[0.0]), upload(&device, &[0.0])];
            let config = AdamWConfig { clip, eps: 1.0, ..AdamWConfig::default() };
            let mut optimizer = AdamW::new(&device, &sizes, config).unwrap();
            let [a, b] = &mut values;
            let mut steps = [
                ParamStep { value: a, grad: upload(&device, &[3.0]), mask: None },
                ParamStep { value: b, grad: upload(&device, &[4.0]), mask: None },
            ];
            let report = optimizer.step(&mut steps, 1.0).unwrap().wait().unwrap();
            assert_eq!(report.grad_norm, 5.0);
            values.map(|value| value.f32()[0])
        };
        // With ε = 1 the first step is −g/(|g| + 1).
        let close = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-6, "{got} {want}");
        let [a, b] = run(None);
        close(a, -3.0 / 4.0);
        close(b, -4.0 / 5.0);
        let [a, b] = run(Some(1.0));
        close(a, -0.6 / 1.6);
        close(b, -0.8 / 1.8);
    }

    #[test]
    fn a_gradient_that_is_not_finite_names_its_tensor_and_changes_nothing() {
        let device = Device::cpu();
        let mut value = upload(&device, &[1.0]);
        let mut optimizer = AdamW::new(&device, &[("layer.bias".into(), 1)], AdamWConfig::default()).unwrap();
        let grad = upload(&device, &[f32::NAN]);
        let step = optimizer.step(&mut [ParamStep { value: &mut value, grad, mask: None }], 1.0).unwrap();
        let error = step.wait().unwrap_err();
        assert!(error.to_string().starts_with("step 1: the gradient of layer.bias is not finite"), "{error}");
        assert_eq!(value.f32(), [1.0]);
    }

    #[test]
    fn tensors_that_are_not_those_of_creation_are_refused() {
        let device = Device::cpu();
        let sizes = [("a".to_string(), 2), ("b".to_string(), 1)];
        let mut optimizer = AdamW::new(&device, &sizes, AdamWConfig::default()).unwrap();
        let (mut a, mut b) = (upload(&device, &[1.0, 2.0]), upload(&device, &[3.0]));
        let short = ParamStep { value: &mut a, grad: upload(&device, &[1.0, 1.0]), mask: None };
        let error = optimizer.step(&mut [short], 1.0).unwrap_err().to_string();
        assert!(error.starts_with("the optimizer was made for 2 tensors and got 1"), "{error}");
        let mut steps = [
            ParamStep { value: &mut a, grad: upload(&device, &[1.0, 1.0]), mask: None },
            ParamStep { value: &mut b, grad: upload(&device, &[1.0, 1.0]), mask: None },
        ];
        let error = optimizer.step(&mut steps, 1.0).unwrap_err().to_string();
        assert_eq!(error, "b: the optimizer was made for 1 elements, and its gradient has 2");
        assert_eq!((a.f32(), b.f32()), (&[1.0, 2.0][..], &[3.0][..]));
    }

    #[test]
    fn a_masked_entry_stays_zero_and_out_of_the_norm() {
        let device = Device::cpu();
        let mask = device.upload(Category::Masks, &[0b01u64]).unwrap();
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(&device, &[("w".into(), 2)], config).unwrap();
        let mut value = upload(&device, &[1.0, 0.0]);
        for _ in 0..5 {
            let grad = upload(&device, &[0.5, f32::NAN]);
            let step = ParamStep { value: &mut value, grad, mask: Some(&mask) };
            assert_eq!(optimizer.step(&mut [step], 0.01).unwrap().wait().unwrap().grad_norm, 0.5);
        }
        assert!(value.f32()[0] < 1.0);
        assert_eq!(value.f32()[1].to_bits(), 0);
    }

    /// A tensor that joins later moves as one that starts then, and one that drops out does not move.
    #[test]
    fn tensors_join_and_drop_out_with_steps_of_their_own() {
        let device = Device::cpu();
        let sizes = [("a".to_string(), 1), ("b".to_string(), 1), ("c".to_string(), 1)];
        let config = AdamWConfig { clip: None, ..AdamWConfig::default() };
        let grads = [0.3, -0.7, 0.2, 0.9, -0.1];
        // One alone, from step `first` to `last`.
        let alone = |first: usize, last: usize| {
            let mut value = upload(&device, &[1.0]);
            let mut optimizer = AdamW::new(&device, &sizes[..1], config).unwrap();
            for grad in &grads[first..=last] {
                let grad = upload(&device, &[*grad]);
                optimizer.step(&mut [ParamStep { value: &mut value, grad, mask: None }], 0.01).unwrap().wait().unwrap();
            }
            value.f32()[0]
        };
        let spans = [(0, 4), (2, 4), (0, 1)];
        let mut values = [1.0f32; 3].map(|x| upload(&device, &[x]));
        let without = device.memory().in_use();
        let mut optimizer = AdamW::new(&device, &sizes, config).unwrap();
        for (step, grad) in grads.iter().enumerate() {
            let active = |at: usize| (spans[at].0..=spans[at].1).contains(&step);
            optimizer.set_active(active).unwrap();
            // Two moments of four bytes each.
            assert_eq!(device.memory().in_use() - without, 8 * (0..3).filter(|at| active(*at)).count() as u64);
            let mut steps: Vec<_> = values
                .iter_mut()
                .enumerate()
                .filter(|(at, _)| active(*at))
                .map(|(_, value)| ParamStep { value, grad: upload(&device, &[*grad]), mask: None })
                .collect();
            optimizer.step(&mut steps, 0.01).unwrap().wait().unwrap();
        }
        assert_eq!(values.map(|value| value.f32()[0]), spans.map(|(first, last)| alone(first, last)));
    }
}
