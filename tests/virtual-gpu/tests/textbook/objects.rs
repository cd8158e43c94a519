//! Recursion, virtual functions, the heap, assertions, the functions for bits and bytes.

use crate::gpu::{Gpu, Random};
use crate::params;
use virtual_gpu::fault::Kind;

fn gpu() -> Gpu {
    Gpu::new(include_str!("../../programs/language.ptx"))
}

#[test]
fn recursion() {
    fn ackermann(m: u32, n: u32) -> u32 {
        match (m, n) {
            (0, n) => n + 1,
            (m, 0) => ackermann(m - 1, 1),
            (m, n) => ackermann(m - 1, ackermann(m, n - 1)),
        }
    }
    let gpu = gpu();
    let (m, n): (Vec<u32>, Vec<u32>) = (0..32).map(|i| (i % 4, i / 10)).unzip();
    let out = gpu.alloc::<u32>(32);
    gpu.run("recursion", 1, 32, params![gpu.upload(&m), gpu.upload(&n), out]);
    let expect: Vec<u32> = m.iter().zip(&n).map(|(m, n)| ackermann(*m, *n)).collect();
    assert_eq!(gpu.download::<u32>(out, 32), expect);

    let mut random = Random(51);
    let mut x: Vec<i32> = (0..64 * 20).map(|_| (random.next() % 100) as i32).collect();
    let px = gpu.upload(&x);
    gpu.run("sort_each", 2, 32, params![px, 20]);
    x.chunks_mut(20).for_each(<[i32]>::sort_unstable);
    assert_eq!(gpu.download::<i32>(px, x.len()), x);
}

#[test]
fn virtual_functions() {
    let gpu = gpu();
    let kind: Vec<i32> = (0..64).map(|i| i / 3 % 2).collect();
    let (area, corners) = (gpu.alloc::<f32>(64), gpu.alloc::<i32>(64));
    gpu.run("shapes", 2, 32, params![gpu.upload(&kind), area, corners]);
    let areas: Vec<f32> =
        kind.iter().enumerate().map(|(i, k)| if *k == 0 { 3.0 * (i * i) as f32 } else { 2.0 * i as f32 }).collect();
    assert_eq!(gpu.download::<f32>(area, 64), areas);
    assert_eq!(gpu.download::<i32>(corners, 64), kind.iter().map(|k| 4 * k).collect::<Vec<_>>());
}

#[test]
fn the_heap() {
    let gpu = gpu();
    let sums = gpu.alloc::<i32>(64);
    gpu.run("lists", 2, 32, params![sums, 5]);
    let expect: Vec<i32> = (0..64).map(|i| i % 32).map(|t| (0..5 + t % 3).map(|v| v * t).sum()).collect();
    assert_eq!(gpu.download::<i32>(sums, 64), expect);
}

#[test]
fn assertions() {
    let gpu = gpu();
    let x: Vec<i32> = (0..32).collect();
    let px = gpu.upload(&x);
    gpu.run("asserted", 1, 32, params![px, 32]);
    let fault = gpu.try_launch("asserted", [1, 1, 1], [32, 1, 1], 0, &params![px, 30]).unwrap_err();
    assert_eq!(fault.kind, Kind::Assert);
    assert_eq!(fault.place.as_ref().unwrap().thread, [30, 0, 0]);
    assert!(fault.what.contains("too large") && fault.what.contains("language.cu"), "{fault}");
}

/// `f` of each byte.
fn bytes(a: u32, b: u32, f: impl Fn(u8, u8) -> u8) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u32::from_le_bytes(std::array::from_fn(|i| f(a[i], b[i])))
}

/// `f` of each half.
fn halves(a: u32, b: u32, f: impl Fn(i16, i16) -> i16) -> u32 {
    let part = |shift: u32| u32::from(f((a >> shift) as i16, (b >> shift) as i16) as u16) << shift;
    part(0) | part(16)
}

#[test]
fn bits_and_bytes() {
    let gpu = gpu();
    let mut random = Random(52);
    let n = 200usize;
    let edges = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x8000_7fff, 0x80_7f_ff_00];
    let mut word = |i: usize| if i < 49 { edges[i % 7] } else { random.next() as u32 };
    let x: Vec<u32> = (0..n).map(&mut word).collect();
    let y: Vec<u32> = (0..n).map(|i| word(i / 7 + if i < 49 { 0 } else { 49 })).collect();
    let out = gpu.alloc::<u32>(22 * n);
    gpu.run("bits", 2, 128, params![gpu.upload(&x), gpu.upload(&y), out, n as i32]);
    let found: Vec<u32> = gpu.download(out, 22 * n);
    for i in 0..n {
        let (a, b) = (x[i], y[i]);
        let pair = (u64::from(b) << 32 | u64::from(a), a.to_le_bytes(), b.to_le_bytes());
        let permuted = [0x5u32, 0x1, 0x7, 0x3].map(|s| (pair.0 >> (8 * s)) as u8);
        let (sa, sb) = (a as i32, b as i32);
        let dot = |a: [i64; 4], b: [i64; 4]| a.iter().zip(b).map(|(x, y)| x * y).sum::<i64>();
        let signed = |v: [u8; 4]| v.map(|x| i64::from(x as i8));
        let unsigned = |v: [u8; 4]| v.map(i64::from);
        let expect: [u32; 22] = [
            a.count_ones() + b.leading_zeros() * 100,
            a.reverse_bits(),
            if a == 0 { 0 } else { a.trailing_zeros() + 1 },
            u32::from_le_bytes(permuted),
            ((u64::from(b) << 32 | u64::from(a)) << (b & 31) >> 32) as u32,
            ((u64::from(b) << 32 | u64::from(a)) >> (a & 63).min(32)) as u32,
            (dot(signed(pair.1), signed(pair.2)) + 7) as u32,
            (dot(unsigned(pair.1), unsigned(pair.2)) + 7) as u32,
            (i64::from(a as i16) * i64::from(b as i8) + i64::from((a >> 16) as i16) * i64::from((b >> 8) as i8) - 1)
                as u32,
            bytes(a, b, u8::wrapping_add),
            halves(a, b, i16::wrapping_sub),
            bytes(a, b, u8::abs_diff),
            (0..4).map(|k| u32::from(pair.1[k].abs_diff(pair.2[k]))).sum(),
            halves(a, b, i16::max),
            bytes(a, b, u8::min),
            bytes(a, b, |x, y| if x > y { 255 } else { 0 }),
            bytes(a, b, |x, y| (u16::from(x) + u16::from(y)).div_ceil(2) as u8),
            halves(a, b, i16::saturating_add),
            sa.abs_diff(sb).wrapping_add(5),
            ((i64::from(sa) + i64::from(sb) + 1) >> 1) as u32,
            ((sa << 8 >> 8).wrapping_mul(sb << 8 >> 8)) as u32,
            ((u64::from(a) * u64::from(b)) >> 32) as u32,
        ];
        let found: Vec<u32> = (0..22).map(|k| found[k * n + i]).collect();
        assert_eq!(found, expect, "{a:#x} {b:#x}");
    }
}

#[test]
fn carries_and_long_divisions() {
    let gpu = gpu();
    let mut random = Random(53);
    let n = 100usize;
    let x: Vec<u64> = (0..n).map(|i| if i < 4 { u64::MAX - i as u64 } else { random.next() }).collect();
    let y: Vec<u64> = (0..n).map(|i| random.next() >> (i % 64)).collect();
    let out = gpu.alloc::<u64>(6 * n);
    gpu.run("wide", 2, 64, params![gpu.upload(&x), gpu.upload(&y), out, n as i32]);
    let found: Vec<u64> = gpu.download(out, 6 * n);
    for i in 0..n {
        let (a, b) = (x[i], y[i]);
        let sum = (u128::from(a) * u128::from(b)).wrapping_add(a.into());
        let expect = [
            sum as u64,
            (sum >> 64) as u64,
            a / (b | 1),
            (a as i64).wrapping_rem((b | 1) as i64) as u64,
            ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64,
            a.rotate_left(b as u32 & 63),
        ];
        assert_eq!((0..6).map(|k| found[k * n + i]).collect::<Vec<_>>(), expect, "{a:#x} {b:#x}");
    }
}
