//! AdamW with the gradients clipped together.
//!
//! A step is three operations that follow each other on the device: the norm of all gradients, the factor that clips them,
//! the update, which reads both where they are. The host hears of the norm when it asks, and so it need not wait before it
//! puts the next work on its way.

use std::sync::Arc;

use kernels::ops::adamw::{self as op, Slot, Step};
use kernels::ops::grad_norm::{GradNorm, Gradient, grad_norm};
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
        let norm = self.norm.read()?;
        match norm.first_non_finite {
            None => Ok(StepReport { grad_norm: norm.norm }),
            Some(at) => Err(Error::NonFinite { step: self.number, tensor: self.names[at].clone() }),
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The L2 norm of all gradients together, masks applied, before clipping.
    pub grad_norm: f64,
}

/// The optimizer of a fixed list of tensors: two moments each.
#[derive(Debug)]
pub struct AdamW {
    device: Device,
    config: AdamWConfig,
    names: Arc<[String]>,
    moments: Vec<(Buffer, Buffer)>,
    steps: usize,
}

impl AdamW {
    /// An optimizer with zero moments for tensors of these names and lengths.
    ///
    /// # Errors
    /// No memory.
    pub fn new(device: &Device, tensors: &[(String, usize)], config: AdamWConfig) -> Result<AdamW> {
        let zeros = |len| device.zeros(Category::Optimizer, DType::F32, len);
        let moments: Result<Vec<_>> = tensors.iter().map(|(_, len)| Ok((zeros(*len)?, zeros(*len)?))).collect();
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        Ok(AdamW { device: device.clone(), config, names, moments: moments?, steps: 0 })
    }

    /// One step at learning rate `lr`: masks the gradients, clips them together (as torch's `clip_grad_norm_`: by
    /// clip/(norm + 1e-6) where that is below 1), and updates every tensor. `tensors` are in the order of creation. A
    /// gradient that is not finite is told by [`PendingStep::wait`].
    ///
    /// # Errors
    /// [`Error::TensorCount`], [`Error::TensorLength`], or a mask or an element type that does not fit; no value and no
    /// moment has changed then.
    pub fn step(&mut self, tensors: &mut [ParamStep<'_>], lr: f64) -> Result<PendingStep> {
        self.check(tensors)?;
        let mut slots: Vec<Slot<'_>> = tensors
            .iter_mut()
            .zip(&mut self.moments)
            .map(|(ParamStep { value, grad, mask }, (m, v))| Slot {
                value,
                grad: Gradient { values: grad, mask: *mask },
                m,
                v,
            })
            .collect();
        let gradients: Vec<Gradient<'_>> = slots.iter().map(|slot| slot.grad).collect();
        let norm = grad_norm(&self.device, &gradients, self.config.clip)?;
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let number = self.steps + 1;
        op::step(&self.device, &mut slots, Step { lr, beta1, beta2, eps, weight_decay, step: number }, &norm)?;
        self.steps = number;
        Ok(PendingStep { norm, names: self.names.clone(), number })
    }

    /// Each tensor's name and its two moments, f32: with the number of steps all that an optimizer is.
    pub fn moments(&self) -> impl Iterator<Item = (&str, &Buffer, &Buffer)> {
        self.names.iter().zip(&self.moments).map(|(name, (m, v))| (name.as_str(), m, v))
    }

    /// Goes on from where an optimizer of the same tensors stood after `steps` steps; `bytes` gives the moments of a tensor
    /// of this name and number of elements.
    ///
    /// # Errors
    /// Those of `bytes`, and the GPU's; the moments are of no use then.
    ///
    /// # Panics
    /// If the bytes are not so many f32.
    pub fn restore<'a, E: From<kernels::Error>>(
        &mut self,
        steps: usize,
        bytes: impl Fn(&str, usize) -> std::result::Result<[&'a [u8]; 2], E>,
    ) -> std::result::Result<(), E> {
        for (name, (m, v)) in self.names.iter().zip(&mut self.moments) {
            let [m_bytes, v_bytes] = bytes(name, m.len())?;
            m.write(m_bytes)?;
            v.write(v_bytes)?;
        }
        self.steps = steps;
        Ok(())
    }

    fn check(&self, tensors: &[ParamStep<'_>]) -> Result<()> {
        if tensors.len() != self.names.len() {
            return Err(Error::TensorCount { expected: self.names.len(), got: tensors.len() });
        }
        for ((tensor, name), (m, _)) in tensors.iter().zip(self.names.iter()).zip(&self.moments) {
            for (what, got) in [("value", tensor.value.len()), ("gradient", tensor.grad.len())] {
                if got != m.len() {
                    return Err(Error::TensorLength { tensor: name.clone(), what, expected: m.len(), got });
                }
            }
        }
        Ok(())
    }
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
}
