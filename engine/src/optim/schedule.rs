//! Learning-rate schedules.

use super::{Error, Result};

/// Linear warm-up, then linear decay to zero (transformers' linear schedule).
///
/// Of N steps the first w = ⌊warmup·N⌋ rise: step k, from 0, has η·k/w for k < w, then η·(N − k)/(N − w).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearSchedule {
    peak: f64,
    steps: usize,
    warmup_steps: usize,
}

impl LinearSchedule {
    /// A schedule of `steps` steps that peaks at `peak`; `warmup` is a share of the steps in [0, 1].
    ///
    /// # Errors
    /// [`Error::Warmup`].
    pub fn new(peak: f64, steps: usize, warmup: f64) -> Result<LinearSchedule> {
        if !(0.0..=1.0).contains(&warmup) {
            return Err(Error::Warmup(warmup));
        }
        Ok(LinearSchedule { peak, steps, warmup_steps: (warmup * steps as f64) as usize })
    }

    /// The learning rate of step `k`, from 0; zero from the last step's end on.
    pub fn lr(&self, k: usize) -> f64 {
        if k < self.warmup_steps {
            self.peak * k as f64 / self.warmup_steps as f64
        } else if k < self.steps {
            self.peak * (self.steps - k) as f64 / (self.steps - self.warmup_steps) as f64
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_then_falls_linearly() {
        let schedule = LinearSchedule::new(1.0, 10, 0.2).unwrap();
        let rates: Vec<f64> = (0..11).map(|k| schedule.lr(k)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]);
    }

    #[test]
    fn without_warmup_it_starts_at_the_peak() {
        assert_eq!(LinearSchedule::new(0.5, 4, 0.0).unwrap().lr(0), 0.5);
        // ⌊0.1·5⌋ = 0
        assert_eq!(LinearSchedule::new(0.5, 5, 0.1).unwrap().lr(0), 0.5);
    }

    #[test]
    fn all_warmup_never_divides_by_zero() {
        let schedule = LinearSchedule::new(1.0, 4, 1.0).unwrap();
        assert_eq!([0, 1, 2, 3, 4].map(|k| schedule.lr(k)), [0.0, 0.25, 0.5, 0.75, 0.0]);
    }

    #[test]
    fn a_warmup_that_is_no_share_is_refused() {
        for warmup in [-0.1, 1.5, f64::NAN] {
            let error = LinearSchedule::new(1.0, 4, warmup).unwrap_err().to_string();
            assert!(error.contains("outside [0, 1]"), "{error}");
        }
    }
}
