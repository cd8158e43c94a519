//! A model's parameters as they were, so that several runs can start from one pruned model.

use super::{Model, Module, Weight, between_steps, params};
use crate::error::Result;

/// The values of a model's parameters: biases and norms. Its frozen weights stay as they are whatever trains beside them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    values: Vec<(String, Vec<f32>)>,
}

impl Snapshot {
    /// Of a model without adapters whose weights are frozen; none of another.
    ///
    /// # Errors
    /// The GPU's.
    pub fn of(model: &mut dyn Model) -> Result<Option<Snapshot>> {
        if !is_frozen(model)? {
            return Ok(None);
        }
        let value = |param: &std::sync::Arc<crate::tensor::Param>| -> Result<(String, Vec<f32>)> {
            Ok((param.name().to_string(), param.value().download::<f32>()?))
        };
        Ok(Some(Snapshot { values: params(model).iter().map(value).collect::<Result<_>>()? }))
    }

    /// Makes the model what it was: adapters go, parameters get their old values. False where that cannot be, because weights
    /// have trained themselves; the model is then as it was given.
    ///
    /// # Errors
    /// The GPU's.
    pub fn restore(&self, model: &mut dyn Model) -> Result<bool> {
        if !is_frozen(model)? {
            return Ok(false);
        }
        model.visit(&mut |module| {
            match module {
                Module::Linear(linear) => between_steps(linear).lora = None,
                Module::Head(head) => head.lora = None,
                Module::Norm(_) | Module::Embedding(_) => {}
            }
            Ok(())
        })?;
        let params = params(model);
        let same = params.len() == self.values.len()
            && params
                .iter()
                .zip(&self.values)
                .all(|(param, (name, value))| param.name() == name && param.len() == value.len());
        if !same {
            return Ok(false);
        }
        for (param, (_, value)) in params.iter().zip(&self.values) {
            param.value_mut().write(bytemuck::cast_slice(value))?;
            param.clear_grad();
        }
        Ok(true)
    }
}

fn is_frozen(model: &mut dyn Model) -> Result<bool> {
    let mut frozen = true;
    model.visit(&mut |module| {
        frozen &= match module {
            Module::Linear(linear) => !matches!(linear.weight, Weight::Trainable(_)),
            Module::Embedding(embedding) => !matches!(*embedding.weight, Weight::Trainable(_)),
            Module::Head(head) => !matches!(*head.weight, Weight::Trainable(_)),
            Module::Norm(_) => true,
        };
        Ok(())
    })?;
    Ok(frozen)
}
