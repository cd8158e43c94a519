//! The norm of eight million gradients.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::grad_norm::{Gradient, grad_norm};
use support::{OfPeak, group, moves, upload};

const LEN: usize = 8_000_000;

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let grad = upload(&device, LEN);
    let mut group = group(c, "grad_norm");
    moves(&mut group, LEN);
    let gradients = [Gradient { values: &grad, mask: None }];
    group.bench_function("one tensor", |bench| {
        bench.iter(|| grad_norm(&device, &gradients, None).and_then(|norm| norm.read()).expect("no limit"));
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
