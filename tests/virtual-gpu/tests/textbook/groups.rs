//! Cooperative groups, through the toolkit's headers.

use crate::gpu::{Gpu, Random};
use crate::params;

fn gpu() -> Gpu {
    Gpu::new(include_str!("../../programs/groups.ptx"))
}

#[test]
fn softmax_by_tiles_of_a_warp() {
    let gpu = gpu();
    let mut random = Random(21);
    let (rows, cols) = (13usize, 50usize);
    let x: Vec<f32> = (0..rows * cols).map(|_| 8.0 * random.unit() as f32).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<f32>(x.len()));
    gpu.run("softmax", 4, 64, params![px, out, rows as i32, cols as i32]);
    let found: Vec<f32> = gpu.download(out, x.len());
    for (x, found) in x.chunks(cols).zip(found.chunks(cols)) {
        let most = x.iter().fold(f32::MIN, |a, b| a.max(*b));
        let powers: Vec<f64> = x.iter().map(|v| f64::from(v - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        for (p, f) in powers.iter().zip(found) {
            // Each of the two powers is off by the rounding of its argument of up to 24 in binary logarithms, 12 units of
            // 2⁻²⁴, and the approximation's 2⁻²²; the sum by 50 roundings; the quotient by 2 units.
            let bound = (2.0 * (24.0 + 4.0) + 50.0 + 2.0) * 2f64.powi(-24);
            assert!((f64::from(*f) - p / sum).abs() <= p / sum * bound, "{f} {}", p / sum);
        }
    }
}

#[test]
fn scans_that_start_again() {
    let gpu = gpu();
    let mut random = Random(22);
    let n = 128;
    let x: Vec<i32> = (0..n).map(|_| (random.next() % 100) as i32).collect();
    let heads: Vec<u8> = (0..n).map(|_| u8::from(random.next().is_multiple_of(5))).collect();
    let out = gpu.alloc::<i32>(n);
    gpu.run("segmented_scan", 2, 64, params![gpu.upload(&x), gpu.upload(&heads), out]);
    let mut sum = 0;
    let expect: Vec<i32> = (0..n)
        .map(|i| {
            sum = if heads[i] != 0 || i % 32 == 0 { x[i] } else { sum + x[i] };
            sum
        })
        .collect();
    assert_eq!(gpu.download::<i32>(out, n), expect);
    let (inclusive, exclusive) = (gpu.alloc::<i32>(n), gpu.alloc::<i32>(n));
    gpu.run("scans", 2, 64, params![gpu.upload(&x), inclusive, exclusive]);
    let sums: Vec<i32> = (0..n).map(|i| x[i / 8 * 8..=i].iter().sum()).collect();
    assert_eq!(gpu.download::<i32>(exclusive, n), sums.iter().zip(&x).map(|(s, x)| s - x).collect::<Vec<_>>());
    assert_eq!(gpu.download::<i32>(inclusive, n), sums);
}

#[test]
fn coalesced_and_labelled_groups() {
    let gpu = gpu();
    let mut random = Random(23);
    let n = 1000;
    let x: Vec<i32> = (0..n).map(|_| (random.next() % 1000) as i32).collect();
    let (out, count) = (gpu.upload(&vec![0i32; n]), gpu.upload(&[0i32]));
    gpu.run("filter", 3, 96, params![gpu.upload(&x), n as i32, out, count]);
    let mut expect: Vec<i32> = x.iter().copied().filter(|v| v % 3 == 0).collect();
    let mut found: Vec<i32> = gpu.download(out, gpu.download::<i32>(count, 1)[0] as usize);
    expect.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expect);

    let n = 256;
    let key: Vec<u32> = (0..n).map(|_| random.next() as u32 % 7).collect();
    let value: Vec<u32> = (0..n).map(|_| random.next() as u32 % 1000).collect();
    let sums = gpu.upload(&[0u32; 7]);
    gpu.run("by_key", 2, 128, params![gpu.upload(&key), gpu.upload(&value), sums]);
    let mut expect = [0; 7];
    key.iter().zip(&value).for_each(|(k, v)| expect[*k as usize] += v);
    assert_eq!(gpu.download::<u32>(sums, 7), expect);

    let out = gpu.alloc::<i32>(4);
    gpu.run("halves_of_a_warp", 1, 64, params![out]);
    assert_eq!(gpu.download::<i32>(out, 4), [240, 31, 752, 63]);
}

#[test]
fn the_whole_grid_meets() {
    let gpu = gpu();
    let n = 1000usize;
    let mut x: Vec<f32> = (0..n).map(|i| if i % 50 == 0 { 1024.0 } else { 0.0 }).collect();
    let (a, b) = (gpu.upload(&x), gpu.alloc::<f32>(n));
    gpu.run_together("jacobi", 7, 64, params![a, b, n as i32, 4]);
    for _ in 0..4 {
        x = (0..n).map(|i| 0.5 * (x[(i + n - 1) % n] + x[(i + 1) % n])).collect();
    }
    assert_eq!(gpu.download::<f32>(a, n), x);
}

#[test]
fn groups_of_several_warps() {
    let gpu = gpu();
    let mut random = Random(29);
    let n = 256usize;
    let x: Vec<i32> = (0..n).map(|_| (random.next() % 1000) as i32).collect();
    let (px, sums, places) = (gpu.upload(&x), gpu.alloc::<i32>(3 * n / 64), gpu.alloc::<i32>(n));
    gpu.run("wide_tiles", 2, 128, params![px, sums, places]);
    let expect = x.chunks(64).flat_map(|tile| (0..3).map(move |round| tile.iter().sum::<i32>() + 64 * round));
    assert_eq!(gpu.download::<i32>(sums, 3 * n / 64), expect.collect::<Vec<_>>());
    let place = |i: usize| {
        let (tile, block) = (&x[i / 64 * 64..][..64], &x[i / 128 * 128..][..128]);
        let most = block.iter().max().unwrap();
        x[i / 64 * 64..i].iter().sum::<i32>() + if tile.contains(most) { 1000 } else { 0 }
    };
    assert_eq!(gpu.download::<i32>(places, n), (0..n).map(place).collect::<Vec<_>>());
}
