//! Activations over the feed-forward width of OPT-125M.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::activation::{self, Activation};
use support::{D, N, OfPeak, group, moves, upload};

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let len = N * 4 * D;
    let (x, up) = (upload(&device, len), upload(&device, len));
    let mut group = group(c, "activation");
    moves(&mut group, 2 * len);
    group.bench_function("relu", |bench| {
        let mut x = Some(upload(&device, len));
        bench.iter(|| x = Some(activation::relu(x.take().expect("put back"), true).expect("memory").0));
    });
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        group.bench_function(format!("{kind:?}"), |bench| {
            bench.iter(|| activation::forward(kind, &x).expect("memory"));
        });
    }
    moves(&mut group, 3 * len);
    group.bench_function("silu_gate", |bench| bench.iter(|| activation::silu_gate(&x, &up).expect("memory")));
    moves(&mut group, 5 * len);
    group.bench_function("silu_gate_backward", |bench| {
        let mut dy = Some(upload(&device, len));
        bench.iter(|| {
            dy = Some(activation::silu_gate_backward(dy.take().expect("put back"), &x, &up).expect("memory").1);
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
