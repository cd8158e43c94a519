//! How a run prunes: allocation, calibration and cycles in one place.

use engine::calibrate::{self, Calibration, Progress};
use engine::model::{Model, Spill};
use engine::prune::{self, Pattern, Pruning, imp_sparsity};
use kernels::Device;

use crate::allocation::{Allocated, Allocating};
use crate::calibration;
use crate::error::Failure;
use crate::progress::Console;
use crate::session::{self, OnLoad, Opened};
use crate::tables;

/// All that decides about what is pruned.
pub struct Pruner<'a> {
    pub console: &'a Console,
    /// What is pruned at the end of the last cycle.
    pub pruning: Pruning,
    pub allocating: &'a Allocating,
    pub calibration: Option<&'a Calibration>,
    pub cycles: usize,
    /// Where pruned weights go that find no room. Calibration knows by its own limit.
    pub spill: Option<Spill>,
}

/// A model after the first cycle's pruning.
pub struct Pruned {
    pub model: Box<dyn Model>,
    pub allocated: Allocated,
    /// Of each decoder layer, where it was calibrated.
    pub layer_errors: Vec<f64>,
}

impl Pruner<'_> {
    /// How all matrices are pruned in a cycle, from 1, or what their mean is.
    fn after(&self, cycle: usize) -> Pruning {
        let pattern = match self.pruning.pattern {
            Pattern::Unstructured { sparsity } => {
                Pattern::Unstructured { sparsity: imp_sparsity(sparsity, cycle, self.cycles) }
            }
            pattern => pattern,
        };
        Pruning { pattern, ..self.pruning }
    }

    /// Loads a model and prunes it for the first cycle: as it is loaded, where its weights alone decide.
    pub fn load(&self, device: &Device, opened: &Opened, offloaded_layers: usize) -> Result<Pruned, Failure> {
        let calibrated = self.pruning.criterion.needs_calibration();
        if let Some(allocation) = self.allocating.known().filter(|_| !calibrated) {
            let how = OnLoad {
                pruning: self.after(1),
                allocation: allocation.after(1, self.cycles),
                further: !self.allocating.is_found(),
                spill: self.spill,
            };
            let mut model = session::load(self.console, device, opened, Some(how), offloaded_layers)?;
            let allocated = self.allocating.allocate(self.console, &mut *model, None)?;
            return Ok(Pruned { model, allocated, layer_errors: Vec::new() });
        }
        let mut model = session::load(self.console, device, opened, None, offloaded_layers)?;
        let allocated = self.allocating.allocate(self.console, &mut *model, self.calibration)?;
        let layer_errors = self.prune(&mut *model, &allocated, 1)?;
        Ok(Pruned { model, allocated, layer_errors })
    }

    /// Prunes a model for a cycle; returns each decoder layer's error where it was calibrated.
    pub fn prune(&self, model: &mut dyn Model, allocated: &Allocated, cycle: usize) -> Result<Vec<f64>, Failure> {
        let (pruning, allocation) = (self.after(cycle), allocated.allocation.after(cycle, self.cycles));
        let calibration = self.calibration.filter(|_| pruning.criterion.needs_calibration());
        let Some(calibration) = calibration else {
            prune::prune_model(model, &pruning, &allocation, &mut |linear| {
                self.spill.map_or(Ok(()), |to| to.take(linear))
            })?;
            return Ok(Vec::new());
        };
        let batches = calibration.windows.len().div_ceil(calibration.batch);
        let layers = model.info().layers;
        let mut task = self.console.task("prune", 2 * (batches * layers) as u64);
        let reports =
            calibrate::prune_model(model, &pruning, &allocation, calibration, &mut |progress| match progress {
                Progress::Pass { layer, done, .. } => task.update(done as u64, &format!("layer {layer}")),
                Progress::Dampened { tensor, dampening } => task.say(&calibration::dampened(tensor, dampening)),
                Progress::Layer(report) => task.say(&format!(
                    "layer {}: pruning changed {} of what it adds",
                    report.layer,
                    tables::percent(report.error)
                )),
            })?;
        let errors: Vec<f64> = reports.iter().map(|report| report.error).collect();
        task.finish(&format!(
            "{layers} layers at {} by {}, mean error {}",
            pruning.pattern,
            pruning.criterion,
            tables::percent(calibration::mean(&errors))
        ));
        Ok(errors)
    }
}
