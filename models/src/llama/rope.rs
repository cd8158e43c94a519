//! Rotary frequencies and their scalings, as transformers computes them.

use std::f64::consts::TAU;

use crate::ConfigError;
use crate::read::Fields;

/// The pairs' frequencies and the factor on cosine and sine.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub frequencies: Vec<f64>,
    pub factor: f64,
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (transformers 4) for heads of
    /// `head_dim` features in a model of `context` positions.
    pub(super) fn read(fields: Fields<'_>, head_dim: usize, context: usize) -> Result<Rope, ConfigError> {
        const DEFAULT_THETA: f64 = 10_000.0;
        let newer = fields.object("rope_parameters")?;
        let scaling = newer.or(fields.object("rope_scaling")?);
        let theta = match newer {
            Some(newer) => newer.positive("rope_theta", fields.positive("rope_theta", DEFAULT_THETA)?)?,
            None => fields.positive("rope_theta", DEFAULT_THETA)?,
        };
        let partial = match newer {
            Some(newer) => newer.positive("partial_rotary_factor", fields.positive("partial_rotary_factor", 1.0)?)?,
            None => fields.positive("partial_rotary_factor", 1.0)?,
        };
        let rotated = (head_dim as f64 * partial) as usize;
        if partial > 1.0 || rotated == 0 || !rotated.is_multiple_of(2) {
            let reason = format!("{rotated} of a head's {head_dim} features cannot rotate in pairs");
            return Err(ConfigError(reason));
        }
        let plain: Vec<f64> = (0..rotated / 2).map(|i| theta.powf(-2.0 * i as f64 / rotated as f64)).collect();
        let Some(scaling) = scaling else { return Ok(Rope { frequencies: plain, factor: 1.0 }) };
        let (frequencies, factor) = match scaling.text("rope_type", scaling.text("type", "default")?)? {
            "default" => (plain, 1.0),
            "linear" => {
                let factor = scaling.required_positive("factor")?;
                (plain.iter().map(|f| f / factor).collect(), 1.0)
            }
            // Changes nothing up to the context length, which longer sequences never pass here.
            "dynamic" => (plain, 1.0),
            "llama3" => (llama3(&plain, scaling)?, 1.0),
            "yarn" => yarn(&plain, scaling, theta, rotated, context)?,
            other => {
                let supported = "supported are default, linear, dynamic, llama3 and yarn";
                return Err(ConfigError(format!("rope_type '{other}' is not supported; {supported}")));
            }
        };
        if !frequencies.iter().chain([&factor]).all(|number| number.is_finite()) {
            let reason = "the rotary frequencies that rope_theta and rope_scaling give are not finite numbers";
            return Err(ConfigError(reason.into()));
        }
        Ok(Rope { frequencies, factor })
    }
}

/// Llama 3.1: wavelengths above `original/low_freq_factor` are stretched by `factor`, those below
/// `original/high_freq_factor` stay, and between them the two are blended linearly in original/wavelength.
fn llama3(plain: &[f64], scaling: Fields<'_>) -> Result<Vec<f64>, ConfigError> {
    let factor = scaling.required_positive("factor")?;
    let low = scaling.required_positive("low_freq_factor")?;
    let high = scaling.required_positive("high_freq_factor")?;
    let original = scaling.required_positive("original_max_position_embeddings")?;
    let scale = |f: &f64| {
        let wavelength = TAU / f;
        if wavelength < original / high {
            *f
        } else if wavelength > original / low {
            f / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    Ok(plain.iter().map(scale).collect())
}

/// YaRN (Peng et al. 2023): frequencies that turn fewer than `beta_slow` times in the original context are divided by
/// `factor`, those that turn more than `beta_fast` times stay, with a linear ramp over the pairs between; cosine and sine
/// are scaled by 0.1·ln(factor) + 1.
fn yarn(
    plain: &[f64],
    scaling: Fields<'_>,
    theta: f64,
    rotated: usize,
    context: usize,
) -> Result<(Vec<f64>, f64), ConfigError> {
    for field in ["mscale", "mscale_all_dim"] {
        if scaling.positive(field, 1.0)? != 1.0 {
            return Err(ConfigError(format!("rope_type yarn with {field} is not supported")));
        }
    }
    let original = scaling.positive("original_max_position_embeddings", context as f64)?;
    let factor = scaling.required_positive("factor")?;
    let attention = scaling.positive("attention_factor", if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 })?;
    let pair_of = |turns: f64| rotated as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) =
        (pair_of(scaling.positive("beta_fast", 32.0)?), pair_of(scaling.positive("beta_slow", 1.0)?));
    if scaling.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(rotated as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(i, f): (usize, &f64)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f / factor * ramp + f * (1.0 - ramp)
    };
    Ok((plain.iter().enumerate().map(blend).collect(), attention))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rope(config: Value) -> Result<Rope, ConfigError> {
        Rope::read(Fields(&config), 8, 64)
    }

    #[test]
    fn plain_frequencies_are_powers_of_theta() {
        let want = vec![1.0, 0.1, 0.01, 0.001];
        let got = rope(json!({"rope_theta": 10000.0})).unwrap();
        got.frequencies.iter().zip(want).for_each(|(got, want): (&f64, f64)| assert!((got - want).abs() < 1e-15));
        assert_eq!(rope(json!({})).unwrap(), got);
        assert_eq!(rope(json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}})).unwrap(), got);
    }

    #[test]
    fn linear_scaling_divides() {
        let scaled = rope(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        assert!((scaled.frequencies[1] - 0.025).abs() < 1e-15);
    }

    /// Wavelengths 6.28, 62.8, 628 and 6283 against 64/4 = 16 and 64/1 = 64: kept, blended, divided, divided. The blend:
    /// 64/62.83 = 1.01859, (1.01859 − 1)/3 = 0.0061972, 0.1·(0.0061972 + 0.9938028/8) = 0.013042255.
    #[test]
    fn llama3_scaling_has_three_branches() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
        let got = rope(json!({"rope_theta": 10000.0, "rope_scaling": scaling})).unwrap().frequencies;
        let want = [1.0, 0.013_042_255, 0.01 / 8.0, 0.001 / 8.0];
        got.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() < 1e-8, "{got} {want}"));
    }

    /// pair_of(32) = 8·ln(64/(32τ))/(2·ln 1e4) = −0.497 → floor −1 → 0; pair_of(1) = 8·ln(64/τ)/(2·ln 1e4) = 1.008 →
    /// ceil 2; ramps 0, 1/2, 1, 1; the factor 0.1·ln 4 + 1.
    #[test]
    fn yarn_ramps_over_pairs() {
        let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        let got = rope(json!({"rope_theta": 10000.0, "rope_scaling": scaling})).unwrap();
        let want = [1.0, 0.1 * (0.5 / 4.0 + 0.5), 0.01 / 4.0, 0.001 / 4.0];
        got.frequencies.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() < 1e-12, "{got} {want}"));
        assert!((got.factor - 1.138_629_436_1).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = rope(json!({"rope_scaling": {"rope_type": "longrope"}})).unwrap_err().to_string();
        assert!(error.contains("rope_type 'longrope' is not supported"), "{error}");
        let error = rope(json!({"rope_scaling": {"rope_type": "linear"}})).unwrap_err().to_string();
        assert!(error.contains("factor is missing"), "{error}");
    }
}
