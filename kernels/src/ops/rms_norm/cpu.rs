//! The CPU's RMSNorm; split over tokens and features as [`layer_norm`](crate::ops::layer_norm)'s.

use rayon::prelude::*;

use crate::simd::{F32x16, Isa, LANES};
use crate::simd_fn;
use crate::strips::{GROUP, Lanes, Piece, SUMMED, SharedStrips, Strips, lane_groups, strips};

pub(super) struct Saved<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub rstd: &'a [f32],
}

pub(super) fn forward(isa: Isa, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let (tokens, cols) = (rstd.len(), weight.len());
    let (x, y) = (Strips::new(x, tokens, cols), SharedStrips::new(y, tokens, cols));
    let rstd = SharedStrips::new(rstd, tokens, 1);
    let groups: Vec<Piece> = lane_groups(tokens, GROUP).collect();
    groups.par_iter().for_each(|group| forward_group(isa, x, weight, eps, group, y, rstd));
}

simd_fn! {
    /// r and y of a group of tokens.
    fn forward_group(
        x: Strips<'_>, weight: &[f32], eps: f32, group: &Piece, y: SharedStrips<'_>, of_rstd: SharedStrips<'_>,
    ) {
        let mut squares = Lanes::splat(0.0);
        for feature in 0..weight.len() {
            squares = squares.zip(Lanes::load(x.row(group, feature)), |sum, x| x.madd::<FMA>(x, sum));
        }
        let (one, n) = (F32x16::splat(1.0), F32x16::splat(weight.len() as f32));
        let rstd = squares.map(|sum| one.div(sum.div(n).add(F32x16::splat(eps)).sqrt()));
        for (feature, w) in weight.iter().enumerate() {
            let normal = Lanes::load(x.row(group, feature)).zip(rstd, F32x16::mul);
            // SAFETY: a group's tokens are one task's alone.
            normal.map(|x| x.mul(F32x16::splat(*w))).store(unsafe { y.row(group, feature) });
        }
        // SAFETY: as above.
        rstd.store(unsafe { of_rstd.row(group, 0) });
    }
}

pub(super) fn input_gradient(isa: Isa, saved: &Saved<'_>, sum: Option<&[f32]>, dx: &mut [f32]) {
    let (tokens, cols) = (saved.rstd.len(), saved.weight.len());
    let (sum, dx) = (sum.map(|sum| Strips::new(sum, tokens, cols)), SharedStrips::new(dx, tokens, cols));
    let groups: Vec<Piece> = lane_groups(tokens, GROUP).collect();
    groups.par_iter().for_each(|group| input_gradient_group(isa, saved, group, sum, dx));
}

simd_fn! {
    /// dx = r·(g − x̂·mean(g∘x̂)) with g = w∘dy, where `dx` holds dy, and what it is `added_to`.
    fn input_gradient_group(
        saved: &Saved<'_>, group: &Piece, added_to: Option<Strips<'_>>, dx: SharedStrips<'_>,
    ) {
        let weight = saved.weight;
        let x = Strips::new(saved.x, saved.rstd.len(), weight.len());
        let rstd = Lanes::load(&saved.rstd[group.strip.first..][group.lanes.clone()]);
        let mut dot = Lanes::splat(0.0);
        for (feature, w) in weight.iter().enumerate() {
            // SAFETY: a group's tokens are one task's alone.
            let g = Lanes::load(unsafe { dx.row(group, feature) }).map(|dy| dy.mul(F32x16::splat(*w)));
            let product = g.zip(Lanes::load(x.row(group, feature)), F32x16::mul);
            dot = dot.zip(product, F32x16::add);
        }
        // mean(g∘x̂)·r: x̂ = x·r, once here and once where it multiplies x.
        let n = F32x16::splat(weight.len() as f32);
        let dot = dot.zip(rstd, |dot, r| dot.div(n).mul(r).mul(r));
        for (feature, w) in weight.iter().enumerate() {
            // SAFETY: as above.
            let row = unsafe { dx.row(group, feature) };
            let g = Lanes::load(row).map(|dy| dy.mul(F32x16::splat(*w)));
            let along = Lanes::load(x.row(group, feature)).zip(dot, F32x16::mul);
            let own = g.zip(along, F32x16::sub).zip(rstd, F32x16::mul);
            match added_to {
                Some(sum) => own.zip(Lanes::load(sum.row(group, feature)), F32x16::add).store(row),
                None => own.store(row),
            }
        }
    }
}

pub(super) fn weight_gradient(isa: Isa, saved: &Saved<'_>, dy: &[f32], d_weight: &mut [f32]) {
    let (tokens, cols) = (saved.rstd.len(), saved.weight.len());
    let (x, dy) = (Strips::new(saved.x, tokens, cols), Strips::new(dy, tokens, cols));
    d_weight.par_chunks_mut(SUMMED).enumerate().for_each(|(chunk, out)| {
        for strip in strips(tokens) {
            let rstd = &saved.rstd[strip.first..][..strip.width];
            let [x, dy] = [x, dy].map(|of| of.rows(strip, chunk * SUMMED));
            add_weight_gradients(isa, x, dy, rstd, out);
        }
    });
}

simd_fn! {
    /// out[j] += Σ_tokens dy·x̂ of feature j
    fn add_weight_gradients(x: &[f32], dy: &[f32], rstd: &[f32], out: &mut [f32]) {
        let width = rstd.len();
        let whole = width / LANES * LANES;
        for ((x, dy), out) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(out) {
            let partial = |of: &[f32]| F32x16::load_partial(&of[whole..], 0.0);
            let mut sum = partial(dy).mul(partial(x)).mul(partial(rstd));
            for at in (0..whole).step_by(LANES) {
                let vector = |of: &[f32]| F32x16::load(&of[at..]);
                sum = sum.add(vector(dy).mul(vector(x)).mul(vector(rstd)));
            }
            *out += sum.sum();
        }
    }
}
