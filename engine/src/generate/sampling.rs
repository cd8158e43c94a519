//! Which token comes next.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How a token is drawn from its logits: as transformers does, the temperature first, then top-k, then top-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; at 0 the likeliest token is taken, whatever else is asked for.
    pub temperature: f64,
    /// Only so many of the likeliest tokens, if given.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities add up to this at least.
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

/// Draws tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// One at the start of its seed.
    pub fn new(sampling: Sampling) -> Sampler {
        Sampler { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    /// A token by its logits. Of equal ones the lowest number is likelier.
    ///
    /// # Errors
    /// Logits that are not finite, or none.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::config("the model's logits are not finite: it is damaged, or overflows on this prompt"));
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        if self.sampling.temperature == 0.0 {
            return Ok(order[0] as u32);
        }
        order.truncate(self.sampling.top_k.unwrap_or(usize::MAX).max(1));
        let highest = f64::from(logits[order[0]]);
        let weight = |token: &usize| ((f64::from(logits[*token]) - highest) / self.sampling.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let all: f64 = weights.iter().sum();
        // The token that reaches top_p is still in.
        let mut before = 0.0;
        let reached = weights.iter().position(|weight| {
            before += weight / all;
            before >= self.sampling.top_p
        });
        weights.truncate(reached.map_or(weights.len(), |last| last + 1));
        let kept: f64 = weights.iter().sum();
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * kept;
        for (token, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Ok(*token as u32);
            }
        }
        // Rounding alone leads here.
        Ok(order[weights.len() - 1] as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 3.0, 2.0];

    fn sampler(temperature: f64, top_k: Option<usize>, top_p: f64) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed: 3 })
    }

    fn counts(mut sampler: Sampler) -> [usize; 4] {
        let mut counts = [0; 4];
        (0..20_000).for_each(|_| counts[sampler.choose(&LOGITS).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn the_likeliest_is_taken_at_temperature_0_and_with_one_choice() {
        assert_eq!(counts(sampler(0.0, None, 1.0)), [0, 20_000, 0, 0]);
        assert_eq!(counts(sampler(5.0, Some(1), 1.0)), [0, 20_000, 0, 0]);
        assert_eq!(counts(sampler(5.0, None, 1e-9)), [0, 20_000, 0, 0]);
    }

    #[test]
    fn draws_follow_the_softmax_and_its_cuts() {
        // At temperature 0.5 the weights are e^-4, 1, 1, e^-2 over 2.1537: 0.0085, 0.4643, 0.4643, 0.0628. Of 20,000 draws a share p
        // has a standard deviation of √(p(1−p)/20,000) ≤ 0.0036; five of them are 0.018.
        let expected = [0.0085, 0.4643, 0.4643, 0.0628];
        for (count, expected) in counts(sampler(0.5, None, 1.0)).iter().zip(expected) {
            assert!((*count as f64 / 20_000.0 - expected).abs() < 0.018, "{count} of {expected}");
        }
        let [a, b, c, d] = counts(sampler(0.5, Some(3), 1.0));
        assert!(a == 0 && b > 0 && c > 0 && d > 0);
        // 0.4643 and 0.9286 are below 0.95, the third reaches it.
        assert_eq!(counts(sampler(0.5, None, 0.95))[0], 0);
        let [a, b, c, d] = counts(sampler(0.5, None, 0.92));
        assert!(a == 0 && b > 0 && c > 0 && d == 0);
        assert_eq!(counts(sampler(0.5, None, 1.0)), counts(sampler(0.5, None, 1.0)), "the seed decides");
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        assert!(sampler(0.0, None, 1.0).choose(&[1.0, f32::NAN]).is_err());
        assert!(sampler(0.0, None, 1.0).choose(&[]).is_err());
    }
}
