//! What scores an entry.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use kernels::device::Element;
use kernels::{Buffer, Category, DType};
use rand_chacha::rand_core::Rng;

use super::{Error, Result};
use crate::model::named_rng;

/// A pruning criterion: the entries with the lowest scores go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// |w|.
    Magnitude,
    /// Uniform in (0, 1], seeded by the run and the tensor's name; zero for entries that are zero already.
    Random,
    /// |w|·‖x‖ with the norm of the weight's input feature over calibration text, compared within a row (`wanda.rs`).
    Wanda,
    /// w²/[H⁻¹]ⱼⱼ, whose pruned weights' errors the others make up for (`sparsegpt.rs`).
    SparseGpt,
}

impl Criterion {
    /// All criteria.
    pub const ALL: [Criterion; 4] = [Criterion::Magnitude, Criterion::Random, Criterion::Wanda, Criterion::SparseGpt];

    /// The name users give.
    pub fn name(self) -> &'static str {
        match self {
            Criterion::Magnitude => "magnitude",
            Criterion::Random => "random",
            Criterion::Wanda => "wanda",
            Criterion::SparseGpt => "sparsegpt",
        }
    }

    /// True where it must have seen a layer's inputs on calibration text; [`crate::calibrate`] shows it them.
    pub fn needs_calibration(self) -> bool {
        matches!(self, Criterion::Wanda | Criterion::SparseGpt)
    }

    /// What is compared instead of the entries of a matrix; none where it is their own magnitudes. On Meta a criterion that
    /// needs calibration has scores without values.
    ///
    /// # Errors
    /// [`Error::Uncalibrated`] on a device that computes.
    pub(super) fn scores(self, entries: &Buffer, tensor: &str, seed: u64) -> Result<Option<Buffer>> {
        match self {
            Criterion::Magnitude => Ok(None),
            Criterion::Random => Ok(Some(match entries.dtype() {
                DType::F16 => random_scores::<f16>(entries, tensor, seed)?,
                DType::BF16 => random_scores::<bf16>(entries, tensor, seed)?,
                _ => random_scores::<f32>(entries, tensor, seed)?,
            })),
            Criterion::Wanda | Criterion::SparseGpt if entries.device().is_meta() => {
                Ok(Some(entries.device().alloc(Category::Workspace, DType::F32, entries.len())?))
            }
            Criterion::Wanda | Criterion::SparseGpt => {
                Err(Error::Uncalibrated { tensor: tensor.into(), criterion: self.name() })
            }
        }
    }
}

/// Drawn by the host, in the order of the entries. An entry that is not finite is its own score, by which it is found.
fn random_scores<T: Element + Into<f32>>(entries: &Buffer, tensor: &str, seed: u64) -> Result<Buffer> {
    let device = entries.device();
    let mut scores = device.alloc(Category::Workspace, DType::F32, entries.len())?;
    if device.is_meta() {
        return Ok(scores);
    }
    let mut rng = named_rng(seed, tensor);
    let mut score = |entry: &T| {
        let (entry, score) = ((*entry).into(), ((rng.next_u32() >> 8) + 1) as f32 / (1 << 24) as f32);
        if entry == 0.0 || !entry.is_finite() { entry } else { score }
    };
    let entries = entries.read()?;
    scores.fill(|scores| {
        scores.iter_mut().zip(entries.iter()).for_each(|(to, entry)| *to = score(entry));
        Ok(())
    })?;
    Ok(scores)
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Criterion {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Criterion, String> {
        Criterion::ALL.into_iter().find(|criterion| criterion.name() == name).ok_or_else(|| {
            format!("unknown criterion '{name}': one of {}", Criterion::ALL.map(Criterion::name).join(", "))
        })
    }
}
