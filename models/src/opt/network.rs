//! OPT's network.

use std::sync::Arc;

use engine::autograd::{
    Attention, Precision, Tape, Var, add_positions, attention, embedding, linear, linear_activation, linear_add, norm,
};
use engine::error::Result;
use engine::model::{
    Embedding, Head, Linear, Loader, Model, ModelInfo, Module, Norm, NormKind, TokenBatch, between_steps,
};

use super::OptConfig;

/// Rows of the position table before position 0.
const POSITION_OFFSET: usize = 2;

const NORM_EPS: f64 = 1e-5;

pub(super) struct Opt {
    config: OptConfig,
    tokens: Embedding,
    positions: Embedding,
    project_in: Option<Arc<Linear>>,
    layers: Vec<Arc<Layer>>,
    final_norm: Option<Norm>,
    project_out: Option<Arc<Linear>>,
    head: Head,
}

struct Layer {
    attention_norm: Norm,
    q: Arc<Linear>,
    k: Arc<Linear>,
    v: Arc<Linear>,
    out: Arc<Linear>,
    ffn_norm: Norm,
    up: Arc<Linear>,
    down: Arc<Linear>,
}

impl Opt {
    pub(super) fn build(config: OptConfig, loader: &Loader<'_>) -> Result<Opt> {
        const DECODER: &str = "model.decoder";
        let hidden = config.info.hidden;
        let projection = |name: &str, rows, cols| {
            let wanted = config.embed != hidden;
            wanted.then(|| loader.linear(&format!("{DECODER}.{name}"), rows, cols, false, false)).transpose()
        };
        let tokens = loader.tokens(&format!("{DECODER}.embed_tokens"), config.info.vocab, config.embed, config.tied)?;
        let places = config.info.context + POSITION_OFFSET;
        let positions = loader.embedding(&format!("{DECODER}.embed_positions"), places, hidden)?;
        let project_in = projection("project_in", hidden, config.embed)?;
        let layers = (0..config.info.layers)
            .map(|layer| Ok(Arc::new(Layer::build(&config, loader, &format!("{DECODER}.layers.{layer}"))?)))
            .collect::<Result<Vec<_>>>()?;
        let final_norm = config
            .final_norm
            .then(|| loader.norm(NormKind::Layer, &format!("{DECODER}.final_layer_norm"), hidden, NORM_EPS))
            .transpose()?;
        let project_out = projection("project_out", config.embed, hidden)?;
        let head = loader.head(config.tied, &tokens)?;
        Ok(Opt { config, tokens, positions, project_in, layers, final_norm, project_out, head })
    }
}

impl Layer {
    fn build(config: &OptConfig, loader: &Loader<'_>, name: &str) -> Result<Layer> {
        let (hidden, ffn) = (config.info.hidden, config.ffn);
        let linear = |part: &str, rows, cols| loader.linear(&format!("{name}.{part}"), rows, cols, config.biases, true);
        let norm = |part: &str| loader.norm(NormKind::Layer, &format!("{name}.{part}"), hidden, NORM_EPS);
        Ok(Layer {
            attention_norm: norm("self_attn_layer_norm")?,
            q: linear("self_attn.q_proj", hidden, hidden)?,
            k: linear("self_attn.k_proj", hidden, hidden)?,
            v: linear("self_attn.v_proj", hidden, hidden)?,
            out: linear("self_attn.out_proj", hidden, hidden)?,
            ffn_norm: norm("final_layer_norm")?,
            up: linear("fc1", ffn, hidden)?,
            down: linear("fc2", hidden, ffn)?,
        })
    }

    /// x `[N, D]` → `[N, D]`
    fn forward(&self, tape: &mut Tape, x: Var, config: &OptConfig, shape: &Attention) -> Result<Var> {
        let x = self.block(tape, x, &self.attention_norm, config, |tape, x, h| {
            let q = linear(tape, &self.q, &h)?;
            let k = linear(tape, &self.k, &h)?;
            let v = linear(tape, &self.v, &h)?;
            drop(h);
            let precision = Linear::precision(&[&self.q, &self.k, &self.v]);
            let mixed = attention(tape, q, k, v, &Attention { precision, ..*shape })?;
            linear_add(tape, &self.out, &mixed, x)
        })?;
        self.block(tape, x, &self.ffn_norm, config, |tape, x, h| {
            let up = linear_activation(tape, &self.up, &h, config.activation)?;
            drop(h);
            linear_add(tape, &self.down, &up, x)
        })
    }

    /// f(x, norm(x)), or norm(f(x, x)) where norms come after. f adds its first argument to what it makes of the second.
    fn block(
        &self,
        tape: &mut Tape,
        x: Var,
        layer_norm: &Norm,
        config: &OptConfig,
        f: impl FnOnce(&mut Tape, Var, Var) -> Result<Var>,
    ) -> Result<Var> {
        if config.norm_before {
            let h = norm(tape, layer_norm, &x)?;
            f(tape, x, h)
        } else {
            let y = f(tape, x.clone(), x)?;
            norm(tape, layer_norm, &y)
        }
    }

    fn visit(&mut self, norm_before: bool, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()> {
        let blocks = [
            (&mut self.attention_norm, vec![&mut self.q, &mut self.k, &mut self.v, &mut self.out]),
            (&mut self.ffn_norm, vec![&mut self.up, &mut self.down]),
        ];
        for (norm, linears) in blocks {
            if norm_before {
                show(Module::Norm(norm))?;
            }
            for linear in linears {
                show(Module::Linear(linear))?;
            }
            if !norm_before {
                show(Module::Norm(norm))?;
            }
        }
        Ok(())
    }
}

impl Model for Opt {
    fn info(&self) -> &ModelInfo {
        &self.config.info
    }

    fn embed(&self, tape: &mut Tape, batch: &TokenBatch) -> Result<Var> {
        let mut x = embedding(tape, &self.tokens, batch.tokens())?;
        if let Some(project_in) = &self.project_in {
            x = linear(tape, project_in, &x)?;
        }
        add_positions(tape, x, &self.positions, batch.seq_len(), POSITION_OFFSET)
    }

    fn decode(&self, tape: &mut Tape, layer: usize, x: Var, batch: &TokenBatch) -> Result<Var> {
        let shape = Attention {
            batch: batch.sequences(),
            tokens: batch.seq_len(),
            heads: self.config.heads,
            kv_heads: self.config.heads,
            head_dim: self.config.head_dim,
            scale: (self.config.head_dim as f32).powf(-0.5),
            window: None,
            precision: Precision::F32,
        };
        let (layer, config) = (self.layers[layer].clone(), self.config.clone());
        tape.segment(x, move |tape, x| layer.forward(tape, x, &config, &shape))
    }

    fn finish(&self, tape: &mut Tape, mut x: Var) -> Result<Var> {
        if let Some(final_norm) = &self.final_norm {
            x = norm(tape, final_norm, &x)?;
        }
        if let Some(project_out) = &self.project_out {
            x = linear(tape, project_out, &x)?;
        }
        Ok(x)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn visit(&mut self, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()> {
        show(Module::Embedding(&mut self.tokens))?;
        show(Module::Embedding(&mut self.positions))?;
        if let Some(project_in) = &mut self.project_in {
            show(Module::Linear(project_in))?;
        }
        for layer in &mut self.layers {
            between_steps(layer).visit(self.config.norm_before, show)?;
        }
        if let Some(final_norm) = &mut self.final_norm {
            show(Module::Norm(final_norm))?;
        }
        if let Some(project_out) = &mut self.project_out {
            show(Module::Linear(project_out))?;
        }
        show(Module::Head(&mut self.head))
    }
}
