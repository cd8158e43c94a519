//! Half precision, the math library, integers of all widths.

use half::{bf16, f16};

use crate::gpu::{Gpu, Random};
use crate::params;

#[test]
fn halves() {
    let gpu = Gpu::new(include_str!("../../programs/half.ptx"));
    let mut random = Random(1);
    let n = 256usize;
    let mut values = || -> Vec<f16> { (0..n).map(|_| f16::from_f64(random.unit() * 10.0)).collect() };
    let (x, y) = (values(), values());
    let (px, py, out) = (gpu.upload(&x), gpu.upload(&y), gpu.alloc::<f16>(10 * n));
    gpu.run("halves", 2, 128, params![px, py, out, n as i32]);
    let found: Vec<f16> = gpu.download(out, 10 * n);
    for i in 0..n {
        let (a, b) = (x[i].to_f64(), y[i].to_f64());
        // A double holds sums and products of halves exactly (and a product plus a half).
        let expect = [
            a + b,
            a - b,
            a * b,
            a * b + a,
            a.max(b),
            a.min(b),
            a.abs(),
            if a < b { a } else { b },
            a * 3.0,
            b.trunc(),
        ];
        for (j, v) in expect.iter().enumerate() {
            assert_eq!(found[j * n + i], f16::from_f64(*v), "result {j} of {a} and {b}");
        }
    }

    let (out, pairs) = (gpu.alloc::<f16>(7 * n), n / 2);
    gpu.run("pairs", 1, 128, params![px, py, out, pairs as i32]);
    let found: Vec<f16> = gpu.download(out, 7 * n);
    for i in 0..n {
        let (a, b) = (x[i].to_f64(), y[i].to_f64());
        let expect = [
            a + b,
            a * b + b,
            (a * b).clamp(0.0, 1.0),
            a.max(b),
            f64::from(u8::from(a > b)),
            -x[i ^ 1].to_f64(),
            (a * b + a).max(0.0),
        ];
        for (j, v) in expect.iter().enumerate() {
            assert_eq!(found[j * n + i], f16::from_f64(*v), "pair {j} of {a} and {b}");
        }
    }

    let x: Vec<bf16> = x.iter().map(|v| bf16::from_f32(v.to_f32())).collect();
    let y: Vec<bf16> = y.iter().map(|v| bf16::from_f32(v.to_f32())).collect();
    let (px, py, out, sums) = (gpu.upload(&x), gpu.upload(&y), gpu.alloc::<bf16>(5 * n), gpu.alloc::<f32>(pairs));
    gpu.run("brains", 1, 128, params![px, py, out, sums, pairs as i32]);
    let found: Vec<bf16> = gpu.download(out, 5 * n);
    for i in 0..n {
        let (a, b) = (x[i].to_f64(), y[i].to_f64());
        let quotient = if i % 2 == 0 { x[i].to_f32() / 3.0 } else { y[i].to_f32() / 7.0 };
        let expect = [a + b, a * b, a * b + a, a.min(b), f64::from(quotient)];
        for (j, v) in expect.iter().enumerate() {
            assert_eq!(found[j * n + i], bf16::from_f64(*v), "bf16 {j} of {a} and {b}");
        }
    }
    let expect: Vec<f32> = x.chunks(2).map(|p| p[0].to_f32() + p[1].to_f32()).collect();
    assert_eq!(gpu.download::<f32>(sums, pairs), expect);
}

/// Within `units` of the last place, or of 2⁻¹⁴⁹.
fn close(found: f32, expect: f64, units: f64) -> bool {
    (f64::from(found) - expect).abs() <= units * (expect.abs() * 2f64.powi(-23)).max(2f64.powi(-149))
}

/// Bounds in units of the last place are those of the CUDA C++ programming guide.
#[test]
fn math_functions() {
    let gpu = Gpu::new(include_str!("../../programs/math.ptx"));
    let mut random = Random(2);
    let n = 512usize;
    let x: Vec<f32> = (0..n).map(|i| (random.unit() * if i % 2 == 0 { 1.0 } else { 20.0 }) as f32).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<f32>(14 * n));
    gpu.run("singles", 4, 128, params![px, out, n as i32]);
    let found: Vec<f32> = gpu.download(out, 14 * n);
    for (i, v) in x.iter().enumerate() {
        let d = f64::from(*v);
        let far = f64::from(v * 10000.0);
        let whole = f64::from(v.floor() + v.ceil() * 2.0 + v.round_ties_even() * 4.0 + v.trunc() * 8.0);
        let expect = [
            (d.exp(), 2.0),
            (d.abs().ln(), 1.0),
            (d.sin(), 2.0),
            (far.cos(), 2.0),
            (d.abs().powf(f64::from(1.7f32)), 4.0),
            (d.tanh(), 2.0),
            (d.cbrt(), 1.0),
            (d.atan2(2.0), 3.0),
            (f64::from(v % 0.7f32), 0.0),
            (f64::from(v / 3.1f32), 0.0),
            (f64::from(v.abs().sqrt()), 0.0),
            (whole, 0.0),
        ];
        let places = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12];
        for (place, (wanted, units)) in places.into_iter().zip(expect) {
            // One unit more: the guide's are of the result's own binade.
            let room = if units == 0.0 { 0.0 } else { units + 1.0 };
            assert!(close(found[place * n + i], wanted, room), "{place} of {v}: {} and {wanted}", found[place * n + i]);
        }
        let sum = d.abs().ln_1p() + (f64::from(v * 0.1f32)).exp_m1();
        let size = d.abs().ln_1p() + (f64::from(v * 0.1f32)).exp_m1().abs();
        assert!((f64::from(found[13 * n + i]) - sum).abs() <= 4.0 * size * 2f64.powi(-23));
        assert!((found[6 * n + i] - erf(d) as f32).abs() <= 3e-7, "erf {v}");
    }

    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let (px, out) = (gpu.upload(&x), gpu.alloc::<f64>(8 * n));
    gpu.run("doubles", 4, 128, params![px, out, n as i32]);
    let found: Vec<f64> = gpu.download(out, 8 * n);
    for (i, v) in x.iter().enumerate() {
        let expect = [
            (v.exp(), 1.0),
            (v.abs().ln(), 1.0),
            ((v * 1000.0).sin(), 2.0),
            (v.abs().powf(2.3), 2.0),
            (v.abs().sqrt() / 3.0, 0.0),
            (v.tanh(), 2.0),
            (1.0 / v, 0.0),
        ];
        for (place, (wanted, units)) in expect.into_iter().enumerate() {
            let error = (found[place * n + i] - wanted).abs();
            let room = if units == 0.0 { 0.0 } else { units + 1.0 };
            assert!(error <= room * wanted.abs() * 2f64.powi(-52), "{place} of {v}: {error:e}");
        }
        assert!((found[7 * n + i] - erf(*v)).abs() <= 1e-13, "erf {v}");
    }
}

/// erf by its series, or 1 less a continued fraction.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for k in 1..200 {
            term *= -a * a / f64::from(k);
            sum += term / f64::from(2 * k + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut fraction = a;
        for k in (1..60).rev() {
            fraction = a + f64::from(k) / 2.0 / fraction;
        }
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

#[test]
fn integers() {
    let gpu = Gpu::new(include_str!("../../programs/math.ptx"));
    let mut random = Random(3);
    let n = 512usize;
    let mut values = || -> Vec<i64> {
        (0..n).map(|i| (random.next() as i64) >> (i % 50)).map(|v| if v == 0 { 17 } else { v }).collect()
    };
    let (x, y) = (values(), values());
    let (px, py, out) = (gpu.upload(&x), gpu.upload(&y), gpu.alloc::<i64>(13 * n));
    gpu.run("integers", 4, 128, params![px, py, out, n as i32]);
    let found: Vec<i64> = gpu.download(out, 13 * n);
    for i in 0..n {
        let (a, b) = (x[i], y[i]);
        let (u, w) = (a as u32, b as u32);
        let (s, t) = (u as i32, w as i32);
        let bytes = [u.to_le_bytes(), w.to_le_bytes()].concat();
        let permuted = [0, 4, 1, 5].iter().rev().fold(0u32, |d, j| d << 8 | u32::from(bytes[*j as usize]));
        let dot = (0..4).fold(i as i32, |d, j| {
            let part = |v: u32| i32::from((v >> (8 * j)) as i8);
            d.wrapping_add(part(u) * part(w))
        });
        let ffs = if a == 0 { 0 } else { i64::from(a.trailing_zeros()) + 1 };
        let funnel = (((u64::from(w) << 32 | u64::from(u)) << (i % 32)) >> 32) as u32;
        let high = ((u64::from(u) * u64::from(w)) >> 32) as u32 ^ ((i64::from(s) * i64::from(t)) >> 32) as u32;
        let halves = (i64::from(s) + i64::from(t)) >> 1;
        let rounded = (i64::from(s) + i64::from(t) + 1) >> 1;
        let sad = ((i64::from(s) - i64::from(t)).unsigned_abs() as u32).wrapping_add(5);
        let expect = [
            a.wrapping_div(b),
            a.wrapping_rem(b),
            (a as u64 / b as u64) as i64,
            ((i128::from(a) * i128::from(b)) >> 64) as i64,
            i64::from(a.count_ones()) + 100 * i64::from(b.leading_zeros()) + 10000 * ffs,
            a.reverse_bits(),
            permuted.into(),
            funnel.into(),
            dot.into(),
            s.wrapping_div(t | 1).wrapping_add(s % 10).into(),
            (u / 7).wrapping_add(u % 1_000_003).into(),
            high.into(),
            sad.wrapping_add(halves as u32).wrapping_add(rounded as u32).into(),
        ];
        for (j, v) in expect.iter().enumerate() {
            assert_eq!(found[j * n + i], *v, "result {j} of {a:#x} and {b:#x}");
        }
    }
}

#[test]
fn packed_integers() {
    let gpu = Gpu::new(include_str!("../../programs/math.ptx"));
    let mut random = Random(4);
    let n = 256usize;
    let mut values = || -> Vec<u32> { (0..n).map(|_| random.next() as u32).collect() };
    let (x, y) = (values(), values());
    let (px, py, out) = (gpu.upload(&x), gpu.upload(&y), gpu.alloc::<u32>(9 * n));
    gpu.run("packed", 2, 128, params![px, py, out, n as i32]);
    let found: Vec<u32> = gpu.download(out, 9 * n);
    for i in 0..n {
        let (a, b) = (x[i], y[i]);
        let bytes = |f: &dyn Fn(u8, u8) -> u8| {
            u32::from_le_bytes(std::array::from_fn(|j| f(a.to_le_bytes()[j], b.to_le_bytes()[j])))
        };
        let words = |f: &dyn Fn(u16, u16) -> u16| {
            u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
        };
        let expect = [
            bytes(&u8::wrapping_add),
            words(&u16::wrapping_sub),
            bytes(&u8::abs_diff),
            words(&|p, q| (p as i16).max(q as i16) as u16),
            bytes(&u8::min),
            bytes(&|p, q| (u16::from(p) + u16::from(q)).div_ceil(2) as u8),
            bytes(&|p, q| if p > q { 255 } else { 0 }),
            bytes(&u8::saturating_add),
            (0..4).map(|j| u32::from(a.to_le_bytes()[j].abs_diff(b.to_le_bytes()[j]))).sum(),
        ];
        for (j, v) in expect.iter().enumerate() {
            assert_eq!(found[j * n + i], *v, "result {j} of {a:#x} and {b:#x}");
        }
    }
}
