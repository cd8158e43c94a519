//! The CPU's RMSNorm; split over rows and columns as [`layer_norm`](crate::ops::layer_norm)'s.

use rayon::prelude::*;

use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;

/// Rows of a task.
const ROWS: usize = 16;
/// Columns of a task where rows are summed.
const COLUMNS: usize = 128;

pub(super) struct Saved<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub rstd: &'a [f32],
}

pub(super) fn forward(isa: Isa, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let cols = weight.len();
    x.par_chunks(ROWS * cols).zip(y.par_chunks_mut(ROWS * cols)).zip(rstd.par_chunks_mut(ROWS)).for_each(
        |((x, y), rstd)| {
            for ((x, y), rstd) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(rstd) {
                *rstd = forward_row(isa, x, weight, eps, y);
            }
        },
    );
}

simd_fn! {
    fn forward_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) -> f32 {
        let (whole, rest) = x.split_at(x.len() / LANES * LANES);
        let rest = F32x16::load_partial(rest, 0.0);
        let mut squares = rest.mul(rest);
        for x in whole.chunks_exact(LANES) {
            let x = F32x16::load(x);
            squares = x.madd::<FMA>(x, squares);
        }
        let rstd = 1.0 / (squares.sum() / x.len() as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * rstd * w;
        }
        rstd
    }
}

pub(super) fn input_gradient(isa: Isa, saved: &Saved<'_>, dx: &mut [f32]) {
    let cols = saved.weight.len();
    dx.par_chunks_mut(ROWS * cols).enumerate().for_each(|(chunk, dx)| {
        for (i, dx) in dx.chunks_exact_mut(cols).enumerate() {
            let row = chunk * ROWS + i;
            input_gradient_row(isa, &saved.x[row * cols..][..cols], saved.weight, saved.rstd[row], dx);
        }
    });
}

simd_fn! {
    /// dx = r·(g − x̂·mean(g∘x̂)) with g = w∘dy, where `dx` holds dy.
    fn input_gradient_row(x: &[f32], weight: &[f32], rstd: f32, dx: &mut [f32]) {
        let whole = x.len() / LANES * LANES;
        let rest = F32x16::load_partial(&weight[whole..], 0.0).mul(F32x16::load_partial(&dx[whole..], 0.0));
        let mut dot = rest.mul(F32x16::load_partial(&x[whole..], 0.0));
        for at in (0..whole).step_by(LANES) {
            let g = F32x16::load(&weight[at..]).mul(F32x16::load(&dx[at..]));
            dot = g.madd::<FMA>(F32x16::load(&x[at..]), dot);
        }
        // mean(g∘x̂)·r: x̂ = x·r, once here and once where it multiplies x.
        let dot = dot.sum() / x.len() as f32 * rstd * rstd;
        for ((x, w), dx) in x.iter().zip(weight).zip(dx.iter_mut()) {
            *dx = rstd * (w * *dx - x * dot);
        }
    }
}

pub(super) fn weight_gradient(isa: Isa, saved: &Saved<'_>, dy: &[f32], d_weight: &mut [f32]) {
    let cols = saved.weight.len();
    d_weight.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, out)| {
        weight_columns(isa, saved.x, dy, saved.rstd, cols, chunk * COLUMNS, out);
    });
}

simd_fn! {
    /// out[j] += Σ_rows dy·x̂ in columns start + j
    fn weight_columns(x: &[f32], dy: &[f32], rstd: &[f32], cols: usize, start: usize, out: &mut [f32]) {
        for ((x, dy), rstd) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(rstd) {
            let (x, dy) = (&x[start..start + out.len()], &dy[start..start + out.len()]);
            for ((out, x), dy) in out.iter_mut().zip(x).zip(dy) {
                *out += dy * x * rstd;
            }
        }
    }
}
