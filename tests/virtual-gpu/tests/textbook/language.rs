//! What the language asks of a compiler: functions, structures, pointers, tables of jumps, local arrays, printf,
//! divergence, atomics, votes.

use crate::gpu::{Gpu, Number, Random};
use crate::params;
use virtual_gpu::fault::Kind;

#[test]
fn structures_by_value() {
    let gpu = Gpu::new(include_str!("../../programs/functions.ptx"));
    let n = 40usize;
    let pairs: Vec<(f64, i32, [u8; 5])> =
        (0..n).map(|i| (i as f64 * 1.5, i as i32 * 3, std::array::from_fn(|j| (i * 5 + j) as u8))).collect();
    let mut bytes = Vec::new();
    for (x, y, tag) in &pairs {
        x.put(&mut bytes);
        y.put(&mut bytes);
        bytes.extend(tag);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let (px, out) = (gpu.upload(&bytes), gpu.upload(&vec![0u8; bytes.len()]));
    gpu.run("structures", 2, 32, params![px, out, n as i32]);
    let found: Vec<u8> = gpu.download(out, bytes.len());
    for (i, row) in found.chunks(24).enumerate() {
        let (a, b) = (pairs[i], pairs[n - 1 - i]);
        assert_eq!(f64::get(&row[..8]), a.0 * 0.5 + b.0);
        assert_eq!(i32::get(&row[8..12]), a.1 - b.1);
        assert!((0..5).all(|j| row[12 + j] == a.2[j] ^ b.2[4 - j]));
    }
}

#[test]
fn pointers_to_functions() {
    let gpu = Gpu::new(include_str!("../../programs/functions.ptx"));
    let x: Vec<i32> = (0..100).collect();
    let px = gpu.upload(&x);
    gpu.run("pointers", 4, 32, params![px, 100]);
    let functions: [fn(i32) -> i32; 3] = [|x| 2 * x, |x| x * x, |x| -x];
    let weights = [1, -2, 3, -4, 5, -6, 7, -8];
    let expect: Vec<i32> = x.iter().map(|&v| functions[v as usize % 3](v) + weights[v as usize % 8]).collect();
    assert_eq!(gpu.download::<i32>(px, 100), expect);
}

#[test]
fn tables_of_jumps() {
    let gpu = Gpu::new(include_str!("../../programs/functions.ptx"));
    let n = 500;
    let op: Vec<i32> = (0..n).map(|i| i * 7 % 11).collect();
    let x: Vec<i32> = (0..n).map(|i| i * 1237 - 300_000).collect();
    let (po, px) = (gpu.upload(&op), gpu.upload(&x));
    gpu.run("jumps", 4, 128, params![po, px, n]);
    let expect: Vec<i32> = op
        .iter()
        .zip(&x)
        .map(|(op, &v)| match op {
            0 => v + 10,
            1 => v - 20,
            2 => v * 30,
            3 => v / 7,
            4 => v % 11,
            5 => v ^ 0x55,
            6 => v << 3,
            7 => v >> 2,
            8 => !v,
            _ => 0,
        })
        .collect();
    assert_eq!(gpu.download::<i32>(px, n as usize), expect);
}

#[test]
fn arrays_in_local_memory() {
    let gpu = Gpu::new(include_str!("../../programs/functions.ptx"));
    let mut random = Random(3);
    let mut x: Vec<i16> = (0..64 * 16).map(|_| random.next() as i16).collect();
    let px = gpu.upload(&x);
    gpu.run("local_sort", 2, 32, params![px]);
    x.chunks_mut(16).for_each(<[i16]>::sort_unstable);
    assert_eq!(gpu.download::<i16>(px, x.len()), x);
}

#[test]
fn printf() {
    let gpu = Gpu::new(include_str!("../../programs/functions.ptx"));
    let output = gpu.run("hello", 1, 32, params![3]).output;
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    let expect: Vec<String> = (0..3i64)
        .map(|t| {
            let letter = (b'a' + t as u8) as char;
            format!(
                "thread {t} of 32: {:5.2} text {letter} {:x} {} %",
                t as f64 * 0.25,
                255u32 << t,
                -1_234_567_890_123 * t
            )
        })
        .collect();
    assert_eq!(lines, expect);
    let px = gpu.upload(&[1, 2, 300, 4]);
    let fault = gpu.try_launch("checked", [1, 1, 1], [4, 1, 1], 0, &params![px, 100]).unwrap_err();
    assert_eq!(fault.kind, Kind::Trap);
    let place = fault.place.unwrap();
    assert_eq!(place.thread, [2, 0, 0]);
    let (file, line) = place.source.unwrap();
    let source = include_str!("../../programs/functions.cu").lines().nth(line as usize - 1).unwrap();
    assert!(file.ends_with("functions.cu") && source.contains("__trap()"), "{file}:{line}: {source}");
}

#[test]
fn divergent_loops() {
    let gpu = Gpu::new(include_str!("../../programs/divergence.ptx"));
    let x: Vec<u32> = (1..=500).map(|i| i * 37 % 1000 + 1).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<u32>(500));
    let outcome = gpu.run("collatz", 4, 128, params![px, out, 500]);
    let steps = |mut v: u64| {
        let mut n = 0;
        while v > 1 {
            v = if v % 2 == 1 { 3 * v + 1 } else { v / 2 };
            n += 1;
        }
        n
    };
    assert_eq!(gpu.download::<u32>(out, 500), x.iter().map(|v| steps((*v).into())).collect::<Vec<u32>>());
    assert!(outcome.counters.divergent_branches > 100);

    let (width, height) = (70, 50);
    let out = gpu.alloc::<u8>(width * height);
    gpu.run_3d("mandelbrot", [5, 7, 1], [16, 8, 1], 0, params![out, width as i32, height as i32]);
    let found: Vec<u8> = gpu.download(out, width * height);
    let inside = found.iter().filter(|v| **v == 100).count();
    for (i, v) in found.iter().enumerate() {
        let (cx, cy) =
            (-2.0 + 3.0 * (i % width) as f64 / width as f64, -1.2 + 2.4 * (i / width) as f64 / height as f64);
        let (mut x, mut y, mut n) = (0f64, 0f64, 0);
        while n < 12 && x * x + y * y < 4.0 {
            (x, y) = (x * x - y * y + cx, 2.0 * x * y + cy);
            n += 1;
        }
        // Few steps leave no room for rounding to tell.
        assert!(*v == n || n == 12 && *v >= 12, "pixel {i}: {v} and {n}");
    }
    assert!((300..1200).contains(&inside), "{inside}");
}

#[test]
fn nested_loops_left_early() {
    let gpu = Gpu::new(include_str!("../../programs/divergence.ptx"));
    let x: Vec<i32> = (0..20).map(|i| i * i + 1).collect();
    let targets: Vec<i32> = (0..64).map(|i| if i % 5 == 0 { -1 } else { x[i % 20] + x[(i * 3 + 1) % 20] }).collect();
    let (px, pt, out) = (gpu.upload(&x), gpu.upload(&targets), gpu.alloc::<i32>(128));
    gpu.run("search", 2, 32, params![px, 20, pt, out]);
    let expect: Vec<i32> = targets
        .iter()
        .flat_map(|t| {
            let pairs = (0..20).flat_map(|i| (i + 1..20).map(move |j| (i, j)));
            let found = pairs.into_iter().find(|(i, j)| x[*i] + x[*j] == *t);
            found.map_or([-1, -1], |(i, j)| [i as i32, j as i32])
        })
        .collect();
    assert_eq!(gpu.download::<i32>(out, 128), expect);
}

#[test]
fn producers_and_consumers() {
    let gpu = Gpu::new(include_str!("../../programs/divergence.ptx"));
    let rounds = 9;
    let x: Vec<i32> = (0..64 * rounds).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<i32>(x.len()));
    gpu.run("pipeline", 1, 128, params![px, out, rounds]);
    let expect: Vec<i32> = (0..x.len()).map(|i| x[i / 64 * 64 + 63 - i % 64] * 2 + 1).collect();
    assert_eq!(gpu.download::<i32>(out, x.len()), expect);
}

#[test]
fn votes_and_shuffles() {
    let gpu = Gpu::new(include_str!("../../programs/divergence.ptx"));
    let x: Vec<i32> = (0..128).map(|i| if i < 64 { i * 3 } else { i - 90 - i / 96 * 200 }).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<u32>(128));
    gpu.run("votes", 1, 128, params![px, out]);
    let found: Vec<u32> = gpu.download(out, 128);
    for (w, warp) in x.chunks(32).enumerate() {
        let (any, all) = (warp.iter().any(|v| *v < 0), warp.iter().all(|v| *v > -100));
        let (sum, least) = (warp.iter().sum::<i32>() as u32, *warp.iter().min().unwrap() as u32);
        let same = warp.iter().all(|v| v / 1000 == warp[0] / 1000);
        for (lane, v) in found[32 * w..][..32].iter().enumerate() {
            let r = u32::from(any) | u32::from(all) << 1;
            let matched = if same { u32::MAX.wrapping_add(1) } else { 0 };
            let expect = r
                .wrapping_add(sum.wrapping_mul(16))
                .wrapping_add(least.wrapping_mul(7))
                .wrapping_add(matched)
                .wrapping_add(warp[lane ^ 5] as u32);
            assert_eq!(*v, expect, "warp {w} lane {lane}");
        }
    }
}

#[test]
fn atomics() {
    let gpu = Gpu::new(include_str!("../../programs/atomics.ptx"));
    let n = 512u32;
    let u = gpu.upload(&[0u32, 1_000_000, 0, u32::MAX, 0, 0, u32::MAX, 0, 0]);
    let (s, l) = (gpu.upload(&[0i32, i32::MIN, i32::MAX]), gpu.upload(&[0u64; 3]));
    gpu.run("integers", 4, 128, params![u, s, l]);
    let hash = |i: u32| i * 7919 % 1_000_003;
    let all = 0..n;
    let sum: u32 = all.clone().sum();
    // Five hundred and twelve steps round a circle of a hundred; down from 0 goes to 99.
    let expect = [
        sum,
        1_000_000 - sum,
        all.clone().map(hash).max().unwrap(),
        all.clone().map(hash).min().unwrap(),
        512 % 100,
        100 - 512 % 100,
        !(u32::MAX >> 1),
        (1 << 29) - 1,
        all.clone().fold(0, |a, b| a ^ b),
    ];
    assert_eq!(gpu.download::<u32>(u, 9), expect);
    assert_eq!(gpu.download::<i32>(s, 3), [-(sum as i32), 500, 500 - 511]);
    let expect = [
        all.clone().map(|i| 1u64 << (i % 40)).sum(),
        511u64 << 33,
        all.fold(0, |a, i| a ^ u64::from((i * i) as i32 as u32)),
    ];
    assert_eq!(gpu.download::<u64>(l, 3), expect);

    let (p, d) = (gpu.upload(&[1u32]), gpu.upload(&[0f64]));
    gpu.run("products", 2, 32, params![p, d]);
    let once = (0..32u32).fold(1u32, |a, t| a.wrapping_mul(2 * t + 1));
    assert_eq!(gpu.download::<u32>(p, 1), [once.wrapping_mul(once)]);
    assert_eq!(gpu.download::<f64>(d, 1), [15.5]);

    let (f, d) = (gpu.upload(&[0f32; 4]), gpu.upload(&[0f64]));
    let h = gpu.upload(&[half::f16::ZERO; 2]);
    gpu.run("floats", 4, 128, params![f, d, h]);
    assert_eq!(gpu.download::<f32>(f, 4), [64.0; 4]);
    assert_eq!(gpu.download::<f64>(d, 1), [64.0]);
    assert_eq!(gpu.download::<half::f16>(h, 2), [half::f16::from_f32(512.0), half::f16::from_f32(1024.0)]);

    let x: Vec<i32> = (0..1000).map(|i| i * 13 % 777).collect();
    let kept: Vec<i32> = x.iter().copied().filter(|v| v % 3 == 0).collect();
    let (px, out, count) = (gpu.upload(&x), gpu.alloc::<i32>(1000), gpu.upload(&[0i32]));
    gpu.run("compact", 8, 128, params![px, out, count, 1000]);
    assert_eq!(gpu.download::<i32>(count, 1), [kept.len() as i32]);
    let mut found: Vec<i32> = gpu.download(out, kept.len());
    let mut kept = kept;
    found.sort_unstable();
    kept.sort_unstable();
    assert_eq!(found, kept);
}
