//! Transforms, pictures, random numbers.

use crate::gpu::{Gpu, Random};
use crate::params;

fn gpu() -> Gpu {
    Gpu::new(include_str!("../../programs/signals.ptx"))
}

#[test]
fn fourier_transform() {
    let gpu = gpu();
    let mut random = Random(41);
    let n = 128usize;
    let x: Vec<f32> = (0..2 * 2 * n).map(|_| random.unit() as f32).collect();
    let out = gpu.alloc::<f32>(x.len());
    gpu.run_3d("fft", [2, 1, 1], [48, 1, 1], 2 * 8 * n as u32, params![gpu.upload(&x), out, n as i32, -1.0f32]);
    let found: Vec<f32> = gpu.download(out, x.len());
    for (x, found) in x.chunks(2 * n).zip(found.chunks(2 * n)) {
        for f in 0..n {
            let (mut re, mut im) = (0f64, 0f64);
            for t in 0..n {
                let (s, c) = (-2.0 * std::f64::consts::PI * ((f * t) % n) as f64 / n as f64).sin_cos();
                let (a, b) = (f64::from(x[2 * t]), f64::from(x[2 * t + 1]));
                re += a * c - b * s;
                im += a * s + b * c;
            }
            // Seven stages, each a rounding of a sum and a product with a factor off by 2 units, of values up to 128·√2.
            let bound = 7.0 * 6.0 * 182.0 * 2f64.powi(-24);
            let error = (f64::from(found[2 * f]) - re).abs().max((f64::from(found[2 * f + 1]) - im).abs());
            assert!(error <= bound, "frequency {f}: {error:e}");
        }
    }
}

/// A picture with its edges continued.
fn at(image: &[u8], width: i32, height: i32, x: i32, y: i32) -> u8 {
    image[(y.clamp(0, height - 1) * width + x.clamp(0, width - 1)) as usize]
}

#[test]
fn convolution_and_median() {
    let gpu = gpu();
    let mut random = Random(42);
    let (width, height) = (37i32, 29i32);
    let len = (width * height) as usize;
    let image: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    let weights: Vec<f32> = (0..25).map(|i| (i % 7) as f32 - 3.0).collect();
    gpu.set("weights", &weights);
    let (px, out) = (gpu.upload(&image), gpu.alloc::<f32>(len));
    gpu.run_3d("convolve", [3, 2, 1], [16, 16, 1], 0, params![px, out, width, height]);
    let places: Vec<(i32, i32)> = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).collect();
    let window = |x: i32, y: i32, r: i32| {
        let side = 2 * r + 1;
        let image = &image;
        (0..side * side).map(move |i| at(image, width, height, x + i % side - r, y + i / side - r))
    };
    let sums = places.iter().map(|&(x, y)| window(x, y, 2).zip(&weights).map(|(v, w)| w * f32::from(v)).sum::<f32>());
    assert_eq!(gpu.download::<f32>(out, len), sums.collect::<Vec<_>>());
    let out = gpu.alloc::<u8>(len);
    gpu.run_3d("median", [3, 4, 1], [16, 8, 1], 0, params![px, out, width, height]);
    let medians = places.iter().map(|&(x, y)| {
        let mut v: Vec<u8> = window(x, y, 1).collect();
        v.sort_unstable();
        v[4]
    });
    assert_eq!(gpu.download::<u8>(out, len), medians.collect::<Vec<_>>());
}

#[test]
fn mandelbrot_in_doubles() {
    let gpu = gpu();
    let (width, height, limit) = (50i32, 31i32, 80i32);
    let (cx, cy, scale) = (-0.75f64, 0.1f64, 0.04f64);
    let out = gpu.alloc::<u16>((width * height) as usize);
    gpu.run_3d("mandelbrot", [4, 8, 1], [16, 4, 1], 0, params![out, width, height, cx, cy, scale, limit]);
    let found: Vec<u16> = gpu.download(out, (width * height) as usize);
    for (i, found) in found.iter().enumerate() {
        let (x, y) = (i as i32 % width, i as i32 / width);
        // The compiler fuses multiplications and additions.
        let (a, b) = (f64::from(x - width / 2).mul_add(scale, cx), f64::from(y - height / 2).mul_add(scale, cy));
        let (mut u, mut v, mut n) = (0f64, 0f64, 0);
        while n < limit && u.mul_add(u, v * v) <= 4.0 {
            let t = u.mul_add(u, -(v * v)) + a;
            v = (2.0 * u).mul_add(v, b);
            u = t;
            n += 1;
        }
        assert_eq!(i32::from(*found), n, "point ({x}, {y})");
    }
}

#[test]
fn philox_random_numbers() {
    let gpu = gpu();
    let n = 100usize;
    let (words, uniform) = (gpu.alloc::<u32>(4 * n), gpu.alloc::<f32>(n));
    let seed = 0x1234_5678_9abc_def0u64;
    gpu.run("philox", 1, 128, params![words, uniform, seed, n as i32]);
    let (words, uniform): (Vec<u32>, Vec<f32>) = (gpu.download(words, 4 * n), gpu.download(uniform, n));
    for i in 0..n {
        let mut c = [i as u32, 0, 0, 0];
        let mut k = [seed as u32, (seed >> 32) as u32];
        for _ in 0..10 {
            let (p, q) = (0xD251_1F53u64 * u64::from(c[0]), 0xCD9E_8D57u64 * u64::from(c[2]));
            c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        assert_eq!(words[4 * i..4 * i + 4], c);
        assert_eq!(uniform[i], (c[0] >> 8) as f32 / (1 << 24) as f32);
    }
}
