//! The CPU's LayerNorm. Rows are independent in forward and for dx; the parameters' gradients are summed down the rows, a
//! few columns a task, so that neither depends on the number of threads.

use rayon::prelude::*;

use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;

/// Rows of a task.
const ROWS: usize = 16;
/// Columns of a task where rows are summed: a few cache lines of each row.
const COLUMNS: usize = 128;

pub(super) struct Output<'a> {
    pub y: &'a mut [f32],
    pub mean: &'a mut [f32],
    pub rstd: &'a mut [f32],
}

pub(super) struct Saved<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub mean: &'a [f32],
    pub rstd: &'a [f32],
}

pub(super) fn forward(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: Output<'_>) {
    let cols = weight.len();
    let rows = x.par_chunks(ROWS * cols).zip(out.y.par_chunks_mut(ROWS * cols));
    rows.zip(out.mean.par_chunks_mut(ROWS).zip(out.rstd.par_chunks_mut(ROWS))).for_each(|((x, y), (mean, rstd))| {
        for (i, (x, y)) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).enumerate() {
            (mean[i], rstd[i]) = statistics(isa, x, eps);
            normalise(isa, x, weight, bias, mean[i], rstd[i], y);
        }
    });
}

simd_fn! {
    /// μ and r of one row, in two passes: the squares of small deviations do not drown in a large mean.
    fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
        let n = x.len() as f32;
        let (whole, rest) = x.split_at(x.len() / LANES * LANES);
        let mut sum = F32x16::load_partial(rest, 0.0);
        for x in whole.chunks_exact(LANES) {
            sum = sum.add(F32x16::load(x));
        }
        let mean = sum.sum() / n;
        let m = F32x16::splat(mean);
        let rest = F32x16::load_partial(rest, mean).sub(m);
        let mut squares = rest.mul(rest);
        for x in whole.chunks_exact(LANES) {
            let d = F32x16::load(x).sub(m);
            squares = d.madd::<FMA>(d, squares);
        }
        (mean, 1.0 / (squares.sum() / n + eps).sqrt())
    }
}

simd_fn! {
    fn normalise(x: &[f32], weight: &[f32], bias: &[f32], mean: f32, rstd: f32, y: &mut [f32]) {
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * rstd * w + b;
        }
    }
}

pub(super) fn input_gradient(isa: Isa, saved: &Saved<'_>, dx: &mut [f32]) {
    let cols = saved.weight.len();
    dx.par_chunks_mut(ROWS * cols).enumerate().for_each(|(chunk, dx)| {
        for (i, dx) in dx.chunks_exact_mut(cols).enumerate() {
            let row = chunk * ROWS + i;
            let x = &saved.x[row * cols..][..cols];
            input_gradient_row(isa, x, saved.weight, saved.mean[row], saved.rstd[row], dx);
        }
    });
}

simd_fn! {
    /// dx = r·(g − mean(g) − x̂·mean(g∘x̂)) with g = w∘dy, where `dx` holds dy.
    fn input_gradient_row(x: &[f32], weight: &[f32], mean: f32, rstd: f32, dx: &mut [f32]) {
        let n = x.len() as f32;
        let (m, r) = (F32x16::splat(mean), F32x16::splat(rstd));
        let whole = x.len() / LANES * LANES;
        // Past the row's end w and dy are zero, so that g is too.
        let mut sum = F32x16::load_partial(&weight[whole..], 0.0).mul(F32x16::load_partial(&dx[whole..], 0.0));
        let mut dot = sum.mul(F32x16::load_partial(&x[whole..], mean).sub(m).mul(r));
        for at in (0..whole).step_by(LANES) {
            let g = F32x16::load(&weight[at..]).mul(F32x16::load(&dx[at..]));
            let normal = F32x16::load(&x[at..]).sub(m).mul(r);
            sum = sum.add(g);
            dot = g.madd::<FMA>(normal, dot);
        }
        let (sum, dot) = (sum.sum() / n, dot.sum() / n);
        for ((x, w), dx) in x.iter().zip(weight).zip(dx.iter_mut()) {
            *dx = rstd * (w * *dx - sum - (x - mean) * rstd * dot);
        }
    }
}

pub(super) fn param_gradients(
    isa: Isa,
    saved: &Saved<'_>,
    dy: &[f32],
    d_weight: Option<&mut [f32]>,
    d_bias: Option<&mut [f32]>,
) {
    let cols = saved.weight.len();
    if let Some(d_weight) = d_weight {
        d_weight.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, out)| {
            weight_columns(isa, saved.x, dy, saved.mean, saved.rstd, cols, chunk * COLUMNS, out);
        });
    }
    if let Some(d_bias) = d_bias {
        d_bias.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, out)| {
            bias_columns(isa, dy, cols, chunk * COLUMNS, out);
        });
    }
}

simd_fn! {
    /// out[j] += Σ_rows dy·x̂ in columns start + j
    fn weight_columns(
        x: &[f32], dy: &[f32], mean: &[f32], rstd: &[f32], cols: usize, start: usize, out: &mut [f32],
    ) {
        for (row, (x, dy)) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).enumerate() {
            let (x, dy) = (&x[start..start + out.len()], &dy[start..start + out.len()]);
            let (mean, rstd) = (mean[row], rstd[row]);
            for ((out, x), dy) in out.iter_mut().zip(x).zip(dy) {
                *out += dy * (x - mean) * rstd;
            }
        }
    }
}

simd_fn! {
    /// out[j] += Σ_rows dy in columns start + j
    fn bias_columns(dy: &[f32], cols: usize, start: usize, out: &mut [f32]) {
        for dy in dy.chunks_exact(cols) {
            for (out, dy) in out.iter_mut().zip(&dy[start..]) {
                *out += dy;
            }
        }
    }
}
