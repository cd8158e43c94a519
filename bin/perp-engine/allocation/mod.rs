//! How sparsity is shared out among layers: the same for all, by outliers, or as a file says.

pub(crate) mod file;

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use engine::calibrate::{Calibration, layer_outliers};
use engine::checkpoint::ModelFolder;
use engine::model::Model;
use engine::prune::{Allocation, Matrix, Owl, PRUNED, Pattern, detect};
use models::Architecture;
use serde_json::{Value, json};

use crate::args::{PruneArgs, above_zero, at_least_zero};
use crate::error::Failure;
use crate::progress::Console;
use crate::session;
use crate::tables;

/// How far the mean of a file's sparsities may be from --sparsity: they are rounded to three decimals, say.
const ROUNDED: f64 = 5e-4;

/// What users name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Uniform,
    Owl,
    File(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match text {
            "uniform" => Ok(Choice::Uniform),
            "owl" => Ok(Choice::Owl),
            "" => Err("expected uniform, owl, or a JSON or TOML file".into()),
            path => Ok(Choice::File(path.into())),
        }
    }
}

/// The model of a run that does not prune: how its matrices were pruned before.
///
/// Entries that are zero go first, by any criterion; so a matrix pruned to just its share of zeros keeps every other entry.
pub fn found(folder: &ModelFolder, architecture: &dyn Architecture) -> Result<Allocating, Failure> {
    let matrices = session::matrices(architecture)?;
    let (mut shares, mut patterns, mut all_full, mut zeros_of_all) = (Vec::new(), Vec::new(), true, 0);
    for matrix in &matrices {
        let name = format!("{}.weight", matrix.name);
        let bare = name.strip_prefix("model.").unwrap_or(&name);
        let info = folder
            .tensor(&name)
            .or_else(|| folder.tensor(bare))
            .ok_or_else(|| Failure::failed(format!("{}: no tensor named {name}", folder.path().display())))?;
        let values = info.read_f32()?;
        let zeros = values.iter().filter(|x| **x == 0.0).count();
        if zeros == values.len() {
            return Err(Failure::failed(format!(
                "{}: {name} holds nothing but zeros: nothing of it could train",
                folder.path().display()
            )));
        }
        let pattern = detect(&values, *info.shape().last().unwrap_or(&0));
        // Half an entry more than it has, so that rounding the product down gives what it has.
        shares.push((matrix.name.clone(), if zeros == 0 { 0.0 } else { (zeros as f64 + 0.5) / values.len() as f64 }));
        all_full &=
            pattern.is_some_and(|pattern| zeros == values.len() - values.len() / per(pattern).1 * per(pattern).0);
        patterns.push(pattern);
        zeros_of_all += zeros;
    }
    let entries: usize = matrices.iter().map(|matrix| matrix.entries).sum();
    if (zeros_of_all as f64) < PRUNED * entries as f64 {
        return Err(Failure::usage(format!(
            "--prune none: {} is not pruned: {zeros_of_all} of the {entries} weights of its layers are zero; leave --prune out",
            folder.path().display()
        )));
    }
    let same =
        patterns.first().copied().flatten().filter(|first| patterns.iter().all(|pattern| *pattern == Some(*first)));
    let (allocation, pattern) = match same {
        Some(pattern @ Pattern::NM { .. }) if all_full => (Allocation::uniform(), pattern),
        _ => {
            let sparsity = zeros_of_all as f64 / entries as f64;
            (Allocation::of(shares)?, Pattern::Unstructured { sparsity: (sparsity * 1e9).round() / 1e9 })
        }
    };
    Ok(Allocating { how: How::Found(allocation), matrices, pattern })
}

/// n of m; unstructured is all of one.
fn per(pattern: Pattern) -> (usize, usize) {
    match pattern {
        Pattern::NM { n, m } => (n, m),
        Pattern::Unstructured { .. } => (1, 1),
    }
}

/// How sparsity is shared out among layers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct AllocationArgs {
    /// How --sparsity is shared out: uniform (each matrix has it), owl (it is the mean; layers with more outliers among |w|·‖x‖ on
    /// the text of --calibrate keep more; with any criterion), or a JSON or TOML file with a sparsity for each layer ("layers") or
    /// matrix ("matrices"), whose mean it then is.
    #[arg(long, default_value = "uniform", value_parser = |s: &str| s.parse::<Choice>(), value_name = "HOW|FILE")]
    allocation: Choice,
    /// OWL's M: an outlier is a score above M times the mean of its layer's [default: 5].
    #[arg(long, value_parser = above_zero, value_name = "M")]
    owl_m: Option<f64>,
    /// OWL's λ: the sparsities of the layers lie at most 2λ apart [default: 0.08].
    #[arg(long, value_parser = at_least_zero, value_name = "LAMBDA")]
    owl_lambda: Option<f64>,
}

impl AllocationArgs {
    /// True where it is what it is by default.
    pub fn is_uniform(&self) -> bool {
        self.allocation == Choice::Uniform
    }

    /// True where it must see the model's activations.
    pub fn needs_calibration(&self) -> bool {
        self.allocation == Choice::Owl
    }

    /// Fails where the flags contradict each other.
    pub fn check(&self, pruning: &PruneArgs) -> Result<(), Failure> {
        if !self.needs_calibration() && (self.owl_m.is_some() || self.owl_lambda.is_some()) {
            return Err(Failure::usage("--owl-m and --owl-lambda go with --allocation owl"));
        }
        let pattern = pruning.pattern();
        if self.allocation != Choice::Uniform && matches!(pattern, Pattern::NM { .. }) {
            return Err(Failure::usage(format!(
                "--allocation goes with --sparsity: {pattern} leaves every layer the same share; leave one of the two out"
            )));
        }
        Ok(())
    }

    /// What is known before a weight is read. Reads the file, if one is named.
    pub fn plan(&self, pruning: &PruneArgs, architecture: &dyn Architecture) -> Result<Allocating, Failure> {
        let pattern = pruning.pattern();
        let matrices = session::matrices(architecture)?;
        let (how, pattern) = match &self.allocation {
            Choice::Uniform => (How::Uniform, pattern),
            Choice::Owl => {
                let owl = Owl { m: self.owl_m.unwrap_or(5.0), lambda: self.owl_lambda.unwrap_or(0.08) };
                (How::Owl(owl), pattern)
            }
            Choice::File(path) => {
                let allocation = file::read(path, &matrices)?;
                let mean = allocation.mean(&matrices, 0.0);
                if let Some(asked) = pruning.sparsity.filter(|asked| (asked - mean).abs() > ROUNDED) {
                    return Err(Failure::usage(format!(
                        "--sparsity {asked}: the mean of {} over the weights is {mean:.4}; leave --sparsity out, or change the file",
                        path.display()
                    )));
                }
                // Without the last digits of its sum.
                let sparsity = (mean * 1e9).round() / 1e9;
                (How::File(path.clone(), allocation), Pattern::Unstructured { sparsity })
            }
        };
        Ok(Allocating { how, matrices, pattern })
    }
}

enum How {
    Uniform,
    Owl(Owl),
    File(PathBuf, Allocation),
    /// It is pruned already.
    Found(Allocation),
}

/// How sparsity is to be shared out.
pub struct Allocating {
    how: How,
    matrices: Vec<Matrix>,
    /// The pattern of all matrices, or the mean of their sparsities.
    pub pattern: Pattern,
}

/// How it is shared out.
#[derive(Clone)]
pub struct Allocated {
    /// Of each matrix, at the end of the last cycle.
    pub allocation: Allocation,
    /// Of each layer, the share of outliers that decided.
    outliers: Vec<f64>,
}

impl Allocating {
    /// The allocation, where weights and text decide nothing about it.
    pub fn known(&self) -> Option<Allocation> {
        match &self.how {
            How::Uniform => Some(Allocation::uniform()),
            How::File(_, allocation) | How::Found(allocation) => Some(allocation.clone()),
            How::Owl(_) => None,
        }
    }

    /// True where matrices stay as they were pruned before.
    pub fn is_found(&self) -> bool {
        matches!(self.how, How::Found(_))
    }

    /// What a file says, for plans: of OWL's only the mean is known before the model has run, and it decides about memory.
    pub fn of_file(&self) -> Option<&Allocation> {
        match &self.how {
            How::File(_, allocation) | How::Found(allocation) => Some(allocation),
            How::Uniform | How::Owl(_) => None,
        }
    }

    /// Decides, looking at the dense model where it must.
    pub fn allocate(
        &self,
        console: &Console,
        model: &mut dyn Model,
        calibration: Option<&Calibration>,
    ) -> Result<Allocated, Failure> {
        let (owl, calibration) = match (&self.how, calibration) {
            (How::Owl(owl), Some(calibration)) => (owl, calibration),
            _ => return Ok(Allocated { allocation: self.known().unwrap_or_default(), outliers: Vec::new() }),
        };
        let layers = model.info().layers;
        let batches = calibration.windows.len().div_ceil(calibration.batch);
        let mut task = console.task("allocate", (layers * batches) as u64);
        let outliers = layer_outliers(model, owl.m, calibration, &mut |layer, done, _| {
            task.update(done as u64, &format!("layer {layer}"))
        })?;
        let sparsities = owl.sparsities(&outliers, &self.matrices, self.pattern.sparsity())?;
        for (layer, (outliers, sparsity)) in outliers.iter().zip(&sparsities).enumerate() {
            let outliers = tables::percent(*outliers);
            task.say(&format!("layer {layer}: {outliers} of its scores are outliers, its sparsity is {sparsity:.4}"));
        }
        let (least, most) = sparsities.iter().fold((f64::MAX, f64::MIN), |(a, b), s| (a.min(*s), b.max(*s)));
        task.finish(&format!("sparsities of {least:.4} to {most:.4} by outliers above {} times the mean", owl.m));
        Ok(Allocated { allocation: Allocation::of_layers(&self.matrices, &sparsities)?, outliers })
    }

    /// As a run's configuration names it: a file by what it says.
    pub fn configuration(&self) -> Value {
        match &self.how {
            How::Uniform => json!("uniform"),
            How::Owl(owl) => json!({"owl_m": owl.m, "owl_lambda": owl.lambda}),
            How::File(_, allocation) => json!({"matrices": self.of_matrices(allocation)}),
            How::Found(_) => json!("found"),
        }
    }

    /// What a report says: layers are the means over their matrices.
    pub fn told(&self, allocated: &Allocated) -> Value {
        let allocation = &allocated.allocation;
        let layers = allocation.layers(&self.matrices, self.pattern.sparsity());
        match &self.how {
            How::Uniform => json!({"how": "uniform", "layers": layers}),
            How::Owl(owl) => json!({
                "how": "owl", "owl_m": owl.m, "owl_lambda": owl.lambda, "outliers": allocated.outliers, "layers": layers,
            }),
            How::File(path, _) => {
                json!({"how": "file", "file": path, "layers": layers, "matrices": self.of_matrices(allocation)})
            }
            How::Found(_) => json!({"how": "found", "layers": layers, "matrices": self.of_matrices(allocation)}),
        }
    }

    fn of_matrices(&self, allocation: &Allocation) -> Value {
        let share = |matrix: &Matrix| {
            let own = allocation.mean(std::slice::from_ref(matrix), self.pattern.sparsity());
            (matrix.name.clone(), json!(own))
        };
        Value::Object(self.matrices.iter().map(share).collect())
    }
}
