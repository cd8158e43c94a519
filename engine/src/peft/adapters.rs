//! Adapters between a network and PEFT's adapter folders.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::Category;

use crate::checkpoint::{Adapter, AdapterConfig, NewLora, OutputFolder, TensorInfo, write_adapter};
use crate::error::{Error, Result};
use crate::model::{self, Lora, LoraForm, Model, Module};
use crate::tensor::Param;

/// Writes the network's adapters as PEFT would, into `out` or its subfolder; those that lie inside their weights under a type of their
/// own ([`LoraForm`]). `base_model` is what the adapter's
/// configuration names as its base. Returns false, and writes nothing, where there are none.
///
/// # Errors
/// What the file system refuses.
pub fn save(model: &mut dyn Model, out: &OutputFolder, subfolder: Option<&str>, base_model: &str) -> Result<bool> {
    let mut pairs: Vec<(String, Vec<f32>, Vec<f32>)> = Vec::new();
    let mut config = AdapterConfig {
        form: LoraForm::Added,
        rank: 0,
        alpha: 0.0,
        target_modules: Vec::new(),
        base_model: base_model.into(),
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
    };
    let mut add = |module: &str, lora: &Lora| -> Result<()> {
        if pairs.is_empty() {
            (config.rank, config.alpha) = (lora.rank, lora.alpha);
        }
        if lora.form != LoraForm::Added {
            config.form = lora.form;
        }
        if lora.rank != config.rank {
            config.rank_pattern.insert(module.into(), lora.rank);
        }
        if lora.alpha != config.alpha {
            config.alpha_pattern.insert(module.into(), lora.alpha);
        }
        let role = module.rsplit('.').next().unwrap_or(module).to_string();
        if !config.target_modules.contains(&role) {
            config.target_modules.push(role);
        }
        pairs.push((module.into(), lora.a.value().download()?, lora.b.value().download()?));
        Ok(())
    };
    model.visit(&mut |module| match module {
        Module::Linear(linear) => linear.lora.iter().try_for_each(|lora| add(&linear.name, lora)),
        Module::Head(head) => head.lora.iter().try_for_each(|lora| add(&head.name, lora)),
        _ => Ok(()),
    })?;
    if pairs.is_empty() {
        return Ok(false);
    }
    let modules = pairs.iter().map(|(module, a, b)| NewLora { module: module.clone(), a, b });
    write_adapter(out, subfolder, &config, modules)?;
    Ok(true)
}

/// Attaches an adapter's matrices to the network's modules, frozen.
///
/// # Errors
/// A module that the network does not have, a matrix of the wrong shape, or no memory.
pub fn attach(model: &mut dyn Model, adapter: &Adapter) -> Result<()> {
    let device = model::device_of(model);
    let mut left: Vec<&str> = adapter.modules.keys().map(String::as_str).collect();
    let mut take = |module: &str, rows: usize, cols: usize| -> Result<Option<Lora>> {
        let Some(pair) = adapter.modules.get(module) else { return Ok(None) };
        left.retain(|name| *name != module);
        let param = |part: &str, info: &TensorInfo, shape: [usize; 2]| -> Result<Arc<Param>> {
            if info.shape() != shape {
                return Err(Error::config(format!(
                    "adapter {}: lora_{part} of {module} has shape {:?}, expected {shape:?}: it belongs to another model",
                    adapter.path.display(),
                    info.shape()
                )));
            }
            let value = info.load_f32(&device, Category::Adapters)?;
            Ok(Arc::new(Param::new(format!("{module}.lora_{part}.weight"), &shape, value)))
        };
        Ok(Some(Lora {
            a: param("A", &pair.a, [pair.rank, cols])?,
            b: param("B", &pair.b, [rows, pair.rank])?,
            rank: pair.rank,
            alpha: pair.alpha,
            form: pair.form,
        }))
    };
    model.visit(&mut |module| {
        match module {
            Module::Linear(linear) => {
                let linear = model::between_steps(linear);
                if let Some(lora) = take(&linear.name, linear.weight.rows(), linear.weight.cols())? {
                    linear.lora = Some(lora);
                }
            }
            Module::Head(head) => {
                if let Some(lora) = take(&head.name, head.weight.rows(), head.weight.cols())? {
                    head.lora = Some(lora);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    match left.first() {
        None => Ok(()),
        Some(module) => Err(Error::config(format!(
            "adapter {}: the model has no module {module}: it belongs to another model",
            adapter.path.display()
        ))),
    }
}
