//! Residual sums over 1024 tokens of OPT-125M.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::add;
use support::{D, N, OfPeak, group, moves, upload};

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let (mut sum, x) = (upload(&device, N * D), upload(&device, N * D));
    let mut group = group(c, "add");
    moves(&mut group, 3 * N * D);
    group.bench_function("add_assign", |bench| bench.iter(|| add::add_assign(&mut sum, &x).expect("lengths fit")));
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
