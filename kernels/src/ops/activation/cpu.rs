//! The CPU's activations: one pass each, sixteen elements at a time.

use rayon::prelude::*;

use super::Activation;
use crate::simd::{F32x16, Isa, LANES, madd};
use crate::simd_fn;

/// Elements of a task; a multiple of 64, so that tasks share no word of a bitmap.
const CHUNK: usize = 8 * 1024;

pub(super) fn relu(isa: Isa, y: &mut [f32], signs: Option<&mut [u64]>) {
    match signs {
        Some(signs) => y
            .par_chunks_mut(CHUNK)
            .zip(signs.par_chunks_mut(CHUNK / 64))
            .for_each(|(y, signs)| relu_signs(isa, y, signs)),
        None => y.par_chunks_mut(CHUNK).for_each(|y| relu_only(isa, y)),
    }
}

/// max(x, 0), but NaN stays NaN: the loss must show it, or training would go on with garbage.
#[inline(always)]
fn rectified(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

simd_fn! {
    fn relu_only(y: &mut [f32]) {
        for y in y {
            *y = rectified(*y);
        }
    }
}

simd_fn! {
    fn relu_signs(y: &mut [f32], signs: &mut [u64]) {
        for (y, word) in y.chunks_mut(64).zip(signs) {
            let mut bits = 0u64;
            for (i, y) in y.iter_mut().enumerate() {
                *y = rectified(*y);
                bits |= u64::from(*y != 0.0) << i;
            }
            *word = bits;
        }
    }
}

pub(super) fn relu_backward(isa: Isa, dx: &mut [f32], signs: &[u64]) {
    dx.par_chunks_mut(CHUNK).zip(signs.par_chunks(CHUNK / 64)).for_each(|(dx, signs)| mask_chunk(isa, dx, signs));
}

simd_fn! {
    fn mask_chunk(dx: &mut [f32], signs: &[u64]) {
        for (dx, word) in dx.chunks_mut(64).zip(signs) {
            for (i, dx) in dx.iter_mut().enumerate() {
                *dx = if word >> i & 1 == 1 { *dx } else { 0.0 };
            }
        }
    }
}

pub(super) fn forward(isa: Isa, kind: Activation, x: &[f32], y: &mut [f32]) {
    let run = match kind {
        Activation::Relu => relu_copy,
        Activation::Gelu => gelu_chunk,
        Activation::GeluTanh => gelu_tanh_chunk,
        Activation::Silu => silu_chunk,
    };
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| run(isa, x, y));
}

pub(super) fn backward(isa: Isa, kind: Activation, dx: &mut [f32], x: &[f32]) {
    let run = match kind {
        Activation::Relu => relu_slope,
        Activation::Gelu => gelu_slope,
        Activation::GeluTanh => gelu_tanh_slope,
        Activation::Silu => silu_slope,
    };
    dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dx, x)| run(isa, x, dx));
}

pub(super) fn silu_gate(isa: Isa, gate: &[f32], up: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|(y, (gate, up))| silu_gate_chunk(isa, gate, up, y));
}

pub(super) fn silu_gate_backward(isa: Isa, gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    d_up.par_chunks_mut(CHUNK)
        .zip(d_gate.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|((d_up, d_gate), (gate, up))| silu_gate_slope(isa, gate, up, d_gate, d_up));
}

/// Compiles a map from `x` to `y` (or from `x` and what `y` holds), sixteen elements at a time.
macro_rules! lanewise {
    ($(#[$meta:meta])* fn $name:ident($x:ident, $y:ident) $body:expr) => {
        simd_fn! {
            $(#[$meta])*
            fn $name(x: &[f32], y: &mut [f32]) {
                let whole = y.len() / LANES * LANES;
                for at in (0..whole).step_by(LANES) {
                    let ($x, $y) = (F32x16::load(&x[at..]), F32x16::load(&y[at..]));
                    $body.store(&mut y[at..]);
                }
                let ($x, $y) = (F32x16::load_partial(&x[whole..], 0.0), F32x16::load_partial(&y[whole..], 0.0));
                $body.store_partial(&mut y[whole..]);
            }
        }
    };
}

simd_fn! {
    fn relu_copy(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = rectified(*x);
        }
    }
}

simd_fn! {
    fn relu_slope(x: &[f32], dx: &mut [f32]) {
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = if *x <= 0.0 { 0.0 } else { *dx };
        }
    }
}

lanewise! { fn gelu_chunk(x, _y) x.mul(normal_cdf::<FMA>(x, bell::<FMA>(x))) }
lanewise! {
    /// Φ(x) + x·φ(x)
    fn gelu_slope(x, dy) {
        const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
        let bell = bell::<FMA>(x);
        dy.mul(x.mul(bell).madd::<FMA>(F32x16::splat(INVERSE_SQRT_TAU), normal_cdf::<FMA>(x, bell)))
    }
}
lanewise! { fn gelu_tanh_chunk(x, _y) x.mul(sigmoid::<FMA>(twice_u::<FMA>(x))) }
lanewise! {
    /// With (1 + tanh u)/2 = σ(2u): f′ = σ(2u) + x·σ(2u)·(1 − σ(2u))·(2u)′
    fn gelu_tanh_slope(x, dy) {
        let s = sigmoid::<FMA>(twice_u::<FMA>(x));
        let slope = F32x16::splat(SQRT_8_PI * 3.0 * GELU_CUBIC).mul(x).madd::<FMA>(x, F32x16::splat(SQRT_8_PI));
        let curve = x.mul(s).mul(F32x16::splat(1.0).sub(s)).mul(slope);
        dy.mul(s.add(curve))
    }
}
lanewise! { fn silu_chunk(x, _y) x.mul(sigmoid::<FMA>(x)) }
lanewise! {
    fn silu_slope(x, dy) {
        let s = sigmoid::<FMA>(x);
        let rest = F32x16::splat(1.0).sub(s);
        dy.mul(s).mul(x.madd::<FMA>(rest, F32x16::splat(1.0)))
    }
}

simd_fn! {
    fn silu_gate_chunk(gate: &[f32], up: &[f32], y: &mut [f32]) {
        let whole = y.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (g, u) = (F32x16::load(&gate[at..]), F32x16::load(&up[at..]));
            g.mul(sigmoid::<FMA>(g)).mul(u).store(&mut y[at..]);
        }
        let (g, u) = (F32x16::load_partial(&gate[whole..], 0.0), F32x16::load_partial(&up[whole..], 0.0));
        g.mul(sigmoid::<FMA>(g)).mul(u).store_partial(&mut y[whole..]);
    }
}

simd_fn! {
    /// `d_up` holds dy.
    fn silu_gate_slope(gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let whole = gate.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let (g, u) = (F32x16::load(&gate[at..]), F32x16::load(&up[at..]));
            let (dg, du) = silu_gate_slopes::<FMA>(g, u, F32x16::load(&d_up[at..]));
            dg.store(&mut d_gate[at..]);
            du.store(&mut d_up[at..]);
        }
        let (g, u) = (F32x16::load_partial(&gate[whole..], 0.0), F32x16::load_partial(&up[whole..], 0.0));
        let (dg, du) = silu_gate_slopes::<FMA>(g, u, F32x16::load_partial(&d_up[whole..], 0.0));
        dg.store_partial(&mut d_gate[whole..]);
        du.store_partial(&mut d_up[whole..]);
    }
}

/// (dy·u·silu′(g), dy·silu(g))
#[inline(always)]
fn silu_gate_slopes<const FMA: bool>(g: F32x16, u: F32x16, dy: F32x16) -> (F32x16, F32x16) {
    let one = F32x16::splat(1.0);
    let s = sigmoid::<FMA>(g);
    (dy.mul(u).mul(s).mul(g.madd::<FMA>(one.sub(s), one)), dy.mul(g).mul(s))
}

/// √(8/π): twice the √(2/π) of u.
const SQRT_8_PI: f32 = 1.595_769_2;
const GELU_CUBIC: f32 = 0.044_715;

/// 2u = √(8/π)·(x + 0.044715·x³)
#[inline(always)]
fn twice_u<const FMA: bool>(x: F32x16) -> F32x16 {
    let cubic = F32x16::splat(SQRT_8_PI * GELU_CUBIC).mul(x).mul(x);
    x.mul(cubic.add(F32x16::splat(SQRT_8_PI)))
}

/// 1/(1 + e⁻ˣ)
#[inline(always)]
fn sigmoid<const FMA: bool>(x: F32x16) -> F32x16 {
    let one = F32x16::splat(1.0);
    one.div(one.add(F32x16::ZERO.sub(x).exp::<FMA>()))
}

/// e^(−x²/2)
#[inline(always)]
fn bell<const FMA: bool>(x: F32x16) -> F32x16 {
    x.mul(x).mul(F32x16::splat(-0.5)).exp::<FMA>()
}

/// Φ(x) by Abramowitz and Stegun 7.1.26: erf z = 1 − p(t)·e^(−z²), t = 1/(1 + 0.3275911·z), |error| ≤ 1.5e-7 for z ≥ 0;
/// erf is odd. With z = |x|/√2, e^(−z²) is `bell`; Φ halves erf's error to 7.5e-8, about f32's own rounding near 1.
#[inline(always)]
fn normal_cdf<const FMA: bool>(x: F32x16, bell: F32x16) -> F32x16 {
    const SLOPE: f32 = 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2;
    let mut half = [0.0; LANES];
    for (lane, half) in half.iter_mut().enumerate() {
        let t = 1.0 / madd::<FMA>(SLOPE, x.0[lane].abs(), 1.0);
        let mut p = 1.061_405_4;
        for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
            p = madd::<FMA>(p, t, c);
        }
        let tail = 0.5 * p * t * bell.0[lane];
        *half = if x.0[lane] > 0.0 { 1.0 - tail } else { tail };
    }
    F32x16(half)
}
