//! Attention, forward and backward, against the floating-point operations of its visible pairs.

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kernels::Device;
use kernels::ops::attention::{Attention, Precision, backward, forward, reference};
use support::{OfPeak, computes, group, upload, values};

fn attention(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let shapes = [
        ("smollm2-135m 2x512", 2, 512, 9, 3, 64),
        ("opt-125m 1x2048", 1, 2048, 12, 12, 64),
        ("opt-2.7b one head 1x2048", 1, 2048, 1, 1, 80),
        ("llama-2-7b four heads 1x2048", 1, 2048, 4, 4, 128),
    ];
    let precisions = [("", Precision::F32), (" from 16 bits", Precision::Bits16)];
    for ((name, batch, tokens, heads, kv_heads, head_dim), (from, precision)) in
        shapes.into_iter().flat_map(|shape| precisions.map(|precision| (shape, precision)))
    {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = Attention { batch, tokens, heads, kv_heads, head_dim, scale, window: None, precision };
        let queries = batch * tokens * heads * head_dim;
        let keys = batch * tokens * kv_heads * head_dim;
        let [q, k, v] = [queries, keys, keys].map(|n| upload(&device, n));
        let mut group = group(c, &format!("attention {name}{from}"));
        computes(&mut group, attention.forward_flops());
        group.bench_function("forward", |b| b.iter(|| forward(&attention, &q, &k, &v).expect("operands fit")));
        let (out, lse) = forward(&attention, &q, &k, &v).expect("operands fit");
        computes(&mut group, attention.backward_flops());
        group.bench_function("backward", |b| {
            b.iter_batched(
                || upload(&device, queries),
                |d_out| backward(&attention, d_out, &q, &k, &v, &out, &lse).expect("operands fit"),
                BatchSize::LargeInput,
            )
        });
    }
    let attention = Attention {
        batch: 1,
        tokens: 128,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        scale: 0.125,
        window: None,
        precision: Precision::F32,
    };
    let x: Vec<f64> = values(128 * 64).into_iter().map(f64::from).collect();
    let mut group = group(c, "attention one head 1x128");
    computes(&mut group, attention.forward_flops());
    group.bench_function("reference forward", |b| b.iter(|| black_box(reference::forward(&attention, &x, &x, &x))));
}

criterion_group! { name = benches; config = support::criterion(); targets = attention }
criterion_main!(benches);
