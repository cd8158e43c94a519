//! The fused head and loss: evaluation, and a training step's losses and gradients, for two heads and an adapter.

mod support;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::ops::head_loss::{Head, Wanted, loss, loss_and_gradients, reference};
use kernels::ops::linear::Lora;
use kernels::weight::{FrozenWeight, WeightRef};
use kernels::{Category, DType, Device};
use support::{OfPeak, computes, group, upload, values};

fn head_loss(c: &mut Criterion<OfPeak>) {
    let device = Device::cpu();
    let rank = 16;
    for (name, n, vocab, dim) in [("demo 1024 rows", 1024, 4096, 256), ("smollm2-135m 1024 rows", 1024, 49_152, 576)] {
        let weight = FrozenWeight::dense(upload(&device, vocab * dim), vocab, dim).expect("lengths fit");
        let (a, b) = (upload(&device, rank * dim), upload(&device, vocab * rank));
        let lora = Lora { a: &a, b: &b, rank, scale: 2.0 };
        let head = Head { weight: WeightRef::Frozen(&weight), lora: Some(lora) };
        let hidden = upload(&device, n * dim);
        let targets: Vec<u32> = (0..n).map(|i| (i * 37 % vocab) as u32).collect();
        let mut group = group(c, &format!("head_loss {name}"));
        // The dense products: one for the loss, one more for dh.
        let product = 2 * n * vocab * dim;
        computes(&mut group, product);
        group.bench_function("loss", |b| b.iter(|| loss(&hidden, head, &targets).expect("operands fit")));
        let mut d_a = device.zeros(Category::Gradients, DType::F32, a.len()).expect("no limit");
        let mut d_b = device.zeros(Category::Gradients, DType::F32, b.len()).expect("no limit");
        computes(&mut group, 2 * product);
        group.bench_function("loss and gradients", |b| {
            b.iter(|| {
                let lora = Some((&mut d_a, &mut d_b));
                let wanted = Wanted { scale: 1.0, hidden: true, lora, weight: None };
                loss_and_gradients(&hidden, head, &targets, wanted).expect("operands fit")
            })
        });
    }
    let (n, vocab, dim) = (16, 1024, 64);
    let wide = |n: usize| -> Vec<f64> { values(n).into_iter().map(f64::from).collect() };
    let operands = reference::Operands {
        vocab,
        dim,
        rank: 0,
        scale: 0.0,
        hidden: &wide(n * dim),
        weight: &wide(vocab * dim),
        a: &[],
        b: &[],
        targets: &vec![3; n],
    };
    let mut group = group(c, "head_loss 16 rows");
    computes(&mut group, 2 * n * vocab * dim);
    group.bench_function("reference loss", |b| b.iter(|| black_box(operands.losses())));
}

criterion_group! { name = benches; config = support::criterion(); targets = head_loss }
criterion_main!(benches);
