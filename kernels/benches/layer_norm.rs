//! LayerNorm over 1024 tokens of OPT-125M.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::InputGradient;
use kernels::ops::layer_norm::{self, ParamGradients};
use support::{D, N, OfPeak, group, moves, upload};

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let (x, w, b) = (upload(&device, N * D), upload(&device, D), upload(&device, D));
    let (mut d_w, mut d_b) = (upload(&device, D), upload(&device, D));
    let mut group = group(c, "layer_norm");
    moves(&mut group, 2 * N * D);
    group.bench_function("forward", |bench| bench.iter(|| layer_norm::forward(&x, &w, &b, 1e-5).expect("shapes fit")));
    let saved = layer_norm::forward(&x, &w, &b, 1e-5).expect("shapes fit");
    moves(&mut group, 3 * N * D);
    group.bench_function("backward", |bench| {
        let mut dy = Some(upload(&device, N * D));
        bench.iter(|| {
            let gradients = ParamGradients { weight: Some(&mut d_w), bias: Some(&mut d_b) };
            let given = dy.take().expect("put back below");
            dy = layer_norm::backward(given, &x, &w, (&saved.mean, &saved.rstd), gradients, InputGradient::Alone)
                .expect("shapes fit");
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
