//! LayerNorm as the formula says, in f64.

/// y `[N, D]`.
pub fn forward(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let cols = weight.len();
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks(cols) {
        let mean = x.iter().sum::<f64>() / cols as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
        let rstd = 1.0 / (variance + eps).sqrt();
        y.extend(x.iter().zip(weight).zip(bias).map(|((x, w), b)| w * (x - mean) * rstd + b));
    }
    y
}
