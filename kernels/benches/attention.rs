//! Attention, forward and backward, against the floating-point operations of its visible pairs.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kernels::ops::attention::{Attention, Precision, backward, forward, reference};
use kernels::{Buffer, Category, Device};

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn upload(device: &Device, n: usize) -> Buffer {
    device.upload(Category::Activations, &values(n)).expect("no limit")
}

fn attention(c: &mut Criterion) {
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
        let mut group = c.benchmark_group(format!("attention {name}{from}"));
        group.sample_size(10);
        // "elem/s" reads FLOP/s.
        group.throughput(Throughput::Elements(attention.forward_flops() as u64));
        group.bench_function("forward", |b| b.iter(|| forward(&attention, &q, &k, &v).expect("operands fit")));
        let (out, lse) = forward(&attention, &q, &k, &v).expect("operands fit");
        group.throughput(Throughput::Elements(attention.backward_flops() as u64));
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
    let mut group = c.benchmark_group("attention one head 1x128");
    group.throughput(Throughput::Elements(attention.forward_flops() as u64));
    group.bench_function("reference forward", |b| b.iter(|| black_box(reference::forward(&attention, &x, &x, &x))));
}

criterion_group!(benches, attention);
criterion_main!(benches);
