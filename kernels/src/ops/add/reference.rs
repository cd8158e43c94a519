//! Sums in f64.

/// a + b.
pub fn add(a: &[f32], b: &[f32]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect()
}
