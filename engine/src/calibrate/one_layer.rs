//! A network of which only one decoder layer's modules show: what edits modules then edits that layer alone.

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::model::{Head, Model, ModelInfo, Module, TokenBatch};

/// Computes as the whole network does, and shows the modules of one decoder layer.
pub(super) struct OneLayer<'a> {
    pub model: &'a mut dyn Model,
    pub layer: usize,
}

impl Model for OneLayer<'_> {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn embed(&self, tape: &mut Tape, batch: &TokenBatch) -> Result<Var> {
        self.model.embed(tape, batch)
    }

    fn decode(&self, tape: &mut Tape, layer: usize, x: Var, batch: &TokenBatch) -> Result<Var> {
        self.model.decode(tape, layer, x, batch)
    }

    fn finish(&self, tape: &mut Tape, x: Var) -> Result<Var> {
        self.model.finish(tape, x)
    }

    fn head(&self) -> &Head {
        self.model.head()
    }

    fn visit(&mut self, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()> {
        let layer = self.layer;
        self.model.visit(&mut |module| {
            let name = match &module {
                Module::Linear(linear) => &linear.name,
                Module::Norm(norm) => &norm.name,
                Module::Embedding(_) | Module::Head(_) => return Ok(()),
            };
            match name.split('.').find_map(|part| part.parse::<usize>().ok()) {
                Some(of) if of == layer => show(module),
                _ => Ok(()),
            }
        })
    }
}
