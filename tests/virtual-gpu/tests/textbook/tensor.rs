//! Products on tensor cores.

use half::{bf16, f16};

use crate::gpu::{Gpu, Random};
use crate::params;

fn small(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| (random.next() % 9) as f32 - 4.0).collect()
}

#[test]
fn wmma() {
    let gpu = Gpu::new(include_str!("../../programs/tensor.ptx"));
    let mut random = Random(1);
    let (m, n, k) = (32usize, 48usize, 64usize);
    let (a, b) = (small(&mut random, m * k), small(&mut random, k * n));
    let halves = |x: &[f32]| gpu.upload(&x.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>());
    let c = gpu.alloc::<f32>(m * n);
    let grid = [n as u32 / 16, m as u32 / 16, 1];
    let outcome =
        gpu.run_3d("wmma_product", grid, [32, 1, 1], 0, params![halves(&a), halves(&b), c, n as i32, k as i32]);
    let expect: Vec<f32> =
        (0..m * n).map(|i| 0.5 * (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum::<f32>()).collect();
    assert_eq!(gpu.download::<f32>(c, m * n), expect);
    assert_eq!(outcome.counters.tensor_fma, (m * n * k) as u64);
}

#[test]
fn mma_behind_a_pipeline_of_copies() {
    let gpu = Gpu::new(include_str!("../../programs/tensor.ptx"));
    let mut random = Random(2);
    for k in [32usize, 64, 160] {
        let (m, n) = (128usize, 96usize);
        let (a, b) = (small(&mut random, m * k), small(&mut random, n * k));
        let brains = |x: &[f32]| gpu.upload(&x.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>());
        let c = gpu.alloc::<f32>(m * n);
        let grid = [n as u32 / 32, m as u32 / 64, 1];
        let outcome =
            gpu.run_3d("mma_product", grid, [128, 1, 1], 0, params![brains(&a), brains(&b), c, n as i32, k as i32]);
        let expect: Vec<f32> = (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum()).collect();
        assert_eq!(gpu.download::<f32>(c, m * n), expect);
        assert_eq!(outcome.counters.tensor_fma, (m * n * k) as u64);
    }
}
