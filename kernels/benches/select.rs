//! Selection in a feed-forward matrix of OPT-125M.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::select;
use support::{D, OfPeak, group, moves, upload};

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let scores = upload(&device, 4 * D * D);
    let mut group = group(c, "select");
    moves(&mut group, scores.len());
    group.bench_function("keep_largest", |bench| {
        bench.iter(|| select::keep_largest(&scores, scores.len() / 2).expect("memory for the benchmark"));
    });
    group.bench_function("keep_largest_of_rows", |bench| {
        bench.iter(|| select::keep_largest_of_rows(&scores, D, D / 2).expect("memory for the benchmark"));
    });
    group.bench_function("keep_n_of_m 2:4", |bench| {
        bench.iter(|| select::keep_n_of_m(&scores, D, 2, 4).expect("memory for the benchmark"));
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
