//! What models and their data bring.

use std::collections::VecDeque;

use half::f16;

use crate::gpu::{Gpu, Random};
use crate::params;

fn gpu() -> Gpu {
    Gpu::new(include_str!("../../programs/rows.ptx"))
}

#[test]
fn a_vector_through_a_matrix_of_halves() {
    let (gpu, mut random) = (gpu(), Random(51));
    let (rows, cols) = (13usize, 150usize);
    // Sums of a few small integers: exact in half precision.
    let mut small =
        |n: usize| -> Vec<f16> { (0..n).map(|_| f16::from_f32((random.next() % 7) as f32 - 3.0)).collect() };
    let (a, x) = (small(rows * cols), small(cols));
    let (pa, px, y) = (gpu.upload(&a), gpu.upload(&x), gpu.alloc::<f32>(rows));
    gpu.run("gemv", 4, 128, params![pa, px, y, rows as i32, cols as i32 / 2]);
    let dot = |row: &[f16]| row.iter().zip(&x).map(|(a, x)| a.to_f32() * x.to_f32()).sum::<f32>();
    assert_eq!(gpu.download::<f32>(y, rows), a.chunks(cols).map(dot).collect::<Vec<_>>());
}

#[test]
fn bytes_and_their_product() {
    let (gpu, mut random) = (gpu(), Random(52));
    let (rows, cols) = (9usize, 72usize);
    let x: Vec<f32> = (0..rows * cols).map(|_| random.unit() as f32 * 5.0).collect();
    let (px, q, scale) = (gpu.upload(&x), gpu.alloc::<u8>(rows * cols), gpu.alloc::<f32>(rows));
    gpu.run("quantize", rows as u32, 32, params![px, q, scale, cols as i32]);
    let (bytes, scales) = (gpu.download::<u8>(q, rows * cols), gpu.download::<f32>(scale, rows));
    for (i, (byte, v)) in bytes.iter().zip(&x).enumerate() {
        let row = &x[i / cols * cols..][..cols];
        let most = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert_eq!(scales[i / cols], most / 127.0);
        assert_eq!(*byte as i8, (v * (127.0 / most)).round_ties_even() as i8, "element {i}");
    }
    let c = gpu.alloc::<i32>(rows * rows);
    gpu.run_3d("byte_product", [1, rows as u32, 1], [32, 1, 1], 0, params![q, q, c, rows as i32, cols as i32 / 4]);
    let line = |i: usize| bytes[i * cols..][..cols].iter().map(|b| i32::from(*b as i8));
    for (i, found) in gpu.download::<i32>(c, rows * rows).into_iter().enumerate() {
        assert_eq!(found, line(i / rows).zip(line(i % rows)).map(|(a, b)| a * b).sum::<i32>());
    }
}

#[test]
fn sparse_rows() {
    let (gpu, mut random) = (gpu(), Random(53));
    let rows = 37usize;
    let (mut start, mut col, mut value) = (vec![0i32], Vec::new(), Vec::new());
    for row in 0..rows {
        for _ in 0..row * row % 29 {
            col.push((random.next() % 50) as i32);
            value.push((random.next() % 9) as f32 - 4.0);
        }
        start.push(col.len() as i32);
    }
    let x: Vec<f32> = (0..50).map(|i| i as f32 - 20.0).collect();
    let (ps, pc, pv) = (gpu.upload(&start), gpu.upload(&col), gpu.upload(&value));
    let (px, y) = (gpu.upload(&x), gpu.alloc::<f32>(rows));
    gpu.run("spmv", 3, 128, params![ps, pc, pv, px, y, rows as i32]);
    let entries = |row: usize| start[row] as usize..start[row + 1] as usize;
    let sum = |row: usize| entries(row).map(|i| value[i] * x[col[i] as usize]).sum::<f32>();
    assert_eq!(gpu.download::<f32>(y, rows), (0..rows).map(sum).collect::<Vec<_>>());
}

#[test]
fn clusters_around_constant_centres() {
    let (gpu, mut random) = (gpu(), Random(54));
    let (n, k) = (500usize, 5usize);
    let centres: Vec<f32> = (0..16).map(|i| (i * 37 % 100) as f32 + 0.25).collect();
    gpu.set("centres", &centres);
    let points: Vec<f32> = (0..2 * n).map(|_| (random.next() % 100) as f32).collect();
    let (pp, nearest) = (gpu.upload(&points), gpu.alloc::<i32>(n));
    let (sums, counts) = (gpu.upload(&vec![0i32; 2 * k]), gpu.upload(&vec![0i32; k]));
    gpu.run("clusters", 3, 64, params![pp, n as i32, k as i32, nearest, sums, counts]);
    let (mut sum, mut count) = (vec![0i32; 2 * k], vec![0i32; k]);
    let found = gpu.download::<i32>(nearest, n);
    for (p, found) in points.chunks(2).zip(&found) {
        // Coordinates with two bits after the point: distances are exact.
        let distance = |c: usize| (p[0] - centres[2 * c]).powi(2) + (p[1] - centres[2 * c + 1]).powi(2);
        let best = (1..k).fold(0, |best, c| if distance(c) < distance(best) { c } else { best });
        assert_eq!(*found as usize, best);
        sum[2 * best] += p[0] as i32;
        sum[2 * best + 1] += p[1] as i32;
        count[best] += 1;
    }
    assert_eq!((gpu.download::<i32>(sums, 2 * k), gpu.download::<i32>(counts, k)), (sum, count));
}

#[test]
fn mean_and_variance_in_one_pass() {
    let (gpu, mut random) = (gpu(), Random(55));
    let (rows, cols) = (4usize, 333usize);
    let x: Vec<f32> = (0..rows * cols).map(|_| random.unit() as f32 + 3.0).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<f32>(2 * rows));
    gpu.run("moments", rows as u32, 128, params![px, out, cols as i32]);
    for (row, found) in x.chunks(cols).zip(gpu.download::<f32>(out, 2 * rows).chunks(2)) {
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / cols as f64;
        let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / cols as f64;
        // A thread joins 3 elements, then 5 and 3 partial results are joined: 11 steps of at most 4 roundings each of
        // numbers below 4 (the mean) and below the variance.
        let unit = f64::from(f32::EPSILON) / 2.0;
        assert!((f64::from(found[0]) - mean).abs() <= 44.0 * unit * 4.0, "{} {mean}", found[0]);
        // An error of the means moves a squared distance of at most 2 by twice that distance times itself.
        assert!((f64::from(found[1]) - variance).abs() <= 44.0 * unit * (variance + 2.0 * 2.0 * 4.0), "{variance}");
    }
}

#[test]
fn paths_in_more_shared_memory_than_blocks_have_unasked() {
    let (gpu, mut random) = (gpu(), Random(56));
    let n = 120usize;
    let mut d: Vec<f32> =
        (0..n * n).map(|_| if random.next() % 20 == 0 { (random.next() % 50) as f32 } else { 1e9 }).collect();
    (0..n).for_each(|i| d[i * n + i] = 0.0);
    let pd = gpu.upload(&d);
    let bytes = 4 * (n * n) as u32;
    assert!(bytes > 48 << 10);
    gpu.run_3d("paths", [1, 1, 1], [256, 1, 1], bytes, params![pd, n as i32]);
    for k in 0..n {
        for i in 0..n {
            for j in 0..n {
                d[i * n + j] = d[i * n + j].min(d[i * n + k] + d[k * n + j]);
            }
        }
    }
    assert_eq!(gpu.download::<f32>(pd, n * n), d);
}

#[test]
fn a_graph_level_by_level() {
    let (gpu, mut random) = (gpu(), Random(57));
    let n = 300usize;
    let (mut start, mut edge) = (vec![0i32], Vec::new());
    for _ in 0..n {
        edge.extend((0..random.next() % 4).map(|_| (random.next() % n as u64) as i32));
        start.push(edge.len() as i32);
    }
    let mut depth = vec![-1i32; n];
    depth[0] = 0;
    let (ps, pe, pd) = (gpu.upload(&start), gpu.upload(&edge), gpu.upload(&depth));
    let (mut front, mut next) = (gpu.upload(&vec![0i32; n]), gpu.upload(&vec![0i32; n]));
    let (mut size, mut now) = (1, 0);
    while size > 0 {
        now += 1;
        let count = gpu.upload(&[0i32]);
        gpu.run("level", 3, 128, params![ps, pe, pd, now, front, size, next, count]);
        size = gpu.download::<i32>(count, 1)[0];
        (front, next) = (next, front);
    }
    let mut queue = VecDeque::from([0usize]);
    while let Some(v) = queue.pop_front() {
        for &to in &edge[start[v] as usize..start[v + 1] as usize] {
            if depth[to as usize] == -1 {
                depth[to as usize] = depth[v] + 1;
                queue.push_back(to as usize);
            }
        }
    }
    assert!(depth.iter().filter(|d| **d > 2).count() > 50, "the graph has levels");
    assert_eq!(gpu.download::<i32>(pd, n), depth);
}
