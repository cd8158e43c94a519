//! Matrix products as tuned ones are written.

use crate::gpu::{Gpu, Random};
use crate::params;

/// Small whole numbers: sums of their products are exact in single precision.
fn whole(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| (random.next() % 17) as f32 - 8.0).collect()
}

fn product(a: &[f32], b: &[f32], n: usize, k: usize) -> Vec<f32> {
    let m = a.len() / k;
    (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
}

#[test]
fn double_buffered_tiles() {
    let gpu = Gpu::new(include_str!("../../programs/sgemm.ptx"));
    let mut random = Random(11);
    for (m, n, k) in [(128usize, 64usize, 48usize), (65, 70, 33), (1, 5, 3)] {
        let (a, b, c) = (whole(&mut random, m * k), whole(&mut random, k * n), whole(&mut random, m * n));
        let (pa, pb, pc) = (gpu.upload(&a), gpu.upload(&b), gpu.upload(&c));
        let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
        let sizes = params![m as i32, n as i32, k as i32, 2.0f32, pa, pb, -1.0f32, pc];
        gpu.run_3d("sgemm", grid, [256, 1, 1], 0, sizes);
        let expect: Vec<f32> = product(&a, &b, n, k).iter().zip(&c).map(|(p, c)| 2.0 * p - c).collect();
        assert_eq!(gpu.download::<f32>(pc, m * n), expect, "{m}×{n}×{k}");
    }
}

#[test]
fn stages_of_asynchronous_copies() {
    let gpu = Gpu::new(include_str!("../../programs/sgemm.ptx"));
    let mut random = Random(12);
    let (m, n, k) = (64, 96, 128);
    let (a, b) = (whole(&mut random, m * k), whole(&mut random, k * n));
    let (pa, pb, pc) = (gpu.upload(&a), gpu.upload(&b), gpu.alloc::<f32>(m * n));
    gpu.run_3d("staged", [3, 2, 1], [32, 8, 1], 6 * 32 * 32 * 4, params![k as i32, n as i32, pa, pb, pc]);
    assert_eq!(gpu.download::<f32>(pc, m * n), product(&a, &b, n, k));
}
