//! Linear layers at the shapes of a training step: dense and packed weights, forward and input gradient, and the adapter.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kernels::ops::linear::{self, Lora};
use kernels::weight::{FrozenWeight, WeightRef};
use kernels::{Category, Device};
use support::{N, OfPeak, computes, upload, values};

/// An f16 weight; below density 1 a packed one, its kept entries at random.
fn weight(device: &Device, rows: usize, cols: usize, density: f32) -> FrozenWeight {
    let half: Vec<half::f16> = values(rows * cols).into_iter().map(half::f16::from_f32).collect();
    let source = device.upload(Category::Weights, &half).expect("memory for the benchmark");
    if density == 1.0 {
        return FrozenWeight::dense(source, rows, cols).expect("the source fits");
    }
    let mut words = vec![0u64; (rows * cols).div_ceil(64)];
    let mut state = 1u64;
    for i in 0..rows * cols {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words[i / 64] |= u64::from((state >> 40) as f32 / (1 << 24) as f32 <= density) << (i % 64);
    }
    let kept = words.iter().map(|word| word.count_ones() as usize).sum();
    let mask = device.upload(Category::Masks, &words).expect("memory for the benchmark");
    FrozenWeight::pruned(device, &source, rows, cols, &mask, kept).expect("the mask fits")
}

fn benchmark(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let mut group = support::group(c, "linear");
    for (rows, cols) in [(768, 768), (3072, 768), (768, 3072), (576, 1536)] {
        let (x, dy) = (upload(&device, N * cols), upload(&device, N * rows));
        for (form, density) in [("dense", 1.0), ("half", 0.5), ("tenth", 0.1)] {
            let weight = weight(&device, rows, cols, density);
            // A pruned weight is no operation.
            computes(&mut group, 2 * N * weight.stored());
            let weight = WeightRef::Frozen(&weight);
            let shape = format!("{form}/{rows}x{cols}");
            group.bench_function(BenchmarkId::new("forward", &shape), |b| {
                b.iter(|| black_box(linear::forward(&device, &x, N, weight, None, None).expect("shapes fit")));
            });
            group.bench_function(BenchmarkId::new("backward_input", &shape), |b| {
                b.iter(|| black_box(linear::backward_input(&device, &dy, N, weight, None).expect("shapes fit")));
            });
        }
    }
    let (rows, cols, rank) = (768, 768, 16);
    let weight = weight(&device, rows, cols, 0.5);
    let weight = WeightRef::Frozen(&weight);
    let (x, dy) = (upload(&device, N * cols), upload(&device, N * rows));
    let (a, b) = (upload(&device, rank * cols), upload(&device, rows * rank));
    let lora = Lora { a: &a, b: &b, rank, scale: 2.0 };
    computes(&mut group, 4 * N * rank * (rows + cols));
    group.bench_function("lora_gradients/768x768", |bench| {
        let (mut d_a, mut d_b) = (upload(&device, rank * cols), upload(&device, rows * rank));
        let u = upload(&device, N * rank);
        bench.iter(|| {
            let v = linear::lora_down(&device, &dy, N, weight, lora).expect("shapes fit");
            linear::lora_gradients(&device, &x, &dy, N, (&u, &v), &mut d_a, &mut d_b).expect("shapes fit");
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = benchmark }
criterion_main!(benches);
