//! Reduction, scan, transpose, product, histogram, sort, bodies, a persistent kernel.

use crate::gpu::{Gpu, Random};
use crate::params;

#[test]
fn reduction() {
    let gpu = Gpu::new(include_str!("../../programs/reduction.ptx"));
    let mut random = Random(1);
    let n = 10_007;
    let x: Vec<f32> = (0..n).map(|_| (random.next() % 1000) as f32).collect();
    let (px, out) = (gpu.upload(&x), gpu.upload(&[0f32]));
    gpu.run("sum", 7, 256, params![px, out, n]);
    // Whole numbers below 2²⁴ add up exactly in any order.
    assert_eq!(gpu.download::<f32>(out, 1)[0], x.iter().sum::<f32>());

    let x: Vec<i32> = (0..n).map(|_| random.next() as i32).collect();
    let blocks = 40;
    let (px, out) = (gpu.upload(&x), gpu.alloc::<i64>(blocks));
    gpu.run_3d("sum_tree", [blocks as u32, 1, 1], [256, 1, 1], 256 * 8, params![px, out, n]);
    let sums: Vec<i64> = gpu.download(out, blocks);
    let expect: Vec<i64> = (0..blocks).map(|b| x.iter().skip(256 * b).take(256).map(|v| i64::from(*v)).sum()).collect();
    assert_eq!(sums, expect);

    let ends = gpu.upload(&[i32::MAX, i32::MIN]);
    gpu.run("extremes", 40, 256, params![px, ends, ends + 4, n]);
    assert_eq!(gpu.download::<i32>(ends, 2), [*x.iter().min().unwrap(), *x.iter().max().unwrap()]);

    let (a, b): (Vec<f64>, Vec<f64>) =
        (0..n).map(|_| ((random.next() % 64) as f64, (random.next() % 64) as f64)).unzip();
    let (pa, pb, partial, out) = (gpu.upload(&a), gpu.upload(&b), gpu.alloc::<f64>(13), gpu.alloc::<f64>(1));
    for _ in 0..2 {
        gpu.run("dot", 13, 128, params![pa, pb, partial, out, n]);
        assert_eq!(gpu.download::<f64>(out, 1)[0], a.iter().zip(&b).map(|(x, y)| x * y).sum::<f64>());
    }
}

#[test]
fn scan() {
    let gpu = Gpu::new(include_str!("../../programs/scan.ptx"));
    let mut random = Random(2);
    let n: u32 = 512 * 9 + 100;
    let x: Vec<u32> = (0..n).map(|_| random.next() as u32 % 1000).collect();
    let blocks = n.div_ceil(512) as usize;
    let (px, out, totals) = (gpu.upload(&x), gpu.alloc::<u32>(n as usize), gpu.alloc::<u32>(blocks));
    gpu.run("scan_blocks", blocks as u32, 256, params![px, out, totals, n as i32]);
    let (offsets, rest) = (gpu.alloc::<u32>(blocks), gpu.alloc::<u32>(1));
    gpu.run("scan_blocks", 1, 256, params![totals, offsets, rest, blocks as i32]);
    gpu.run("add_offsets", n.div_ceil(256), 256, params![out, offsets, n as i32]);
    let expect: Vec<u32> = x.iter().scan(0, |sum, v| Some(std::mem::replace(sum, *sum + v))).collect();
    assert_eq!(gpu.download::<u32>(out, n as usize), expect);
    assert_eq!(gpu.download::<u32>(rest, 1), [x.iter().sum::<u32>()]);

    let x: Vec<i32> = (0..128).map(|i| i * 7 % 31 - 15).collect();
    let px = gpu.upload(&x);
    gpu.run("scan_warps", 1, 128, params![px]);
    let expect: Vec<i32> = (0..128).map(|i| x[i / 32 * 32..=i].iter().sum()).collect();
    assert_eq!(gpu.download::<i32>(px, 128), expect);
}

#[test]
fn transpose() {
    let gpu = Gpu::new(include_str!("../../programs/transpose.ptx"));
    for (name, conflicts) in [("transpose_padded", false), ("transpose_conflicts", true)] {
        let (width, height) = (100usize, 75usize);
        let x: Vec<f32> = (0..width * height).map(|i| i as f32).collect();
        let (px, out) = (gpu.upload(&x), gpu.alloc::<f32>(x.len()));
        let outcome = gpu.run_3d(name, [4, 3, 1], [32, 8, 1], 0, params![px, out, width as i32, height as i32]);
        let found: Vec<f32> = gpu.download(out, x.len());
        assert!((0..x.len()).all(|i| found[i] == x[i % height * width + i / height]), "{name}");
        assert_eq!(outcome.counters.shared_load.conflicts > 0, conflicts, "{name}");
    }
}

#[test]
fn tiled_product() {
    let gpu = Gpu::new(include_str!("../../programs/product.ptx"));
    let (m, n, k) = (45usize, 37usize, 51usize);
    let mut random = Random(4);
    let mut matrix = |len: usize| -> Vec<i32> { (0..len).map(|_| (random.next() % 21) as i32 - 10).collect() };
    let (a, b) = (matrix(m * k), matrix(k * n));
    let expect: Vec<i32> = (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect();
    let (grid, block) = ([n.div_ceil(16) as u32, m.div_ceil(16) as u32, 1], [16, 16, 1]);
    let singles = |x: &[i32]| gpu.upload(&x.iter().map(|v| *v as f32).collect::<Vec<_>>());
    let c = gpu.alloc::<f32>(m * n);
    gpu.run_3d("product_f32", grid, block, 0, params![singles(&a), singles(&b), c, m as i32, n as i32, k as i32]);
    assert_eq!(gpu.download::<f32>(c, m * n), expect.iter().map(|v| *v as f32).collect::<Vec<_>>());
    let doubles = |x: &[i32]| gpu.upload(&x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    let c = gpu.alloc::<f64>(m * n);
    gpu.run_3d("product_f64", grid, block, 0, params![doubles(&a), doubles(&b), c, m as i32, n as i32, k as i32]);
    assert_eq!(gpu.download::<f64>(c, m * n), expect.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
}

#[test]
fn histogram() {
    let gpu = Gpu::new(include_str!("../../programs/histogram.ptx"));
    let mut random = Random(5);
    let data: Vec<u8> = (0..20_000).map(|_| (random.next() as u8) & (random.next() as u8)).collect();
    let mut expect = vec![0u32; 256];
    data.iter().for_each(|b| expect[usize::from(*b)] += 1);
    let (px, bins) = (gpu.upload(&data), gpu.upload(&[0u32; 256]));
    gpu.run("histogram", 6, 192, params![px, bins, data.len() as u32]);
    assert_eq!(gpu.download::<u32>(bins, 256), expect);
    let bins = gpu.upload(&[0u32; 256]);
    gpu.run("histogram_matched", 40, 128, params![px, bins, data.len() as u32 / 4]);
    assert_eq!(gpu.download::<u32>(bins, 256), expect);
}

#[test]
fn bitonic_sort() {
    let gpu = Gpu::new(include_str!("../../programs/bitonic.ptx"));
    let mut random = Random(6);
    let n = 4096u32;
    let mut x: Vec<u32> = (0..n).map(|_| random.next() as u32).collect();
    let px = gpu.upload(&x);
    gpu.run("sort_blocks", n / 512, 256, params![px]);
    let mut size = 1024;
    while size <= n {
        let mut stride = size / 2;
        while stride > 0 {
            gpu.run("step", n / 512, 256, params![px, size, stride]);
            stride /= 2;
        }
        size *= 2;
    }
    x.sort_unstable();
    assert_eq!(gpu.download::<u32>(px, n as usize), x);
}

#[test]
fn bodies() {
    let gpu = Gpu::new(include_str!("../../programs/nbody.ptx"));
    let mut random = Random(7);
    let n = 300usize;
    let bodies: Vec<f32> = (0..4 * n).map(|i| if i % 4 == 3 { 1.0 } else { random.unit() as f32 }).collect();
    let (px, out) = (gpu.upload(&bodies), gpu.alloc::<f32>(4 * n));
    gpu.run("accelerations", 3, 128, params![px, out, n as i32, 0.01f32]);
    let found: Vec<f32> = gpu.download(out, 4 * n);
    for i in 0..n {
        let mut a = [0f64; 3];
        let mut size = 0f64;
        for j in 0..n {
            let d: [f64; 3] = std::array::from_fn(|c| f64::from(bodies[4 * j + c]) - f64::from(bodies[4 * i + c]));
            let scale = (d.iter().map(|x| x * x).sum::<f64>() + f64::from(0.01f32)).powf(-1.5);
            (0..3).for_each(|c| a[c] += d[c] * scale);
            size += d.iter().map(|x| (x * scale).abs()).sum::<f64>();
        }
        for c in 0..3 {
            // 300 terms, each within a few units of 2⁻²⁴ of itself, added up in single precision.
            let error = (f64::from(found[4 * i + c]) - a[c]).abs();
            assert!(error <= size * 300.0 * 2f64.powi(-24), "body {i}: {error:e}");
        }
    }
}

#[test]
fn persistent_kernel() {
    let gpu = Gpu::new(include_str!("../../programs/persistent.ptx"));
    let n = 5000usize;
    let mut x: Vec<f32> = (0..n).map(|i| if i % 50 == 0 { 1024.0 } else { 0.0 }).collect();
    let (a, b) = (gpu.upload(&x), gpu.alloc::<f32>(n));
    let steps = 4;
    gpu.run("diffuse", 20, 128, params![a, b, n as i32, steps]);
    for _ in 0..steps {
        x = (0..n).map(|i| 0.5 * x[i] + 0.25 * x[(i + n - 1) % n] + 0.25 * x[(i + 1) % n]).collect();
    }
    assert_eq!(gpu.download::<f32>(a, n), x);
}

#[test]
fn ticket_lock() {
    let gpu = Gpu::new(include_str!("../../programs/persistent.ptx"));
    let counter = gpu.upload(&[0u32]);
    gpu.run("locked", 3, 64, params![counter]);
    let expect = (0..192).fold(0u32, |v, _| v.wrapping_mul(3).wrapping_add(1));
    assert_eq!(gpu.download::<u32>(counter, 1), [expect]);
}
