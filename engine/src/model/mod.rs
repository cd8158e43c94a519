//! What every network is made of, and what the engine asks of it.
//!
//! A [`Model`] owns its modules and can do two things: compute hidden states under a tape, decoder layer by decoder layer,
//! and show its modules one by one. Pruning, adapters, counting, saving are all written once over the modules it shows; a network knows nothing of
//! training.

mod changes;
mod linear;
mod load;
mod modules;
mod offload;
mod save;
mod snapshot;
mod spill;

use std::sync::Arc;

use kernels::Device;

pub use changes::{MatrixChange, changes};
pub use linear::{Linear, Lora, LoraValues, Weight};
pub(crate) use load::named_rng;
pub use load::{Loader, Source};
pub use modules::{Embedding, Head, Norm, NormKind};
pub use offload::Offload;
pub(crate) use save::narrow;
pub use save::{convert, save, tensors};
pub use snapshot::Snapshot;
pub use spill::Spill;

pub use crate::checkpoint::LoraForm;

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::tensor::Param;

/// Token sequences, padded on the right to one length: `tokens[b·seq_len + t]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    tokens: Arc<[u32]>,
    seq_len: usize,
    /// Of each sequence, without its pads.
    lengths: Arc<[usize]>,
}

/// What stands in a pad. Attention is causal, so no token before it sees it, and it has no loss: any id of the vocabulary would do.
const PAD: u32 = 0;

impl TokenBatch {
    /// Whole sequences of `seq_len` tokens, one after the other.
    ///
    /// # Panics
    /// If the tokens are not whole sequences.
    pub fn new(tokens: Vec<u32>, seq_len: usize) -> TokenBatch {
        assert!(seq_len > 0 && tokens.len().is_multiple_of(seq_len), "a batch is whole sequences");
        let lengths = vec![seq_len; tokens.len() / seq_len].into();
        TokenBatch { tokens: tokens.into(), seq_len, lengths }
    }

    /// Sequences of any length from 1, padded to that of the longest.
    ///
    /// # Panics
    /// If there is none, or an empty one.
    pub fn padded(sequences: &[&[u32]]) -> TokenBatch {
        let lengths: Arc<[usize]> = sequences.iter().map(|tokens| tokens.len()).collect();
        let seq_len = lengths.iter().copied().max().expect("a batch has sequences");
        assert!(!lengths.contains(&0), "a sequence has tokens");
        let pads = |tokens: &[u32]| std::iter::repeat_n(PAD, seq_len - tokens.len());
        let tokens = sequences.iter().flat_map(|tokens| tokens.iter().copied().chain(pads(tokens))).collect();
        TokenBatch { tokens, seq_len, lengths }
    }

    /// All tokens, pads too.
    pub fn tokens(&self) -> &Arc<[u32]> {
        &self.tokens
    }

    /// T: tokens of a sequence and its pads.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// B.
    pub fn sequences(&self) -> usize {
        self.tokens.len() / self.seq_len
    }

    /// For each token the one after it in its sequence, [`IGNORED`](kernels::ops::head_loss::IGNORED) for the last and for pads.
    pub fn targets(&self) -> Vec<u32> {
        let row = |(tokens, length): (&[u32], &usize)| {
            let next = tokens[1..*length].iter().copied();
            next.chain(std::iter::repeat(kernels::ops::head_loss::IGNORED)).take(self.seq_len).collect::<Vec<_>>()
        };
        self.tokens.chunks(self.seq_len).zip(self.lengths.iter()).flat_map(row).collect()
    }

    /// Predictions: Σ(length − 1), which is B·(T−1) without pads.
    pub fn predictions(&self) -> usize {
        self.lengths.iter().map(|length| length - 1).sum()
    }

    /// Tokens that are no pads.
    pub fn real_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Facts about a network that do not depend on its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of its config.
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Hidden width.
    pub hidden: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest sequence.
    pub context: usize,
}

/// One module of a network.
pub enum Module<'a> {
    /// A linear layer; [`between_steps`] lends it for editing.
    Linear(&'a mut Arc<Linear>),
    /// A norm.
    Norm(&'a mut Norm),
    /// A token or position embedding.
    Embedding(&'a mut Embedding),
    /// The LM head.
    Head(&'a mut Head),
}

/// A network: an embedding, decoder layers one after the other, and what lies between them and the head.
pub trait Model {
    /// Facts about it.
    fn info(&self) -> &ModelInfo;

    /// The first decoder layer's input `[N, D]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence longer than the context, or no memory.
    fn embed(&self, tape: &mut Tape, batch: &TokenBatch) -> Result<Var>;

    /// What decoder layer `layer` makes of its input `[N, D]` for the sequences of `batch`: the next one's input.
    ///
    /// # Errors
    /// Shapes that do not fit, or no memory.
    ///
    /// # Panics
    /// If there is no such layer.
    fn decode(&self, tape: &mut Tape, layer: usize, x: Var, batch: &TokenBatch) -> Result<Var>;

    /// The head's input `[N, width of the head]` from the last decoder layer's output.
    ///
    /// # Errors
    /// As [`Model::decode`].
    fn finish(&self, tape: &mut Tape, x: Var) -> Result<Var>;

    /// The head's input `[N, width of the head]`: hidden states after the last norm or projection.
    ///
    /// # Errors
    /// As [`Model::embed`].
    fn forward(&self, tape: &mut Tape, batch: &TokenBatch) -> Result<Var> {
        let mut x = self.embed(tape, batch)?;
        for layer in 0..self.info().layers {
            x = self.decode(tape, layer, x, batch)?;
        }
        self.finish(tape, x)
    }

    /// The LM head.
    fn head(&self) -> &Head;

    /// Shows every module once, in the order of the forward pass, embeddings first and the head last.
    ///
    /// # Errors
    /// The first error of `show`.
    fn visit(&mut self, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()>;
}

/// Every parameter that has its own f32 tensor: biases, norms, LoRA, and whatever trains. In the order of
/// [`Model::visit`].
pub fn params(model: &mut dyn Model) -> Vec<Arc<Param>> {
    let mut all: Vec<Arc<Param>> = Vec::new();
    let mut add = |param: &Arc<Param>| {
        // A tied table is shown by the embedding and by the head.
        if !all.iter().any(|known| Arc::ptr_eq(known, param)) {
            all.push(param.clone());
        }
    };
    let shown = model.visit(&mut |module| {
        match module {
            Module::Linear(linear) => {
                linear.weight.param().into_iter().for_each(&mut add);
                linear.bias.iter().for_each(&mut add);
                linear.lora.iter().flat_map(|lora| [&lora.a, &lora.b]).for_each(&mut add);
            }
            Module::Norm(norm) => norm.params().for_each(&mut add),
            Module::Embedding(embedding) => embedding.weight.param().into_iter().for_each(&mut add),
            Module::Head(head) => {
                head.weight.param().into_iter().for_each(&mut add);
                head.lora.iter().flat_map(|lora| [&lora.a, &lora.b]).for_each(&mut add);
            }
        }
        Ok(())
    });
    debug_assert!(shown.is_ok(), "the closure returns no error");
    all
}

/// Counts of a network's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Parameters of the base model.
    pub base: usize,
    /// Weights that pruning may remove: those of the linear layers inside decoder layers.
    pub prunable: usize,
    /// Entries of A and B.
    pub adapters: usize,
    /// Parameters that train.
    pub trainable: usize,
}

impl Counts {
    /// The share of parameters that train, adapters counted in the denominator too.
    pub fn trainable_percent(&self) -> f64 {
        100.0 * self.trainable as f64 / (self.base + self.adapters).max(1) as f64
    }
}

/// Bytes of pinned memory that a network's offloaded weights take of the host.
pub fn host_bytes(model: &mut dyn Model) -> usize {
    let mut bytes = 0;
    let shown = model.visit(&mut |module| {
        if let Module::Linear(linear) = module {
            bytes += linear.weight.host_bytes();
        }
        Ok(())
    });
    debug_assert!(shown.is_ok(), "the closure returns no error");
    bytes
}

/// Counts a network's parameters.
pub fn count(model: &mut dyn Model) -> Counts {
    let mut counts = Counts::default();
    let shown = model.visit(&mut |module| {
        match module {
            Module::Linear(linear) => {
                let weights = linear.weight.rows() * linear.weight.cols();
                counts.base += weights + linear.bias.as_ref().map_or(0, |bias| bias.len());
                counts.prunable += if linear.prunable { weights } else { 0 };
                counts.adapters += linear.lora.as_ref().map_or(0, Lora::len);
            }
            Module::Norm(norm) => counts.base += norm.params().map(|param| param.len()).sum::<usize>(),
            Module::Embedding(embedding) => counts.base += embedding.weight.rows() * embedding.weight.cols(),
            Module::Head(head) => {
                counts.base += if head.tied { 0 } else { head.weight.rows() * head.weight.cols() };
                counts.adapters += head.lora.as_ref().map_or(0, Lora::len);
            }
        }
        Ok(())
    });
    debug_assert!(shown.is_ok(), "the closure returns no error");
    counts.trainable = params(model).iter().filter(|param| param.is_trainable()).map(|param| param.len()).sum();
    counts
}

/// Sparsity of a network: zeros among the prunable weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sparsity {
    /// Share of zeros in the prunable weights.
    pub weights: f64,
    /// The same with the entries of A and B counted as parameters.
    pub with_adapters: f64,
    /// The share of zeros in each decoder layer's prunable weights.
    pub layers: Vec<f64>,
}

/// Measures sparsity by counting zeros.
///
/// # Errors
/// The GPU's.
pub fn sparsity(model: &mut dyn Model) -> Result<Sparsity> {
    let mut layers = vec![(0, 0); model.info().layers];
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
            && let Some((zeros, total)) = linear.layer().and_then(|layer| layers.get_mut(layer))
        {
            *zeros += linear.weight.zeros()?;
            *total += linear.weight.rows() * linear.weight.cols();
        }
        Ok(())
    })?;
    let (zeros, total) = layers.iter().fold((0, 0), |(zeros, total), layer| (zeros + layer.0, total + layer.1));
    let adapters = count(model).adapters;
    Ok(Sparsity {
        weights: zeros as f64 / total.max(1) as f64,
        with_adapters: zeros as f64 / (total + adapters).max(1) as f64,
        layers: layers.iter().map(|(zeros, total)| *zeros as f64 / (*total).max(1) as f64).collect(),
    })
}

/// A shared module that no tape holds: between steps every closure of the last tape is gone.
///
/// # Panics
/// While a tape of the module is alive: an error of the calling code.
pub fn between_steps<T>(shared: &mut Arc<T>) -> &mut T {
    Arc::get_mut(shared).expect("modules are edited between steps only")
}

/// Where a network lives.
pub fn device_of(model: &dyn Model) -> Device {
    model.head().device().clone()
}
