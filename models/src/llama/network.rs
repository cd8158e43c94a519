//! The Llama family's network.

use std::sync::Arc;

use engine::autograd::{
    Attention, Precision, RotaryTable, Tape, Var, attention, embedding, linear, linear_add, norm, rotary, silu_gate,
};
use engine::error::{Error, Result};
use engine::model::{
    Embedding, Head, Linear, Loader, Model, ModelInfo, Module, Norm, NormKind, TokenBatch, between_steps,
};

use super::LlamaConfig;

pub(super) struct Llama {
    config: LlamaConfig,
    tokens: Embedding,
    rotary: Arc<RotaryTable>,
    layers: Vec<Arc<Layer>>,
    final_norm: Norm,
    head: Head,
}

struct Layer {
    window: Option<usize>,
    attention_norm: Norm,
    q: Arc<Linear>,
    k: Arc<Linear>,
    v: Arc<Linear>,
    out: Arc<Linear>,
    mlp_norm: Norm,
    gate: Arc<Linear>,
    up: Arc<Linear>,
    down: Arc<Linear>,
}

impl Llama {
    pub(super) fn build(config: LlamaConfig, loader: &Loader<'_>) -> Result<Llama> {
        let tokens = loader.tokens("model.embed_tokens", config.info.vocab, config.info.hidden, config.tied)?;
        let (positions, rope) = (config.info.context, &config.rope);
        let rotary = Arc::new(RotaryTable::new(loader.device(), positions, &rope.frequencies, rope.factor)?);
        let layers = (0..config.info.layers)
            .map(|layer| Ok(Arc::new(Layer::build(&config, loader, layer)?)))
            .collect::<Result<Vec<_>>>()?;
        let final_norm = loader.norm(NormKind::Rms, "model.norm", config.info.hidden, config.eps)?;
        let head = loader.head(config.tied, &tokens)?;
        Ok(Llama { config, tokens, rotary, layers, final_norm, head })
    }
}

impl Layer {
    fn build(config: &LlamaConfig, loader: &Loader<'_>, layer: usize) -> Result<Layer> {
        let (hidden, intermediate) = (config.info.hidden, config.intermediate);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |part: &str, rows, cols, bias| loader.linear(&name(part), rows, cols, bias, true);
        let norm = |part: &str| loader.norm(NormKind::Rms, &name(part), hidden, config.eps);
        Ok(Layer {
            window: config.windows[layer],
            attention_norm: norm("input_layernorm")?,
            q: linear("self_attn.q_proj", queries, hidden, config.qkv_bias)?,
            k: linear("self_attn.k_proj", keys, hidden, config.qkv_bias)?,
            v: linear("self_attn.v_proj", keys, hidden, config.qkv_bias)?,
            out: linear("self_attn.o_proj", hidden, queries, config.out_bias)?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj", intermediate, hidden, config.mlp_bias)?,
            up: linear("mlp.up_proj", intermediate, hidden, config.mlp_bias)?,
            down: linear("mlp.down_proj", hidden, intermediate, config.mlp_bias)?,
        })
    }

    /// x `[N, D]` → `[N, D]`
    fn forward(&self, tape: &mut Tape, x: Var, table: &Arc<RotaryTable>, shape: &Attention) -> Result<Var> {
        let h = norm(tape, &self.attention_norm, &x)?;
        let q = linear(tape, &self.q, &h)?;
        let q = rotary(tape, q, table, shape.tokens, shape.heads, shape.head_dim)?;
        let k = linear(tape, &self.k, &h)?;
        let k = rotary(tape, k, table, shape.tokens, shape.kv_heads, shape.head_dim)?;
        let v = linear(tape, &self.v, &h)?;
        drop(h);
        let precision = Linear::precision(&[&self.q, &self.k, &self.v]);
        let mixed = attention(tape, q, k, v, &Attention { window: self.window, precision, ..*shape })?;
        let x = linear_add(tape, &self.out, &mixed, x)?;
        drop(mixed);
        let h = norm(tape, &self.mlp_norm, &x)?;
        let gate = linear(tape, &self.gate, &h)?;
        let up = linear(tape, &self.up, &h)?;
        drop(h);
        let gated = silu_gate(tape, gate, up)?;
        linear_add(tape, &self.down, &gated, x)
    }

    fn visit(&mut self, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()> {
        show(Module::Norm(&mut self.attention_norm))?;
        for linear in [&mut self.q, &mut self.k, &mut self.v, &mut self.out] {
            show(Module::Linear(linear))?;
        }
        show(Module::Norm(&mut self.mlp_norm))?;
        for linear in [&mut self.gate, &mut self.up, &mut self.down] {
            show(Module::Linear(linear))?;
        }
        Ok(())
    }
}

impl Model for Llama {
    fn info(&self) -> &ModelInfo {
        &self.config.info
    }

    fn embed(&self, tape: &mut Tape, batch: &TokenBatch) -> Result<Var> {
        if batch.seq_len() > self.config.info.context {
            return Err(Error::config(format!(
                "sequences of {} tokens are longer than the model's context of {}",
                batch.seq_len(),
                self.config.info.context
            )));
        }
        embedding(tape, &self.tokens, batch.tokens())
    }

    fn decode(&self, tape: &mut Tape, layer: usize, x: Var, batch: &TokenBatch) -> Result<Var> {
        let shape = Attention {
            batch: batch.sequences(),
            tokens: batch.seq_len(),
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            scale: (self.config.head_dim as f32).powf(-0.5),
            window: None,
            precision: Precision::F32,
        };
        let (layer, table) = (self.layers[layer].clone(), self.rotary.clone());
        tape.segment(x, move |tape, x| layer.forward(tape, x, &table, &shape))
    }

    fn finish(&self, tape: &mut Tape, x: Var) -> Result<Var> {
        norm(tape, &self.final_norm, &x)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn visit(&mut self, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()> {
        show(Module::Embedding(&mut self.tokens))?;
        for layer in &mut self.layers {
            between_steps(layer).visit(show)?;
        }
        show(Module::Norm(&mut self.final_norm))?;
        show(Module::Head(&mut self.head))
    }
}
