//! Rotary embedding of 12 heads of 64 over 1024 tokens.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::rotary::{Direction, RotaryTable, rotate};
use support::{D, N, OfPeak, group, moves, upload};

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let frequencies: Vec<f64> = (0..32).map(|i| 10_000f64.powf(-f64::from(i) / 32.0)).collect();
    let table = RotaryTable::new(&device, N / 2, &frequencies, 1.0).expect("memory for the benchmark");
    let mut x = upload(&device, N * D);
    let mut group = group(c, "rotary");
    moves(&mut group, 2 * N * D);
    group.bench_function("rotate", |bench| {
        bench.iter(|| rotate(&mut x, &table, N / 2, 12, 64, Direction::Forward).expect("shapes fit"));
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
