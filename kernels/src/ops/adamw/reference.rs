//! AdamW as the formulas say, one number in f64.

use super::Step;

/// w, m and v after one step with the clipped gradient g.
pub fn step(w: f64, g: f64, m: f64, v: f64, s: &Step) -> (f64, f64, f64) {
    let m = s.beta1 * m + (1.0 - s.beta1) * g;
    let v = s.beta2 * v + (1.0 - s.beta2) * g * g;
    let t = s.step as i32;
    let (m_hat, v_hat) = (m / (1.0 - s.beta1.powi(t)), v / (1.0 - s.beta2.powi(t)));
    (w * (1.0 - s.lr * s.weight_decay) - s.lr * m_hat / (v_hat.sqrt() + s.eps), m, v)
}
