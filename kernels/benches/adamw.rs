//! AdamW over as many numbers as PERP trains in OPT-125M, in 200 tensors, and over one large tensor.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::ops::adamw::{self, Slot, Step};
use kernels::ops::grad_norm::{Gradient, grad_norm};
use kernels::{Buffer, Device};
use support::{OfPeak, group, moves, upload};

const STEP: Step = Step { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 10 };

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let mut group = group(c, "adamw");
    for (name, tensors, len) in [("perp", 200, 7_000), ("large", 1, 8_000_000)] {
        let buffers = || -> Vec<Buffer> { (0..tensors).map(|_| upload(&device, len)).collect() };
        let (mut value, grad, mut m, mut v) = (buffers(), buffers(), buffers(), buffers());
        // Second moments are sums of squares.
        v.iter_mut().for_each(|v| v.f32_mut().iter_mut().for_each(|v| *v *= *v));
        let grads: Vec<_> = grad.iter().map(|values| Gradient { values, mask: None }).collect();
        let norm = grad_norm(&device, &grads, None).expect("no limit");
        moves(&mut group, 7 * tensors * len);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let state = m.iter_mut().zip(&mut v);
                let pairs = value.iter_mut().zip(&grads).zip(state);
                let mut slots: Vec<Slot<'_>> =
                    pairs.map(|((value, grad), (m, v))| Slot { value, grad: *grad, m, v }).collect();
                adamw::step(&device, &mut slots, STEP, &norm).expect("lengths fit");
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
