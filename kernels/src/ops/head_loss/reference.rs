//! Head and loss as the formulas say, in f64, with all logits at once.

use super::IGNORED;

/// Every operand of the contract, dense.
pub struct Operands<'a> {
    /// Entries of the vocabulary, V.
    pub vocab: usize,
    /// Features of a hidden state, D.
    pub dim: usize,
    /// Rank of the adapter; zero for none.
    pub rank: usize,
    /// s = α/r.
    pub scale: f64,
    /// h `[N, D]`.
    pub hidden: &'a [f64],
    /// W `[V, D]`.
    pub weight: &'a [f64],
    /// A `[r, D]`.
    pub a: &'a [f64],
    /// B `[V, r]`.
    pub b: &'a [f64],
    /// N ids.
    pub targets: &'a [u32],
}

/// dh, dA, dB and dW.
pub struct Gradients {
    /// `[N, D]`
    pub hidden: Vec<f64>,
    /// `[r, D]`
    pub a: Vec<f64>,
    /// `[V, r]`
    pub b: Vec<f64>,
    /// `[V, D]`
    pub weight: Vec<f64>,
}

impl Operands<'_> {
    /// z = s·h·Aᵀ of one row.
    pub fn low_rank(&self, h: &[f64]) -> Vec<f64> {
        let row = |r: usize| h.iter().zip(&self.a[r * self.dim..]).map(|(h, a)| h * a).sum::<f64>() * self.scale;
        (0..self.rank).map(row).collect()
    }

    /// ln of the probabilities of one row.
    pub fn log_probabilities(&self, h: &[f64]) -> Vec<f64> {
        let z = self.low_rank(h);
        let logits: Vec<f64> = (0..self.vocab)
            .map(|v| {
                let dense: f64 = h.iter().zip(&self.weight[v * self.dim..]).map(|(h, w)| h * w).sum();
                dense + z.iter().zip(&self.b[v * self.rank..]).map(|(z, b)| z * b).sum::<f64>()
            })
            .collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
        logits.into_iter().map(|x| x - lse).collect()
    }

    /// Each row's loss.
    pub fn losses(&self) -> Vec<f64> {
        let rows = self.hidden.chunks(self.dim).zip(self.targets);
        rows.map(|(h, t)| if *t == IGNORED { 0.0 } else { -self.log_probabilities(h)[*t as usize] }).collect()
    }

    /// The gradients of `g` times the sum of the losses.
    pub fn gradients(&self, g: f64) -> Gradients {
        let (dim, rank) = (self.dim, self.rank);
        let mut d = Gradients {
            hidden: vec![0.0; self.hidden.len()],
            a: vec![0.0; self.a.len()],
            b: vec![0.0; self.b.len()],
            weight: vec![0.0; self.weight.len()],
        };
        for (n, (h, target)) in self.hidden.chunks(dim).zip(self.targets).enumerate() {
            if *target == IGNORED {
                continue;
            }
            let z = self.low_rank(h);
            let d_h = &mut d.hidden[n * dim..][..dim];
            for (v, log_p) in self.log_probabilities(h).into_iter().enumerate() {
                let dx = g * (log_p.exp() - if v == *target as usize { 1.0 } else { 0.0 });
                add(d_h, dx, &self.weight[v * dim..]);
                add(&mut d.weight[v * dim..][..dim], dx, h);
                add(&mut d.b[v * rank..][..rank], dx, &z);
                for r in 0..rank {
                    let u = self.scale * dx * self.b[v * rank + r];
                    add(d_h, u, &self.a[r * dim..]);
                    add(&mut d.a[r * dim..][..dim], u, h);
                }
            }
        }
        d
    }
}

/// to += factor·from
fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}
