//! What the benchmarks share: the shape of a step, operands, short measurements, and rates as shares of what the machine can do.

#![allow(dead_code)]

mod of_peak;

use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput};
use kernels::{Buffer, Category, Device};
pub use of_peak::OfPeak;

/// Tokens of a micro-batch: 2 sequences of 512.
pub const N: usize = 1024;
/// Hidden width of OPT-125M.
pub const D: usize = 768;

/// Numbers in [−0.5, 0.5).
pub fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect()
}

pub fn upload(device: &Device, len: usize) -> Buffer {
    device.upload(Category::Activations, &values(len)).expect("memory for the benchmark")
}

/// What every benchmark is configured with.
pub fn criterion() -> Criterion<OfPeak> {
    Criterion::default().with_measurement(OfPeak::default())
}

/// A group that takes about two seconds a benchmark.
pub fn group<'a>(c: &'a mut Criterion<OfPeak>, name: &str) -> BenchmarkGroup<'a, OfPeak> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group
}

/// Floating-point operations that a benchmark cannot do without, a multiply-add being two: its rate is a share of the machine's
/// f32 multiply-adds.
pub fn computes(group: &mut BenchmarkGroup<'_, OfPeak>, operations: usize) {
    group.throughput(Throughput::Elements(operations as u64));
}

/// Floats that a benchmark must move at least: its rate is a share of memory bandwidth.
pub fn moves(group: &mut BenchmarkGroup<'_, OfPeak>, floats: usize) {
    group.throughput(Throughput::Bytes(4 * floats as u64));
}
