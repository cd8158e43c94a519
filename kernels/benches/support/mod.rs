//! What the benchmarks share: the shape of a step, operands, a short measurement.

#![allow(dead_code)]

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use kernels::{Buffer, Category, Device};

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

/// A group that takes about two seconds a benchmark.
pub fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group
}

/// Bytes that an operation must move at least: its throughput is a share of memory bandwidth.
pub fn moves(group: &mut BenchmarkGroup<'_, WallTime>, floats: usize) {
    group.throughput(Throughput::Bytes(4 * floats as u64));
}
