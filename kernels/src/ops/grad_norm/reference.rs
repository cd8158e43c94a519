//! The norm as the formula says, in f64.

/// √Σ g² over all tensors.
pub fn grad_norm(tensors: &[Vec<f32>]) -> f64 {
    tensors.iter().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}
