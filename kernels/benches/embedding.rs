//! Token and position look-ups of OPT-125M's tables.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::embedding;
use kernels::weight::WeightRef;
use support::{D, N, OfPeak, group, moves, upload};

const V: usize = 50_272;

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let (value, mut gradient) = (upload(&device, V * D), upload(&device, V * D));
    let table = WeightRef::Trainable { value: &value, rows: V, cols: D, mask: None };
    let tokens: Vec<u32> = (0..N).map(|i| (i * 7919 % V) as u32).collect();
    let mut group = group(c, "embedding");
    moves(&mut group, 2 * N * D);
    group.bench_function("lookup", |bench| {
        bench.iter(|| embedding::lookup(&device, &tokens, table).expect("tokens fit"));
    });
    let mut y = upload(&device, N * D);
    moves(&mut group, 3 * N * D);
    group.bench_function("add_positions", |bench| {
        bench.iter(|| embedding::add_positions(&mut y, table, N / 2, 2).expect("positions fit"));
    });
    group.bench_function("lookup_gradient", |bench| {
        bench.iter(|| embedding::lookup_gradient(&y, &tokens, &mut gradient).expect("tokens fit"));
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
