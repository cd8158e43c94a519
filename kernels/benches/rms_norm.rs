//! RMSNorm over 1024 tokens of 768 features.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::{InputGradient, rms_norm};
use support::{D, N, OfPeak, group, moves, upload};

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let (x, w) = (upload(&device, N * D), upload(&device, D));
    let mut d_w = upload(&device, D);
    let mut group = group(c, "rms_norm");
    moves(&mut group, 2 * N * D);
    group.bench_function("forward", |bench| bench.iter(|| rms_norm::forward(&x, &w, 1e-5).expect("shapes fit")));
    let saved = rms_norm::forward(&x, &w, 1e-5).expect("shapes fit");
    moves(&mut group, 3 * N * D);
    group.bench_function("backward", |bench| {
        let mut dy = Some(upload(&device, N * D));
        bench.iter(|| {
            let given = dy.take().expect("put back below");
            dy = rms_norm::backward(given, &x, &w, &saved.rstd, Some(&mut d_w), InputGradient::Alone)
                .expect("shapes fit");
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
