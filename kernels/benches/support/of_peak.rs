//! Wall time, whose rates are shares of this machine's peak.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use kernels::peak::Peak;
use kernels::simd::Isa;

/// [`WallTime`], in GFLOP/s and GB/s, and how much of the machine's peak that is.
#[derive(Default)]
pub struct OfPeak(Formatter);

impl Measurement for OfPeak {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }
    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }
    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        WallTime.add(one, other)
    }
    fn zero(&self) -> Duration {
        WallTime.zero()
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &self.0
    }
}

/// Measures the peak when the first rate is to be shown.
#[derive(Default)]
struct Formatter(OnceLock<Peak>);

/// What a benchmark does each time, its unit for 1e9 of it a second, and the peak a second.
struct Rate {
    amount: f64,
    unit: &'static str,
    peak: f64,
}

impl Formatter {
    fn rate(&self, throughput: &Throughput) -> Rate {
        let peak = self.0.get_or_init(|| Peak::measure(Isa::best()));
        match *throughput {
            Throughput::Elements(operations) => Rate { amount: operations as f64, unit: "GFLOP/s", peak: peak.flops },
            Throughput::Bytes(bytes) => Rate { amount: bytes as f64, unit: "GB/s", peak: peak.bandwidth },
            ref other => unreachable!("benchmarks count operations or bytes, not {other:?}"),
        }
    }
}

impl ValueFormatter for Formatter {
    fn format_throughput(&self, throughput: &Throughput, ns: f64) -> String {
        let Rate { amount, unit, peak } = self.rate(throughput);
        format!("{:.1} {unit} ({:.0} %)", amount / ns, 100.0 * amount / (ns * 1e-9) / peak)
    }
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let Rate { amount, unit, .. } = self.rate(throughput);
        // Amounts a nanosecond are 1e9 of them a second.
        values.iter_mut().for_each(|ns| *ns = amount / *ns);
        unit
    }
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}
