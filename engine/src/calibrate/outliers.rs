//! Outliers among the scores of a decoder layer's weights: what OWL ([`Owl`](crate::prune::Owl)) allocates sparsity by.

use std::cell::RefCell;
use std::rc::Rc;

use rayon::prelude::*;

use super::collect::{Collector, Group};
use super::{Calibration, begin, collect};
use crate::error::{Error, Result};
use crate::model::{self, Model, Module, Weight};
use crate::prune::{Criterion, Inputs};

/// Of each decoder layer, the share of weights whose score |w|·‖x‖ is above `m` times the mean score of the layer (Yin et al. 2024,
/// arXiv 2310.05175, section 3.2): all linear layers of a decoder layer together, x from the model as it is. `progress` hears of
/// passes of a batch through a layer: the layer, those done and in all.
///
/// # Errors
/// No windows, inputs or weights that are not finite, a temporary file that cannot be written, or no memory.
pub fn layer_outliers(
    model: &mut dyn Model,
    m: f64,
    calibration: &Calibration,
    progress: &mut dyn FnMut(usize, usize, usize),
) -> Result<Vec<f64>> {
    let (batches, mut hidden, _) = begin(model, Criterion::Wanda, calibration, 1)?;
    let device = model::device_of(model);
    let layers = model.info().layers;
    let (mut done, all) = (0, layers * batches.len());
    let mut shares = Vec::with_capacity(layers);
    for layer in 0..layers {
        let collector = Rc::new(RefCell::new(Collector::new(Criterion::Wanda)));
        for (index, batch) in batches.iter().enumerate() {
            let output = collect(model, layer, hidden.get(index)?, batch, &collector)?;
            hidden.set(index, output)?;
            done += 1;
            progress(layer, done, all);
        }
        shares.push(share(model, collector.take().into_groups(), m, calibration.windows.len())?);
        device.trim();
    }
    Ok(shares)
}

/// The share of one decoder layer. Scores are made twice, for their mean and for what is above it, so that one matrix of them is
/// in memory at a time.
fn share(model: &mut dyn Model, groups: Vec<Group>, m: f64, samples: usize) -> Result<f64> {
    let mut norms = Vec::new();
    for Group { names, sums } in groups {
        let Inputs::Norms(inputs) = sums.into_inputs(samples, &format!("{}.weight", names[0]))? else {
            unreachable!("squares were summed")
        };
        norms.push((names, inputs));
    }
    let mut over = |of_row: &(dyn Fn(&[f32], &[f32]) -> f64 + Sync)| -> Result<(f64, usize)> {
        let (mut sum, mut entries) = (0.0, 0);
        model.visit(&mut |module| {
            if let Module::Linear(linear) = module
                && let Some((_, inputs)) = norms.iter().find(|(names, _)| names.contains(&linear.name))
            {
                let values = values(&linear.weight)?;
                let rows = values.par_chunks(linear.weight.cols().max(1));
                let rows: Vec<f64> = rows.map(|row| of_row(row, inputs.roots())).collect();
                let of_matrix: f64 = rows.iter().sum();
                if !of_matrix.is_finite() {
                    return Err(Error::config(format!(
                        "{}.weight: a score of it is not finite; the model is damaged",
                        linear.name
                    )));
                }
                sum += of_matrix;
                entries += values.len();
            }
            Ok(())
        })?;
        Ok((sum, entries))
    };
    let (sum, entries) = over(&|row, norms| scores(row, norms).sum())?;
    let threshold = m * sum / entries.max(1) as f64;
    let (outliers, _) = over(&|row, norms| scores(row, norms).filter(|score| *score > threshold).count() as f64)?;
    Ok(outliers / entries.max(1) as f64)
}

fn scores<'a>(row: &'a [f32], norms: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    row.iter().zip(norms).map(|(w, norm)| f64::from(w.abs() * norm))
}

/// All entries in f32, in the host's memory.
fn values(weight: &Weight) -> Result<Vec<f32>> {
    Ok(match weight {
        Weight::Frozen(weight) => weight.to_f32()?,
        Weight::Offloaded(weight) => weight.bring()?.to_f32()?,
        Weight::Trainable(param) => param.value().download()?,
    })
}
