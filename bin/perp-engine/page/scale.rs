//! Numbers onto paper: scales, their ticks, and how values are written.

/// How values are spread over an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Linear,
    /// Every decade is as long; values must be above 0.
    Log,
}

/// An axis from `low` to `high`.
#[derive(Clone, Debug)]
pub struct Scale {
    kind: Kind,
    low: f64,
    high: f64,
    /// Where lines are drawn and numbers stand.
    pub ticks: Vec<f64>,
}

impl Scale {
    /// A scale that holds all `values`, from 0 where `from_zero`, and ends at ticks.
    pub fn of(kind: Kind, values: impl Iterator<Item = f64>, from_zero: bool) -> Scale {
        let usable = |x: &f64| x.is_finite() && (kind == Kind::Linear || *x > 0.0);
        let (mut low, mut high) = values.filter(usable).fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
        if low > high {
            (low, high) = if kind == Kind::Log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if kind == Kind::Log {
            return Scale::log(low, high);
        }
        if from_zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        if low == high {
            (low, high) = if low == 0.0 { (0.0, 1.0) } else { (low - 0.1 * low.abs(), high + 0.1 * high.abs()) };
        }
        let ticks = linear_ticks(low, high, 5);
        Scale { kind, low: ticks[0].min(low), high: ticks[ticks.len() - 1].max(high), ticks }
    }

    /// A linear scale of exactly these ends.
    pub fn exact(low: f64, high: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        let ticks = linear_ticks(low, high, 6).into_iter().filter(|t| *t >= low && *t <= high).collect();
        Scale { kind: Kind::Linear, low, high, ticks }
    }

    fn log(low: f64, high: f64) -> Scale {
        // A little air, so that nothing lies on the edge.
        let air = (high / low).powf(0.06).max(1.03);
        let (low, high) = (low / air, high * air);
        let decades = (high / low).log10();
        let steps: &[f64] = match decades {
            d if d > 2.5 => &[1.0],
            d if d > 0.6 => &[1.0, 2.0, 5.0],
            _ => &[],
        };
        let mut ticks: Vec<f64> = (low.log10().floor() as i32..=high.log10().ceil() as i32)
            .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
            .filter(|tick| *tick >= low && *tick <= high)
            .collect();
        if ticks.len() < 3 {
            ticks = linear_ticks(low, high, 5).into_iter().filter(|tick| *tick >= low && *tick <= high).collect();
        }
        // More than eight decades: every other, or every third.
        let every = ticks.len().div_ceil(8).max(1);
        let ticks = ticks.into_iter().step_by(every).collect();
        Scale { kind: Kind::Log, low, high, ticks }
    }

    /// Where `value` lies, from 0 to 1; none where the scale has no place for it.
    pub fn at(&self, value: f64) -> Option<f64> {
        let share = match self.kind {
            Kind::Linear => (value - self.low) / (self.high - self.low),
            Kind::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        share.is_finite().then_some(share.clamp(-0.02, 1.02))
    }
}

/// About `count` round numbers that enclose `low` to `high`.
fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * magnitude).find(|s| *s >= rough).unwrap_or(10.0 * magnitude);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A number in six characters or so: 0.5, 12, 1,200, 3.4e9, 5e-4.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return trimmed(&format!("{value:.1e}"), 'e');
    }
    if size >= 1000.0 { crate::tables::count(value.round() as usize) } else { trimmed(&format!("{value:.3}"), '\0') }
}

/// Without zeros at the end of a fraction.
fn trimmed(text: &str, exponent: char) -> String {
    let (mantissa, rest) = text.find(exponent).map_or((text, ""), |at| text.split_at(at));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    format!("{mantissa}{rest}")
}

/// A perplexity: two decimals while they mean something.
pub fn perplexity(value: f64) -> String {
    match value {
        v if !v.is_finite() => "∞".into(),
        v if v >= 1e6 => format!("{v:.1e}"),
        v if v >= 1e3 => crate::tables::count(v.round() as usize),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        let scale = Scale::of(Kind::Linear, [3.0, 9.7].into_iter(), false);
        assert_eq!(scale.ticks, [2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(scale.at(6.0), Some(0.5));
        let scale = Scale::of(Kind::Log, [12.0, 11_568.0].into_iter(), false);
        assert_eq!(scale.ticks, [10.0, 100.0, 1000.0, 10_000.0]);
        let halfway = scale.at((12.0f64 * 11_568.0).sqrt()).unwrap();
        assert!((halfway - 0.5).abs() < 1e-12);
        // Narrow, empty, and beyond all numbers.
        assert!(Scale::of(Kind::Log, [63.0, 79.0].into_iter(), false).ticks.len() >= 3);
        assert!(Scale::of(Kind::Log, std::iter::empty(), false).at(f64::NAN).is_none());
        assert!(Scale::of(Kind::Linear, [5.0].into_iter(), false).at(5.0).is_some());
        assert!(Scale::of(Kind::Log, [1e-9, 1e9].into_iter(), false).ticks.len() <= 8);
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.5, 12.0, 1200.0, 3.4e9, 5e-4, 0.125, 1e-6].map(short);
        assert_eq!(all, ["0", "0.5", "12", "1,200", "3.4e9", "5e-4", "0.125", "1e-6"]);
        assert_eq!([63.144, 11568.33, f64::INFINITY].map(perplexity), ["63.14", "11,568", "∞"]);
    }
}
