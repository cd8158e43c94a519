//! The CPU's LayerNorm. Tokens lie across the lanes, so a statistic is a sum down the features; the parameters' gradients
//! are sums over tokens, a few features a task. Neither depends on the number of threads.

use rayon::prelude::*;

use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::strips::{GROUP, Lanes, Piece, SUMMED, SharedStrips, Strips, add_token_sums, lane_groups, strips};

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
    let (tokens, cols) = (out.mean.len(), weight.len());
    let (x, y) = (Strips::new(x, tokens, cols), SharedStrips::new(out.y, tokens, cols));
    let statistics = (SharedStrips::new(out.mean, tokens, 1), SharedStrips::new(out.rstd, tokens, 1));
    let groups: Vec<Piece> = lane_groups(tokens, GROUP).collect();
    groups.par_iter().for_each(|group| forward_group(isa, x, weight, bias, eps, group, y, statistics));
}

simd_fn! {
    /// μ, r and y of a group of tokens. The variance takes a pass of its own: the squares of small deviations do not drown
    /// in a large mean.
    fn forward_group(
        x: Strips<'_>, weight: &[f32], bias: &[f32], eps: f32, group: &Piece, y: SharedStrips<'_>,
        statistics: (SharedStrips<'_>, SharedStrips<'_>),
    ) {
        let n = weight.len() as f32;
        let mut sum = Lanes::splat(0.0);
        for feature in 0..weight.len() {
            sum = sum.zip(Lanes::load(x.row(group, feature)), F32x16::add);
        }
        let mean = sum.map(|sum| sum.div(F32x16::splat(n)));
        let mut squares = Lanes::splat(0.0);
        for feature in 0..weight.len() {
            let deviation = Lanes::load(x.row(group, feature)).zip(mean, F32x16::sub);
            squares = squares.zip(deviation, |sum, d| d.madd::<FMA>(d, sum));
        }
        let one = F32x16::splat(1.0);
        let rstd = squares.map(|sum| one.div(sum.div(F32x16::splat(n)).add(F32x16::splat(eps)).sqrt()));
        for (feature, (w, b)) in weight.iter().zip(bias).enumerate() {
            let (w, b) = (F32x16::splat(*w), F32x16::splat(*b));
            let normal = Lanes::load(x.row(group, feature)).zip(mean, F32x16::sub).zip(rstd, F32x16::mul);
            // SAFETY: a group's tokens are one task's alone.
            normal.map(|x| x.madd::<FMA>(w, b)).store(unsafe { y.row(group, feature) });
        }
        // SAFETY: as above.
        let (of_mean, of_rstd) = unsafe { (statistics.0.row(group, 0), statistics.1.row(group, 0)) };
        mean.store(of_mean);
        rstd.store(of_rstd);
    }
}

pub(super) fn input_gradient(isa: Isa, saved: &Saved<'_>, sum: Option<&[f32]>, dx: &mut [f32]) {
    let (tokens, cols) = (saved.mean.len(), saved.weight.len());
    let (sum, dx) = (sum.map(|sum| Strips::new(sum, tokens, cols)), SharedStrips::new(dx, tokens, cols));
    let groups: Vec<Piece> = lane_groups(tokens, GROUP).collect();
    groups.par_iter().for_each(|group| input_gradient_group(isa, saved, group, sum, dx));
}

simd_fn! {
    /// dx = r·(g − mean(g) − x̂·mean(g∘x̂)) with g = w∘dy, where `dx` holds dy, and what it is `added_to`.
    fn input_gradient_group(
        saved: &Saved<'_>, group: &Piece, added_to: Option<Strips<'_>>, dx: SharedStrips<'_>,
    ) {
        let weight = saved.weight;
        let x = Strips::new(saved.x, saved.mean.len(), weight.len());
        let lanes = group.strip.first + group.lanes.start..group.strip.first + group.lanes.end;
        let (mean, rstd) = (Lanes::load(&saved.mean[lanes.clone()]), Lanes::load(&saved.rstd[lanes]));
        let (mut sum, mut dot) = (Lanes::splat(0.0), Lanes::splat(0.0));
        for (feature, w) in weight.iter().enumerate() {
            // SAFETY: a group's tokens are one task's alone.
            let g = Lanes::load(unsafe { dx.row(group, feature) }).map(|dy| dy.mul(F32x16::splat(*w)));
            let normal = Lanes::load(x.row(group, feature)).zip(mean, F32x16::sub).zip(rstd, F32x16::mul);
            sum = sum.zip(g, F32x16::add);
            dot = dot.zip(g.zip(normal, F32x16::mul), F32x16::add);
        }
        let n = F32x16::splat(weight.len() as f32);
        let (sum, dot) = (sum.map(|x| x.div(n)), dot.map(|x| x.div(n)));
        for (feature, w) in weight.iter().enumerate() {
            // SAFETY: as above.
            let row = unsafe { dx.row(group, feature) };
            let g = Lanes::load(row).map(|dy| dy.mul(F32x16::splat(*w)));
            let normal = Lanes::load(x.row(group, feature)).zip(mean, F32x16::sub).zip(rstd, F32x16::mul);
            let own = g.zip(sum, F32x16::sub).zip(normal.zip(dot, F32x16::mul), F32x16::sub).zip(rstd, F32x16::mul);
            match added_to {
                Some(sum) => own.zip(Lanes::load(sum.row(group, feature)), F32x16::add).store(row),
                None => own.store(row),
            }
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
    let (tokens, cols) = (saved.mean.len(), saved.weight.len());
    let (x, dy) = (Strips::new(saved.x, tokens, cols), Strips::new(dy, tokens, cols));
    if let Some(d_weight) = d_weight {
        d_weight.par_chunks_mut(SUMMED).enumerate().for_each(|(chunk, out)| {
            for strip in strips(tokens) {
                let statistics = [saved.mean, saved.rstd].map(|of| &of[strip.first..][..strip.width]);
                let [x, dy] = [x, dy].map(|of| of.rows(strip, chunk * SUMMED));
                add_weight_gradients(isa, x, dy, statistics, out);
            }
        });
    }
    if let Some(d_bias) = d_bias {
        add_token_sums(isa, dy, d_bias);
    }
}

simd_fn! {
    /// out[j] += Σ_tokens dy·x̂ of feature j
    fn add_weight_gradients(x: &[f32], dy: &[f32], statistics: [&[f32]; 2], out: &mut [f32]) {
        let [mean, rstd] = statistics;
        let width = mean.len();
        let whole = width / LANES * LANES;
        for ((x, dy), out) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(out) {
            let partial = |of: &[f32]| F32x16::load_partial(&of[whole..], 0.0);
            let mut sum = partial(dy).mul(partial(x).sub(partial(mean))).mul(partial(rstd));
            for at in (0..whole).step_by(LANES) {
                let vector = |of: &[f32]| F32x16::load(&of[at..]);
                sum = sum.add(vector(dy).mul(vector(x).sub(vector(mean))).mul(vector(rstd)));
            }
            *out += sum.sum();
        }
    }
}
