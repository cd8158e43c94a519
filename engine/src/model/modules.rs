//! Norms, embeddings and the LM head.

use std::sync::Arc;

use kernels::Device;

use super::{Lora, Weight};
use crate::tensor::Param;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// (x − mean)/√(var + ε)·w + b.
    Layer,
    /// x/√(mean(x²) + ε)·w.
    Rms,
}

/// A norm over the features of a token.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Its module path in weight files.
    pub name: String,
    /// Which.
    pub kind: NormKind,
    /// w `[D]`.
    pub weight: Arc<Param>,
    /// b `[D]` (LayerNorm).
    pub bias: Option<Arc<Param>>,
    /// ε.
    pub eps: f32,
}

impl Norm {
    /// w, and b where there is one.
    pub fn params(&self) -> impl Iterator<Item = &Arc<Param>> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

/// A table of row vectors, looked up by token or position.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Its module path in weight files.
    pub name: String,
    /// `[V, D]`; a tied head shares it.
    pub weight: Arc<Weight>,
}

/// The LM head: logits = h·Wᵀ + s·(h·Aᵀ)·Bᵀ.
#[derive(Debug)]
pub struct Head {
    /// Its module path: `lm_head`.
    pub name: String,
    /// `[V, D]`.
    pub weight: Arc<Weight>,
    /// True where the weight is the token embedding's.
    pub tied: bool,
    /// The adapter: its own pair of matrices, also where the weight is tied.
    pub lora: Option<Lora>,
}

impl Head {
    /// Where it lives.
    pub fn device(&self) -> Device {
        self.weight.device()
    }
}
