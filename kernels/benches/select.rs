//! Selection in a feed-forward matrix of OPT-125M.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::select;
use support::{D, group, moves, values};

fn benchmark(c: &mut Criterion) {
    let device = Device::cpu();
    let scores: Vec<f32> = values(4 * D * D).into_iter().map(f32::abs).collect();
    let mut group = group(c, "select");
    moves(&mut group, scores.len());
    group.bench_function("keep_largest", |bench| {
        bench.iter(|| select::keep_largest(&device, &scores, scores.len() / 2).expect("scores are finite"));
    });
    group.bench_function("keep_largest_of_rows", |bench| {
        bench.iter(|| select::keep_largest_of_rows(&device, &scores, D, D / 2).expect("scores are finite"));
    });
    group.bench_function("keep_n_of_m 2:4", |bench| {
        bench.iter(|| select::keep_n_of_m(&device, &scores, D, 2, 4).expect("scores are finite"));
    });
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
