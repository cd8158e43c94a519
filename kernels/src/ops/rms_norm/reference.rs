//! RMSNorm as the formula says, in f64.

/// y `[N, D]`.
pub fn forward(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let cols = weight.len();
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks(cols) {
        let rstd = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / cols as f64 + eps).sqrt();
        y.extend(x.iter().zip(weight).map(|(x, w)| w * x * rstd));
    }
    y
}
